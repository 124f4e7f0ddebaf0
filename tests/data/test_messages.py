"""Messages of OpenAI's and ShareGPT's keys, parts of content, and what stands beside the content."""

import json

import datasets
import pytest
from datasets import Dataset, Features, Json, LargeList, List, Value, disable_progress_bars

from burnish.data.errors import RowProblem
from burnish.data.messages import read_messages
from burnish.data.sources import load_rows
from burnish.data.tokenize import prepare_preferences
from burnish.data.truncate import TruncationPolicy
from conftest import make_tokenizer

disable_progress_bars()

CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}


def read(*turns):
    ignored = set()
    return read_messages("chosen", list(turns), ignored), ignored


def problem_of(turn):
    with pytest.raises(RowProblem) as caught:
        read(turn)
    assert caught.value.column == "chosen"
    str(caught.value.at(3)).encode()
    return caught.value


@pytest.mark.parametrize(
    ("sender", "role"),
    [
        ("human", "user"),
        ("user", "user"),
        ("gpt", "assistant"),
        ("chatgpt", "assistant"),
        ("assistant", "assistant"),
        ("bing", "assistant"),
        ("bard", "assistant"),
        ("system", "system"),
        ("tool", "tool"),
        ("observation", "tool"),
    ],
)
def test_senders_of_sharegpt(sender, role):
    assert read({"from": sender, "value": "a"}) == ([{"role": role, "content": "a"}], set())


def test_keys_of_both_kinds_in_one_table():
    """Rows of both kinds make one table, whose turns have all keys."""
    openai = {"role": "user", "content": "a", "from": None, "value": None}
    sharegpt = {"role": None, "content": None, "from": "gpt", "value": "b"}
    assert read(openai, sharegpt)[0] == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "value",
    [
        '{"name": "look", "arguments": {"at": "sky"}}',
        '[{"name": "look", "arguments": "{\\"at\\": \\"sky\\"}"}]',
        {"name": "look", "arguments": {"at": "sky", "day": None}},
    ],
)
def test_function_call_of_sharegpt(value):
    messages, _ = read({"from": "function_call", "value": value})
    assert messages == [{"role": "assistant", "content": "", "tool_calls": [CALL]}]


def test_content_of_text_parts_is_joined_and_other_keys_are_counted():
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b", "image": None, "cache_control": {"a": 1}}]
    assert read({"role": "user", "content": parts}) == (
        [{"role": "user", "content": "a b"}],
        {"content.cache_control"},
    )


@pytest.mark.parametrize("content", [None, "", [], " "])
def test_content_may_be_empty_beside_tool_calls(content):
    (message,), _ = read({"role": "assistant", "content": content, "tool_calls": [CALL]})
    assert message == {"role": "assistant", "content": content or "", "tool_calls": [CALL]}


def test_a_tool_may_return_nothing_but_not_null():
    turn = {"role": "tool", "content": "", "name": "look", "tool_call_id": "1"}
    assert read(turn) == ([turn], set())
    assert "is missing" in problem_of({**turn, "content": None}).problem


def test_keys_go_along_with_the_role_that_has_them_and_others_are_counted():
    assistant = {"role": "assistant", "content": "a", "reasoning_content": "b", "thinking": "c", "name": "Bo"}
    messages, ignored = read(assistant, {"role": "user", "content": "d", "reasoning_content": "e", "tool_call_id": "1"})
    assert messages[0] == {"role": "assistant", "content": "a", "reasoning_content": "b", "thinking": "c"}
    assert messages[1] == {"role": "user", "content": "d"}
    assert ignored == {"name", "reasoning_content", "tool_call_id"}


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        [{**CALL, "id": None, "type": None, "function": {**CALL["function"], "day": None}}],
        [{"name": "look", "arguments": {"at": "sky", "day": None}}],
        '[{"function": {"name": "look", "arguments": "{\\"at\\": \\"sky\\"}"}}]',
        ['{"name": "look", "arguments": {"at": "sky"}}'],
    ],
)
def test_tool_calls_in_one_form(calls):
    (message,), _ = read({"role": "assistant", "content": None, "tool_calls": calls})
    assert message["tool_calls"] == [CALL]


