import math
import time

import pytest

from burnish.data.errors import RowProblem
from burnish.data.formats import (
    ChatPreference,
    TextPreference,
    content_columns,
    implicit_text_prompt,
    read_preference,
)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


TEXT = {"prompt": "Sky?", "chosen": " blue", "rejected": " red"}
CHAT = {"prompt": [user("Sky?")], "chosen": [assistant("blue")], "rejected": [assistant("red")]}
WHOLE = {"prompt": "Sky?", **{name: [user("Sky?"), *CHAT[name]] for name in ("chosen", "rejected")}}
TURNS = {
    "conversations": [{"from": "human", "value": "Sky?"}],
    "chosen": {"from": "gpt", "value": "blue"},
    "rejected": {"from": "gpt", "value": "red"},
}
TOOL = {"type": "function", "function": {"name": "look"}}


def test_text_row():
    assert read_preference(TEXT) == TextPreference("Sky?", " blue", " red")


def test_chat_row_ignores_empty_keys_and_names_filled_ones():
    row = {**CHAT, "chosen": [{**assistant("blue"), "tool_calls": None, "images": [], "name": "Bo"}]}
    assert read_preference(row) == ChatPreference(
        [user("Sky?")], [assistant("blue")], [assistant("red")], frozenset({"name"})
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "end"),
    [
        ("Assistant: The sky", "Assistant: Nope", 10),
        ("Q\n\nblue", "Q\n\nblack", 3),
        ("The sky is blue", "The sky is red", 10),
        ("The sky", "The sky is blue", 3),
        ("Yes ", "No!", None),
        ("word", "words", None),
        ("  a", "  b", None),
        ("Sky? blue", "Sky?\nred", 4),
        ("a b ", "a b c", 1),
        ("天空 蓝", "天空 红", 2),
    ],
)
def test_implicit_text_prompt(chosen, rejected, end):
    assert implicit_text_prompt(chosen, rejected) == end


