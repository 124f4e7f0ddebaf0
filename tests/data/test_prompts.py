"""A data set of prompts: what is tokenised, what is kept for the reward functions, what is refused and how."""

from __future__ import annotations

import pytest
from datasets import Dataset

from burnish.data.errors import DataError
from burnish.data.prompt_rows import RESERVED_COLUMNS
from burnish.data.prompts import prepare_prompts
from conftest import make_tokenizer

TEMPLATE = (
    "{% if tools %}[{% for tool in tools %}{{ tool['function']['name'] }}{% endfor %}]{% endif %}"
    "{{ mode | default('plain') }}:{% for m in messages %}{{ m['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def prepare(rows: list[dict], template: str | None = None, **settings):
    tokenizer = make_tokenizer() if template is None else make_tokenizer(template)
    prepared, report = prepare_prompts(Dataset.from_list(rows), tokenizer, **settings)
    return [tokenizer.decode(row["prompt_input_ids"]) for row in prepared], prepared, report


def test_text_is_continued_as_it_is():
    texts, prepared, _ = prepare([{"prompt": "Sky?"}, {"prompt": "é"}])
    assert texts == ["Sky?", "é"]
    assert [len(row["prompt_input_ids"]) for row in prepared] == [4, 2]  # bytes


def test_messages_go_through_the_template_with_the_header_of_the_answer():
    texts, _, _ = prepare([{"prompt": user("Sky?")}])
    assert texts == ["<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\n"]


def test_tools_are_given_to_the_template():
    texts, _, _ = prepare([{"prompt": user("1+1"), "tools": [TOOL]}], TEMPLATE)
    assert texts == ["[add]plain:1+1;>"]


def test_template_variables_of_the_row_come_before_those_of_the_config():
    rows = [
        {"prompt": user("a"), "chat_template_kwargs": {"mode": "own"}},
        {"prompt": user("b"), "chat_template_kwargs": None},
    ]
    texts, _, _ = prepare(rows, TEMPLATE, template_kwargs={"mode": "config"})
    assert texts == ["own:a;>", "config:b;>"]


@pytest.mark.parametrize(
    ("column", "value"), [("tools", [TOOL]), ("chat_template_kwargs", {"mode": "own"})], ids=["tools", "variables"]
)
def test_a_text_prompt_with_something_for_a_template_is_refused(column, value):
    with pytest.raises(DataError, match=rf"row 0, column '{column}': is read by chat templates only"):
        prepare([{"prompt": "a", column: value}])


def test_a_beginning_of_sequence_token_stands_once():
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    tokenizer._tokenizer.post_processor = _beginning_with("<|im_start|>", tokenizer.bos_token_id)
    prepared, _ = prepare_prompts(Dataset.from_list([{"prompt": "a"}, {"prompt": "<|im_start|>a"}]), tokenizer)
    beginning = tokenizer.bos_token_id
    assert [row["prompt_input_ids"].count(beginning) for row in prepared] == [1, 1]
    assert all(row["prompt_input_ids"][0] == beginning for row in prepared)


def _beginning_with(token: str, token_id: int):
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single=f"{token} $A", special_tokens=[(token, token_id)])


def test_other_columns_are_kept_and_named():
    rows = [{"prompt": "a", "answer": "4", "level": 2, "notes": {"by": [1, 2]}}]
    _, prepared, report = prepare(rows)
    assert {name: prepared[0][name] for name in ("answer", "level", "notes")} == {
        "answer": "4",
        "level": 2,
        "notes": {"by": [1, 2]},
    }
    assert report.columns == ("answer", "level", "notes")
    assert "  columns for the reward functions: answer, level, notes" in report.lines()


def test_columns_of_an_earlier_preparation_are_made_anew():
    _, prepared, _ = prepare([{"prompt": "ab", "answer": "4"}])
    again, report = prepare_prompts(prepared, make_tokenizer(), max_prompt_length=1)
    assert again.column_names.count("row_id") == again.column_names.count("prompt_input_ids") == 1
    assert len(again[0]["prompt_input_ids"]) == 1
    assert report.columns == ("answer",)


@pytest.mark.parametrize("column", RESERVED_COLUMNS)
def test_names_of_arguments_are_refused_as_columns(column):
    with pytest.raises(DataError) as refused:
        prepare([{"prompt": "a", column: "b"}])
    assert f"the column {column!r} has the name of an argument that reward functions get" in str(refused.value)
    assert f"dataset.rename_column({column!r}, 'reference_{column}')" in str(refused.value)


