"""Rows of single answers: which column holds the answer, what is trained, and answers to other prompts."""

from __future__ import annotations

import pytest
from datasets import Dataset

from burnish.data.answers import answer_column, read_judged, read_supervised
from burnish.data.check import RowRules, check_preferences
from burnish.data.errors import DataError, RowProblem
from burnish.data.formats import TextPreference
from burnish.data.kinds import JUDGED, ROW_KINDS, SUPERVISED
from burnish.data.lint import lint_labels, lint_preferences
from burnish.data.mismatch import partners, with_mismatched
from burnish.data.sources import load_rows
from burnish.data.tokenize import prepare_preferences
from burnish.data.truncate import TruncationPolicy
from conftest import make_rows, make_tokenizer

ASKED, BLUE = {"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "blue"}


def prepare(rows, kind, **limits):
    return prepare_preferences(load_rows(rows), make_tokenizer(), truncation=TruncationPolicy(**limits), kind=kind)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, BLUE], "prompt": "not read", "text": "nor this"},
        {"messages": None, "conversations": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "blue"}]},
        {"prompt": [ASKED], "completion": [BLUE]},
        {"prompt": "Sky?", "completion": [BLUE]},
        {"prompt": [ASKED], "completion": "blue"},
        {"prompt": "Sky?", "chosen": [ASKED, BLUE], "rejected": [ASKED, ASKED]},
        {"chosen": [ASKED, BLUE]},
    ],
    ids=["messages", "conversations", "completion", "text prompt", "text answer", "repeated prompt", "chosen"],
)
def test_one_conversation_in_many_forms(row):
    read = read_supervised(row)
    assert [dict(turn) for turn in (*read.prompt, *read.chosen)] == [ASKED, BLUE]


def test_texts():
    assert read_supervised({"text": "Hi", "chosen": "no"}) == TextPreference("", "Hi", "")
    assert read_supervised({"prompt": "a", "completion": "b"}) == TextPreference("a", "b", "")
    assert read_supervised({"chosen": "all of it"}) == TextPreference("", "all of it", "")
    assert answer_column({"completion": None, "text": "x"}) == "text"


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": "a", "completion": ""}, "completion"),
        ({"completion": "b"}, "prompt"),
        ({"messages": [BLUE]}, "messages"),
        ({"messages": [ASKED]}, "messages"),
        ({"text": "x", "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"text": "x", "videos": ["film"]}, "videos"),
    ],
)
def test_bad_rows_name_their_column(row, column):
    with pytest.raises(RowProblem) as problem:
        read_supervised(row)
    assert problem.value.column == column


def test_judged_rows():
    assert read_judged({"prompt": "a", "completion": "b", "label": 0}) == (TextPreference("a", "b", ""), [False])
    assert read_judged({"prompt": "a", "chosen": "b", "rejected": "c"}) == (
        TextPreference("a", "b", "c"),
        [True, False],
    )


def test_prepared_rows_have_labels_and_no_pairs():
    rows, report = prepare([{"prompt": "Sky?", "completion": " blue", "label": True, "note": "x"}], JUDGED)
    assert rows[0]["labels"] == [True]
    assert rows[0]["completion_loss_mask"] == [[True] * 6]
    assert report.num_pairs == 0
    assert report.ignored_columns == ("note",)
    assert "pairs" not in "".join(report.lines())


def test_a_long_row_loses_its_end_and_is_counted():
    rows, report = prepare(
        [{"prompt": "Sky?", "completion": " blue"}, {"text": "0123456789"}], SUPERVISED, max_length=7
    )
    assert [
        len(p) + len(c[0]) for p, c in zip(rows["prompt_input_ids"], rows["completion_input_ids"], strict=True)
    ] == [
        7,
        7,
    ]
    assert report.counts["num_completions_cut"] == 2


def test_answers_to_other_prompts():
    """Every row takes from one with another prompt, each row is taken from once, and the seed decides."""
    prompts = [[number] for number in range(20)]
    found = partners(prompts, seed=3, name="train")
    assert sorted(found) == list(range(20))
    assert all(row != partner for row, partner in enumerate(found))
    assert found == partners(prompts, seed=3, name="train") != partners(prompts, seed=4, name="train")