@pytest.mark.parametrize("filler", [" ", "a", "a ", "\n", "天"])
def test_long_texts_take_no_time(filler):
    """The prompt is found in one pass; a search that copies the text at each place would take minutes."""
    text = filler * (300_000 // len(filler))
    start = time.monotonic()
    implicit_text_prompt(text + "?\nblue", text + "?\nred")
    implicit_text_prompt(text + "x", text + "y")
    assert time.monotonic() - start < 5


def test_implicit_text_row_keeps_both_texts():
    row = read_preference({"chosen": "Human: hi\nBot: yes", "rejected": "Human: hi\nBot: no way"})
    assert row == TextPreference("Human: hi\nBot:", " yes", " no way")


@pytest.mark.parametrize(
    ("chosen", "rejected", "length"),
    [
        ([user("a"), assistant("b")], [user("a"), assistant("c")], 1),
        (
            [user("a"), assistant("b"), user("c"), assistant("d")],
            [user("a"), assistant("b"), user("c"), assistant("e")],
            3,
        ),
        (
            [user("a"), assistant("b"), user("c"), assistant("d")],
            [user("a"), assistant("b"), user("x"), assistant("d")],
            1,
        ),
        ([user("a"), assistant("b")], [user("a"), assistant("b"), user("c"), assistant("d")], 1),
    ],
)
def test_implicit_chat_prompt_ends_before_an_assistant_turn(chosen, rejected, length):
    row = read_preference({"chosen": chosen, "rejected": rejected})
    assert row == ChatPreference(chosen[:length], chosen[length:], rejected[length:])


@pytest.mark.parametrize(
    "row",
    [
        WHOLE,
        {**CHAT, "prompt": "Sky?"},
        {**CHAT, "chosen": "blue", "rejected": "red"},
        {**CHAT, "chosen": assistant("blue"), "rejected": assistant("red")},
        TURNS,
        {**TURNS, "conversations": [user("Sky?")], "rejected": [{"from": "bard", "value": "red"}]},
        {**TURNS, "prompt": None, "system": ""},
        {**CHAT, "conversations": [], "system": None},
        {**CHAT, "tools": "[]", "chat_template_kwargs": "{}"},
        # what `Sequence` features of `datasets` deliver
        {**CHAT, "chosen": {"role": ["assistant"], "content": ["blue"], "tool_calls": []}},
    ],
)
def test_layouts_of_the_same_row(row):
    assert read_preference(row) == ChatPreference(CHAT["prompt"], CHAT["chosen"], CHAT["rejected"])


def test_text_prompt_becomes_the_turns_that_both_answers_begin_with():
    """A system turn may stand before it, and turns that both answers share may follow."""
    shared = [{"role": "system", "content": "s"}, user("Sky?"), assistant("Where?"), user("Here.")]
    row = read_preference(
        {"prompt": "Sky?", "chosen": [*shared, assistant("a")], "rejected": [*shared, assistant("b")]}
    )
    assert row == ChatPreference(shared, [assistant("a")], [assistant("b")])


def test_system_column_is_the_first_turn_of_conversations():
    system = {"role": "system", "content": "Be brief."}
    assert read_preference({**TURNS, "system": "Be brief."}).prompt == [system, *CHAT["prompt"]]
    assert (
        read_preference({**TURNS, "conversations": [system, user("Sky?")], "system": "Be brief."}).prompt[0] == system
    )


def test_each_row_decides_for_itself():
    kinds = [type(read_preference(row)) for row in (TEXT, CHAT, WHOLE, {"chosen": "Q a", "rejected": "Q b"}, TURNS)]
    assert kinds == [TextPreference, ChatPreference, ChatPreference, TextPreference, ChatPreference]


def test_tools_and_template_variables_go_along():
    row = read_preference({**CHAT, "tools": [TOOL], "chat_template_kwargs": '{"enable_thinking": false}'})
    assert (row.tools, row.template_kwargs) == ((TOOL,), {"enable_thinking": False})


def test_answers_that_repeat_a_prompt_of_messages_say_how_to_go_on():
    with pytest.raises(RowProblem) as caught:
        read_preference({**WHOLE, "prompt": [user("Sky?")]})
    assert "remove_columns('prompt')" in caught.value.fix


def test_columns_that_are_read():
    """A system column is read beside conversations only, and else listed as not read."""
    assert content_columns(["id", "chosen", "system", "tools"]) == ["chosen", "tools"]
    assert content_columns(["system", "conversations"]) == ["system", "conversations"]


BAD_ROWS = [
    ({**TEXT, "chosen": None}, "chosen", "missing"),
    ({"prompt": "a", "chosen": "b"}, "rejected", "missing"),
    ({**TEXT, "prompt": None}, "prompt", "missing"),
    ({**TEXT, "prompt": ""}, "prompt", "empty"),
    ({**TEXT, "rejected": " \n"}, "rejected", "white space"),
    ({**TEXT, "chosen": 5}, "chosen", "int"),
    ({**TEXT, "chosen": math.nan}, "chosen", "float"),
    ({**TEXT, "chosen": {"a": 1}}, "chosen", "is dict"),
    ({**TEXT, "prompt": {"role": None, "content": None}}, "prompt", "is missing"),
    ({**TEXT, "chosen": assistant("blue")}, "chosen", "mixed layout"),
    ({**TEXT, "chosen": "a\x00b"}, "chosen", "NUL"),
    ({**TEXT, "chosen": "a\ud800b"}, "chosen", "surrogate"),
    ({**TEXT, "rejected": " blue"}, "rejected", "same as chosen"),
    ({"chosen": "Yes", "rejected": "No"}, "prompt", "share no first words"),
    ({**CHAT, "rejected": "red"}, "rejected", "mixed layout"),
    ({**CHAT, "chosen": []}, "chosen", "no messages"),
    ({**CHAT, "chosen": ["blue"]}, "chosen", "turn 0 is str"),
    ({**CHAT, "chosen": [assistant(None)]}, "chosen", "content of turn 0 is missing"),
    ({**CHAT, "chosen": [assistant(" ")]}, "chosen", "white space"),
    ({**CHAT, "prompt": [{"role": "human", "content": "a"}]}, "prompt", "unknown role"),
    ({**CHAT, "prompt": [{"content": "a"}]}, "prompt", "unknown role"),
    ({**CHAT, "prompt": [user("a"), assistant("b")]}, "prompt", "ends with an assistant turn"),
    ({**CHAT, "chosen": [user("a"), assistant("b")]}, "chosen", "starts with a user turn"),
    ({**CHAT, "rejected": [assistant("b"), user("a")]}, "rejected", "ends with a user turn"),
    ({**CHAT, "rejected": [assistant("blue")]}, "rejected", "same as chosen"),
    ({**CHAT, "chosen": [{**assistant("a"), "tool_calls": [{"id": 1}]}]}, "chosen", "tool_calls"),
    (
        {"chosen": [user("a"), assistant("b")], "rejected": [user("x"), assistant("c")]},
        "prompt",
        "share no first turns",
    ),
    # text before messages
    ({**CHAT, "prompt": " "}, "prompt", "white space"),
    ({**WHOLE, "prompt": "Sea?"}, "chosen", "another user's turn than the prompt 'Sea?'"),
    ({**WHOLE, "rejected": [user("Sea?"), assistant("red")]}, "rejected", "than the prompt 'Sky?'"),
    ({**WHOLE, "rejected": [assistant("red")]}, "rejected", "does not begin with the user's turn of the prompt"),
    ({**WHOLE, "chosen": [assistant("blue")]}, "chosen", "does not begin with the user's turn of the prompt"),
    ({**WHOLE, "rejected": [user("Sky?"), user("?"), assistant("red")]}, "rejected", "other turns than chosen"),
    ({**WHOLE, "rejected": [user("Sky?")]}, "rejected", "other turns than chosen"),
    ({**WHOLE, "prompt": [user("Sky?")]}, "chosen", "starts with a user turn"),
    # messages before text
    ({**TEXT, "prompt": [user("Sky?"), assistant("a")]}, "prompt", "ends with an assistant turn"),
    ({**TEXT, "prompt": [user("Sky?")], "rejected": "\x00"}, "rejected", "NUL"),
    # conversations
    ({**TURNS, "conversations": "Sky?"}, "conversations", "mixed layout"),
    ({**TURNS, "conversations": None}, "conversations", "is missing"),
    ({**TURNS, "conversations": [], "prompt": None}, "prompt", "is missing"),
    ({**TURNS, "prompt": "Sky?"}, "prompt", "conversations too"),
    ({**TURNS, "conversations": [{"from": "gpt", "value": "a"}]}, "conversations", "ends with an assistant turn"),
    ({**TURNS, "rejected": "red"}, "rejected", "mixed layout"),
    ({**TURNS, "system": "\x00"}, "system", "NUL"),
    ({**CHAT, "conversations": None, "system": "Be brief."}, "system", "beside conversations only"),
    (
        {**TURNS, "conversations": [{"role": "system", "content": "a"}, user("b")], "system": "c"},
        "system",
        "not the system turn",
    ),
    # what only chat templates read
    ({**TEXT, "tools": [TOOL]}, "tools", "the row is text"),
    ({**TEXT, "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs", "the row is text"),
    ({**CHAT, "audio": {"path": "x.wav"}}, "audio", "not built yet"),
]


@pytest.mark.parametrize(("row", "column", "problem"), BAD_ROWS)
def test_bad_row_is_named(row, column, problem):
    with pytest.raises(RowProblem) as caught:
        read_preference(row)
    assert caught.value.column == column
    assert problem in caught.value.problem
    assert caught.value.fix.endswith((".", "]."))
    str(caught.value.at(3)).encode()


def test_columns_that_do_not_fit_the_row_may_be_empty():
    empty = {"tools": [], "audio": None, "chat_template_kwargs": {"enable_thinking": None}, "system": "unread"}
    assert read_preference({**TEXT, **empty}) == read_preference(TEXT)