def test_a_missing_column_is_named_with_the_closest_one():
    with pytest.raises(DataError, match=r"(?s)no column 'prompt', did you mean 'promt'\?.*It has: promt, answer"):
        prepare([{"promt": "a", "answer": "b"}])


def test_an_empty_set_is_refused():
    with pytest.raises(DataError, match="held-out: the data set has no rows"):
        prepare_prompts(Dataset.from_dict({"prompt": []}), make_tokenizer(), name="held-out")


def test_images_are_refused_by_name():
    with pytest.raises(DataError, match=r"rollouts with images are not built yet: .*'image'"):
        prepare([{"prompt": "a", "image": "x.png"}])


ROWS_WITH_FAULTS = [
    {"prompt": user("fine")},
    {"prompt": None},
    {"prompt": [*user("Sky?"), {"role": "assistant", "content": "Blue."}]},
    {"prompt": user("also fine")},
]


def test_bad_rows_are_all_named():
    with pytest.raises(DataError) as refused:
        prepare(ROWS_WITH_FAULTS)
    message = str(refused.value)
    assert message.startswith("train: 2 of 4 rows cannot be trained on:")
    assert "row 1, column 'prompt'" in message
    assert "row 2, column 'prompt': ends with an assistant turn" in message
    assert "Remove the last turn: it is what the model is to write." in message
    assert len(message.splitlines()) <= 12


def test_bad_rows_are_dropped_counted_and_keep_their_numbers():
    texts, prepared, report = prepare(ROWS_WITH_FAULTS, on_bad_row="drop")
    assert prepared["row_id"][:] == [0, 3]
    assert ["also fine" in text for text in texts] == [False, True]
    assert (report.num_rows, report.num_dropped) == (2, 2)
    assert [bad.row for bad in report.bad_rows] == [1, 2]
    assert report.lines()[0].startswith("train: 2 prompts, 2 bad rows dropped; fingerprint ")
    assert sum(line.startswith("  dropped row ") for line in report.lines()) == 2


def test_dropping_every_row_is_an_error():
    with pytest.raises(DataError, match="1 of 1 rows"):
        prepare([{"prompt": None}], on_bad_row="drop")


@pytest.mark.parametrize("prompt", ["", [], 7], ids=["no text", "no message", "a number"])
def test_what_is_no_prompt_names_its_row(prompt):
    with pytest.raises(DataError, match="row 0, column 'prompt'"):
        prepare([{"prompt": prompt}])


def test_a_long_prompt_keeps_its_end_and_is_counted():
    """Five, two and three bytes with a limit of two: 3 + 0 + 1 tokens are lost, of two prompts."""
    texts, _, report = prepare([{"prompt": "abcde"}, {"prompt": "xy"}, {"prompt": "123"}], max_prompt_length=2)
    assert texts == ["de", "xy", "23"]
    assert (report.num_prompts_cut, report.num_prompt_tokens_cut) == (2, 4)
    assert (report.mean_length, report.max_length) == (2.0, 2)
    assert "  2 prompts lost their first 4 tokens to max_prompt_length" in report.lines()


def test_keys_of_messages_that_nothing_reads_are_told():
    _, _, report = prepare([{"prompt": [{"role": "user", "content": "a", "mood": "good"}]}])
    assert report.ignored_keys == ("mood",)
    assert "  not read: messages.mood" in report.lines()


def test_the_fingerprint_is_that_of_ids_and_columns():
    def fingerprint(rows, **settings):
        return prepare(rows, **settings)[2].fingerprint

    rows = [{"prompt": "ab", "answer": "4"}, {"prompt": "cd", "answer": "5"}]
    own = fingerprint(rows)
    assert own == fingerprint([dict(row) for row in rows])
    others = [
        fingerprint([rows[0], {**rows[1], "answer": "6"}]),
        fingerprint(rows[::-1]),
        fingerprint([rows[0], {**rows[1], "prompt": "ce"}]),
        fingerprint(rows, max_prompt_length=1),
    ]
    assert len({own, *others}) == 5


def test_the_report_is_plain_json():
    import json

    _, _, report = prepare(ROWS_WITH_FAULTS, on_bad_row="drop")
    assert json.loads(json.dumps(report.as_dict()))["num_dropped"] == 2
