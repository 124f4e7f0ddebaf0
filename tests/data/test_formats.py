import math

import pytest

from burnish.data.errors import RowProblem
from burnish.data.formats import (
    ChatPreference,
    TextPreference,
    implicit_text_prompt,
    read_numbers,
    read_preference,
)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


TEXT = {"prompt": "Sky?", "chosen": " blue", "rejected": " red"}
CHAT = {"prompt": [user("Sky?")], "chosen": [assistant("blue")], "rejected": [assistant("red")]}


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


BAD_ROWS = [
    ({**TEXT, "chosen": None}, "chosen", "missing"),
    ({"prompt": "a", "chosen": "b"}, "rejected", "missing"),
    ({**TEXT, "prompt": None}, "prompt", "missing"),
    ({**TEXT, "prompt": ""}, "prompt", "empty"),
    ({**TEXT, "rejected": " \n"}, "rejected", "white space"),
    ({**TEXT, "chosen": 5}, "chosen", "int"),
    ({**TEXT, "chosen": math.nan}, "chosen", "float"),
    ({**TEXT, "chosen": {"role": "user"}}, "chosen", "dict"),
    ({**TEXT, "chosen": "a\x00b"}, "chosen", "NUL"),
    ({**TEXT, "chosen": "a\ud800b"}, "chosen", "surrogate"),
    ({**TEXT, "rejected": " blue"}, "rejected", "same as chosen"),
    ({"chosen": "Yes", "rejected": "No"}, "prompt", "share no first words"),
    ({**CHAT, "prompt": "Sky?"}, "prompt", "mixed layout"),
    ({**TEXT, "prompt": [user("Sky?")]}, "prompt", "mixed layout"),
    ({**CHAT, "rejected": "red"}, "rejected", "mixed layout"),
    ({**CHAT, "chosen": []}, "chosen", "no messages"),
    ({**CHAT, "chosen": ["blue"]}, "chosen", "turn 0 is str"),
    ({**CHAT, "chosen": [assistant(None)]}, "chosen", "content of turn 0 is missing"),
    ({**CHAT, "chosen": [assistant([{"type": "text", "text": "a"}])]}, "chosen", "list of parts"),
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
    ({**CHAT, "tools": ["search"]}, "tools", "not built yet"),
    ({**CHAT, "images": ["x.png"]}, "images", "not built yet"),
    ({**CHAT, "chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs", "not built yet"),
]


@pytest.mark.parametrize(("row", "column", "problem"), BAD_ROWS)
def test_bad_row_is_named(row, column, problem):
    with pytest.raises(RowProblem) as caught:
        read_preference(row)
    assert caught.value.column == column
    assert problem in caught.value.problem
    assert caught.value.fix.endswith((".", "]."))
    str(caught.value.at(3)).encode()


def test_ultrafeedback_layout_says_how_to_convert():
    with pytest.raises(RowProblem) as caught:
        read_preference({**CHAT, "prompt": "Sky?"})
    assert "remove_columns('prompt')" in caught.value.fix


def test_columns_that_are_refused_may_be_empty():
    empty = {"tools": [], "images": None, "chat_template_kwargs": {"enable_thinking": None}}
    assert read_preference({**TEXT, **empty}) == read_preference(TEXT)


def test_numbers_under_both_names():
    row = {"reference_chosen_logps": -1, "ref_rejected_logps": -2.5, "weight": 0, "margin": 3, "score": 1}
    expected = {"ref_chosen_logps": -1.0, "ref_rejected_logps": -2.5, "weight": 0.0, "margin": 3.0}
    assert read_numbers(row) == expected


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"weight": -1.0}, "weight"),
        ({"weight": None}, "weight"),
        ({"margin": "1"}, "margin"),
        ({"margin": True}, "margin"),
        ({"margin": math.inf}, "margin"),
        ({"ref_chosen_logps": math.nan, "ref_rejected_logps": -1.0}, "ref_chosen_logps"),
        ({"ref_chosen_logps": -1.0}, "ref_rejected_logps"),
        ({"ref_rejected_logps": -1.0}, "ref_chosen_logps"),
    ],
)
def test_bad_numbers_are_named(row, column):
    with pytest.raises(RowProblem) as caught:
        read_numbers(row)
    assert caught.value.column == column
