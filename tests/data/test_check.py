from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from datasets import Dataset

from burnish.data.check import RowCheck, RowRules, check_preferences, estimate_tokens, within
from burnish.data.errors import BadRowsError, DataError
from burnish.data.tokenize import prepare_preferences
from burnish.data.truncate import TruncationPolicy
from conftest import make_rows

USER, SAY = {"role": "user", "content": "q?"}, {"role": "assistant", "content": "yes"}
TEXT = {"prompt": "q: ", "chosen": "a", "rejected": "b"}


def check(rows, **rules):
    return check_preferences(Dataset.from_list(rows), range(len(rows)), name="train", rules=RowRules(**rules))


@pytest.mark.parametrize(
    ("row", "form"),
    [
        (TEXT, "text"),
        ({"chosen": "Sky? blue", "rejected": "Sky? red"}, "text"),
        ({"prompt": [USER], "chosen": [SAY], "rejected": [{**SAY, "content": "no"}]}, "messages"),
        ({"prompt": "q: ", "completions": ["a", "b", "a"], "scores": [1.0, 2.0, 0.0]}, "graded answers"),
        ({"prompt_input_ids": [1, 2], "chosen_input_ids": [3], "rejected_input_ids": [4, 5]}, "token ids"),
    ],
)
def test_forms(row, form):
    found = check([row, row])
    assert (found.forms, found.bad_rows) == ({form: 2}, ())


BAD_TEXT = [
    {**TEXT, "chosen": None},
    {**TEXT, "chosen": ""},
    {**TEXT, "rejected": "a"},
    {**TEXT, "prompt": "q\x00"},
    {**TEXT, "weight": -1.0},
    {**TEXT, "weight": float("nan")},
    {**TEXT, "video": "a.mp4"},
]
BAD_GRADED = [
    {"prompt": "q: ", "completions": ["a"], "scores": [1.0]},
    {"prompt": "q: ", "completions": ["a", "b"], "scores": [1.0, 1.0]},
    {"prompt": "q: ", "completions": ["a", ""], "scores": [1.0, 2.0]},
    {"prompt": None, "completions": ["a", "b"], "scores": [1.0, 2.0]},
]
IDS = {"prompt_input_ids": [1, 2], "chosen_input_ids": [3], "rejected_input_ids": [4, 5]}
BAD_IDS = [{**IDS, "chosen_input_ids": [300]}, {**IDS, "prompt_input_ids": []}, {**IDS, "rejected_input_ids": [3]}]
GOOD_GRADED = {"prompt": "q: ", "completions": ["a", "b"], "scores": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("good", "bad"), [({**TEXT, "weight": 1.0, "video": None}, BAD_TEXT), (GOOD_GRADED, BAD_GRADED), (IDS, BAD_IDS)]
)
def test_bad_rows_are_those_of_training_in_the_same_words(tokenizer, good, bad):
    """Row by row what the trainer's own preparation says, found without the tokenizer."""
    rows = [good, *bad]
    found = check(rows, vocabulary=len(tokenizer))
    assert sum(found.forms.values()) == 1
    with pytest.raises(BadRowsError) as error:
        prepare_preferences(Dataset.from_list(rows), tokenizer, truncation=TruncationPolicy())
    assert list(found.bad_rows) == list(error.value.bad_rows)


def test_rows_are_named_by_their_number_in_the_file():
    rows = Dataset.from_list([TEXT, {**TEXT, "chosen": None}])
    (bad,) = check_preferences(rows, [3, 8], name="train", rules=RowRules()).bad_rows
    assert (bad.row, bad.column, bad.problem) == (8, "chosen", "is missing")


def test_columns_that_are_missing_or_contradict():
    with pytest.raises(DataError, match="no column 'rejected', did you mean 'reject'"):
        check([{"prompt": "a", "chosen": "b", "reject": "c"}])


def test_images_need_a_model_that_reads_them(tmp_path):
    row = {"prompt": [USER], "chosen": [SAY], "rejected": [{**SAY, "content": "no"}], "images": ["gone.png"]}
    (bad,) = check([row], reads_images=False).bad_rows
    assert "has images, but processing_class is a tokenizer" in bad.problem
    (bad,) = check([row], reads_images=True).bad_rows
    assert "cannot be read" in bad.problem


def test_token_ids_are_checked_within_their_lengths():
    (bad,) = check([IDS], truncation=TruncationPolicy(max_length=2)).bad_rows
    assert "no room is left" in bad.problem


def test_lengths_are_estimated_and_exact_for_token_ids():
    found = check([{**TEXT, "prompt": "x" * 41, "chosen": "四个字母"}])
    assert (found.prompt_tokens, found.answer_tokens) == (11, 4)
    assert (check([IDS]).prompt_tokens, check([IDS]).answer_tokens) == (2, 2)
    assert estimate_tokens("") == 0


def test_the_estimate_is_near_the_count_of_a_real_tokenizer_of_words():
    """Within a factor of two on English sentences, at four characters a token."""
    sentences = "The lights of the small harbour could be seen from far away, even in the fog of early spring. " * 3
    assert 0.5 < estimate_tokens(sentences) / (1.25 * len(sentences.split())) < 2


def test_lengths_within_limits():
    found = RowCheck({}, (), 50, 100, 2, False, ())
    assert within(found, TruncationPolicy()) == found
    assert within(found, TruncationPolicy(max_length=120)) == replace(found, answer_tokens=70)
    assert within(found, TruncationPolicy(max_prompt_length=20, max_completion_length=30)) == replace(
        found, prompt_tokens=20, answer_tokens=30
    )
    assert within(found, TruncationPolicy(max_length=40)) == replace(found, prompt_tokens=39, answer_tokens=1)


def test_reference_columns_and_ignored_columns():
    row = {**TEXT, "ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0, "topic": "x"}
    found = check([row])
    assert (found.has_reference, found.ignored_columns) == (True, ("topic",))
    assert check([{**TEXT, "ref_logps": [-1.0, -2.0]}]).has_reference


def test_no_torch_is_imported():
    code = "import sys, burnish.data.check, burnish.data.peek; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_valid_rows_are_not_accused():
    assert check(make_rows(50)).bad_rows == ()