def test_function_call_of_old_is_one_tool_call():
    (message,), ignored = read({"role": "assistant", "content": None, "function_call": CALL["function"]})
    assert (message["tool_calls"], ignored) == ([CALL], set())


def test_nulls_that_json_states_stay():
    calls = [{"id": "7", "function": {"name": "look", "arguments": '{"at": null}'}}, {"name": "go", "arguments": ""}]
    (message,), _ = read({"role": "assistant", "tool_calls": calls})
    assert message["tool_calls"] == [
        {"id": "7", "type": "function", "function": {"name": "look", "arguments": {"at": None}}},
        {"type": "function", "function": {"name": "go", "arguments": {}}},
    ]


DEEP = "[" * 100 + "]" * 100


@pytest.mark.parametrize(
    ("turn", "problem"),
    [
        ({"from": "narrator", "value": "a"}, "turn 0 is from an unknown sender"),
        ({"from": ["gpt"], "value": "a"}, "turn 0 is from an unknown sender"),
        ({"from": "gpt", "value": None}, "content of turn 0 is missing"),
        ({"from": "gpt", "value": "a", "content": "b"}, "turn 0 has from and content"),
        ({"from": "function_call", "value": "look(sky)"}, "function_call of turn 0 is text, but no JSON"),
        ({"from": "function_call", "value": '{"a": 1}'}, "tool_calls of turn 0 item 0 has no name"),
        ({"from": "function_call", "value": None}, "content of turn 0 is missing"),
        ({"role": "human", "content": "a"}, "unknown role"),
        ({"role": ["user"], "content": "a"}, "unknown role"),
        ({"role": "user", "content": {"a": 1}}, "content of turn 0 is dict"),
        ({"role": "user", "content": [{"type": "audio", "audio": "x"}]}, "part 0 has an unknown type"),
        ({"role": "user", "content": [{"type": "text"}]}, "part 0 has no text"),
        ({"role": "user", "content": ["a"]}, "part 0 is str"),
        ({"role": "user", "content": [{"type": "text", "text": "\x00"}]}, "NUL"),
        ({"role": "user", "content": "a", "video": "x.mp4"}, "video, not built yet"),
        ({"role": "assistant", "content": "a", "thinking": "\ud800"}, "thinking of turn 0 has a lone surrogate"),
        ({"role": "assistant", "content": "a", "reasoning": 5}, "reasoning of turn 0 is int"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "tool_calls, but is no assistant's"),
        ({"role": "assistant", "tool_calls": [CALL], "function_call": CALL}, "tool_calls and function_call"),
        ({"role": "assistant", "tool_calls": CALL}, "tool_calls of turn 0 is dict, not a list"),
        ({"role": "assistant", "tool_calls": "look"}, "tool_calls of turn 0 is text, but no JSON"),
        ({"role": "assistant", "tool_calls": "[]"}, "tool_calls of turn 0 is empty"),
        ({"role": "assistant", "tool_calls": [None]}, "item 0 is NoneType"),
        ({"role": "assistant", "tool_calls": [{"function": "look"}]}, "item 0 has no function"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": ""}}]}, "item 0 has no name"),
        ({"role": "assistant", "tool_calls": [{"name": "look", "arguments": 5}]}, "are int, not a mapping"),
        ({"role": "assistant", "tool_calls": [{"name": "look", "arguments": "sky"}]}, "is text, but no JSON"),
        ({"role": "assistant", "tool_calls": [{"name": "look", "arguments": "[1]"}]}, "are list, not a mapping"),
        ({"role": "assistant", "tool_calls": [{"name": "look", "arguments": {"a": float("nan")}}]}, "not finite"),
        ({"role": "assistant", "tool_calls": [{"name": "look", "arguments": '{"a": NaN}'}]}, "NaN is no JSON number"),
        ({"role": "assistant", "tool_calls": [{"name": "look", "arguments": {"a": b"x"}}]}, "bytes"),
        ({"role": "assistant", "tool_calls": [{"name": "look", "arguments": {"a\x00": 1}}]}, "NUL"),
        ({"role": "assistant", "tool_calls": [{"name": "look", "arguments": {5: 1}}]}, "a key that is no text"),
        ({"role": "assistant", "tool_calls": DEEP}, "more than 64 levels"),
        ({"role": "assistant", "tool_calls": "[" * 100_000}, "is text, but no JSON"),
    ],
)
def test_bad_turns_are_named(turn, problem):
    assert problem in problem_of(turn).problem


def test_mapping_of_lists_of_different_lengths():
    with pytest.raises(RowProblem, match="different lengths"):
        read_messages("prompt", {"role": ["user", "assistant"], "content": ["a"]}, set())


TEXT_TYPES = {"role": Value("string"), "content": Value("large_string")}
PARTS = {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
FEATURES = {
    "list": List(TEXT_TYPES),
    "large list": LargeList(TEXT_TYPES),
    "fixed list": List(TEXT_TYPES, length=1),
    "lists in a mapping": {key: List(value) for key, value in TEXT_TYPES.items()},
    "parts": List(PARTS),
    "null beside it": List({**TEXT_TYPES, "name": Value("null"), "tool_calls": List(Value("null"))}),
    "JSON": Json(),
}


@pytest.mark.parametrize("kind", FEATURES)
def test_whatever_datasets_delivers_is_the_same_row(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    feature = FEATURES[kind]

    def stored(role, content):
        turn = {"role": role, "content": [{"type": "text", "text": content}] if kind == "parts" else content}
        return {key: [value] for key, value in turn.items()} if kind == "lists in a mapping" else [turn]

    row = {"prompt": stored("user", "a"), "chosen": stored("assistant", "b"), "rejected": stored("assistant", "c")}
    cells = {name: [json.dumps(value) if kind == "JSON" else value] for name, value in row.items()}
    features = Features({**dict.fromkeys(row, feature), "tools": List(Value("null")), "system": Value("null")})
    dataset = Dataset.from_dict({**cells, "tools": [None], "system": [None]}, features=features)
    prepared, report = prepare_preferences(dataset, make_tokenizer(), truncation=TruncationPolicy())
    assert make_tokenizer().decode(prepared[0]["prompt_input_ids"] + prepared[0]["chosen_input_ids"]) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"
    )
    assert report.ignored_columns == ("system",)


def test_tools_of_different_parameters_in_one_table(tmp_path, monkeypatch):
    """The table gives each tool and each call the keys of all, as null; templates see each row's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    template = "{{ tools | tojson }}{% for m in messages %}{{ m.tool_calls | tojson if m.tool_calls }}{{ m.content }}"
    template += "<|im_end|>{% endfor %}"

    def row(key):
        call = {"type": "function", "function": {"name": "f", "arguments": {key: "x"}}}
        return {
            "prompt": [{"role": "user", "content": "a"}],
            "chosen": [{"role": "assistant", "content": None, "tool_calls": [call]}],
            "rejected": [{"role": "assistant", "content": "b"}],
            "tools": [{"name": "f", "parameters": {"properties": {key: {"type": "string"}}}}],
        }

    dataset = load_rows([row("at"), {**row("day"), "tools": None}])
    assert dataset[0]["chosen"][0]["tool_calls"][0]["function"]["arguments"] == {"at": "x", "day": None}
    tokenizer = make_tokenizer(template)
    prepared, _ = prepare_preferences(dataset, tokenizer, truncation=TruncationPolicy())
    texts = [tokenizer.decode(row["prompt_input_ids"] + row["chosen_input_ids"]) for row in prepared]
    assert '"properties": {"at": {"type": "string"}}' in texts[0]
    assert '"arguments": {"at": "x"}' in texts[0]
    assert "null" in texts[1].split("a<|im_end|>")[0]
    assert '"arguments": {"day": "x"}' in texts[1]


def test_a_system_turn_may_say_nothing():
    """So templates are told that write a system turn of their own; without its content it is a fault all the same."""
    system = {"role": "system", "content": ""}
    assert read(system, {"role": "user", "content": "a"})[0] == [system, {"role": "user", "content": "a"}]
    assert "is missing" in problem_of({"role": "system", "content": None}).problem
    assert "is empty" in problem_of({"role": "user", "content": ""}).problem


@pytest.mark.parametrize("value", ['[{"role": "user", "content": "a"}]', 5, {"turns": []}])
def test_what_is_no_list_of_messages_is_named(value):
    with pytest.raises(RowProblem, match=f"is {type(value).__name__}, not a list of messages"):
        read_messages("messages", value, set())