@pytest.mark.parametrize("seed", range(5))
def test_partners_never_share_a_prompt(seed):
    prompts = [[1], [1], [1], [1], [2], [2], [3]]
    assert all(prompts[row] != prompts[partner] for row, partner in enumerate(partners(prompts, seed=seed, name="t")))
    with pytest.raises(DataError, match="all rows have the same prompt"):
        partners([[1], [1]], seed=seed, name="train")


def test_mismatched_answers_stand_behind_the_own_ones_and_fit():
    rows, _ = prepare(make_rows(4), JUDGED)
    joined = with_mismatched(rows, seed=0, max_length=60, name="train")
    answers = {tuple(ids) for row in rows for ids in row["completion_input_ids"]}
    for before, after in zip(rows, joined, strict=True):
        room = 60 - len(after["prompt_input_ids"])
        assert after["completion_input_ids"][:2] == before["completion_input_ids"]
        for ids, mask in zip(after["completion_input_ids"][2:], after["completion_loss_mask"][2:], strict=True):
            assert len(ids) == len(mask) <= room
            assert any(
                tuple(ids) == whole[: len(ids)] for whole in answers - set(map(tuple, before["completion_input_ids"]))
            )
        assert after["truncated"] == [*before["truncated"], False, False]
        assert after["labels"] == [True, False]


@pytest.mark.parametrize(
    ("labels", "weight", "said"),
    [
        ([True, False], 1.0, None),
        ([True, False], 1.3, None),
        ([True, False, False, False], 1.0, "desirable_weight of 3 to 4 with undesirable_weight=1"),
        ([True, False, False, False], 3.5, None),
        ([True, True], 1.0, "nothing to tell apart"),
    ],
)
def test_lint_of_labels(labels, weight, said):
    """With 1 desirable and 3 undesirable answers: 1 x 3 to 4/3 x 3."""
    found = lint_labels(Dataset.from_dict({"labels": [labels]}), desirable_weight=weight, undesirable_weight=1.0)
    assert [said in finding.message for finding in found] == ([] if said is None else [True])


def test_lint_of_answers():
    """A repeated answer, and a prompt that is trained and held out; a text is its own prompt."""
    rows = [{"prompt": "a b", "completion": "c"}, {"prompt": "a b", "completion": "c"}, {"text": "one two"}]
    train, held_out = (prepare(part, SUPERVISED)[0] for part in (rows, [rows[0], {"text": "other"}]))
    found = {finding.code: finding.count for finding in lint_preferences(train, {"eval": held_out})}
    assert found == {"duplicate_rows": 1, "eval_overlap": 1}


@pytest.mark.parametrize("kind", [SUPERVISED, JUDGED])
def test_check_finds_what_preparing_finds(kind):
    good = [{"prompt": "a", "completion": "b", "label": True}]
    bad = [{"prompt": "a", "completion": None, "label": True}, {"prompt": None, "completion": "b", "label": True}]
    rows = Dataset.from_list(good + bad)
    found = check_preferences(rows, range(3), name="rows", rules=RowRules(), kind=kind)
    assert [row.row for row in found.bad_rows] == [1, 2]
    _, report = prepare_preferences(rows, make_tokenizer(), truncation=TruncationPolicy(), kind=kind, on_bad_row="drop")
    assert [(row.row, row.column) for row in report.bad_rows] == [(row.row, row.column) for row in found.bad_rows]
    assert found.num_answers == 1
    assert set(ROW_KINDS) == {"preferences", SUPERVISED, JUDGED}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": "a", "completion": "b", "labels": 1},
            "no column that says which answers are good, did you mean 'lab",
        ),
        ({"prompt": "a", "completions": "b", "label": 1}, "no column with an answer, did you mean 'completions'"),
    ],
)
def test_the_column_that_judged_rows_lack_is_named(row, said):
    with pytest.raises(DataError, match=said):
        prepare([row], JUDGED)
