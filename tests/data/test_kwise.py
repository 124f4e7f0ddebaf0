"""Rows of several graded completions, from the data set to the parcel."""

import math

import datasets
import pytest
from datasets import Dataset, disable_progress_bars

from burnish.data.collate import PreferenceCollator
from burnish.data.errors import DataError, RowProblem
from burnish.data.kwise import first_pair, naming_completions, preferred_pairs, read_completions, read_kwise_numbers
from burnish.data.lint import lint_preferences
from burnish.data.sources import load_rows
from burnish.data.tokenize import prepare_preferences
from burnish.data.truncate import TruncationPolicy
from burnish.models.vision import tokenizer_of
from conftest import make_tokenizer
from vision_models import make_image, make_processor

disable_progress_bars()
ROW = {"prompt": "Sky?", "completions": [" red", " blue", " green"], "scores": [1, 5, 1]}
USER = {"role": "user", "content": "Sky?"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def prepare(rows, tokenizer=None, on_bad_row="error", processor=None, **limits):
    return prepare_preferences(
        rows if isinstance(rows, Dataset) else load_rows(rows),
        tokenizer or make_tokenizer(),
        truncation=TruncationPolicy(**limits),
        on_bad_row=on_bad_row,
        processor=processor,
    )


def ids_of(text):
    return make_tokenizer()(text, add_special_tokens=False)["input_ids"]


def assistant(text):
    return {"role": "assistant", "content": text}


def test_text_row_token_for_token():
    """Of 3 pairs one is of equal scores; the better answer (6 trained tokens) is longer than " red" (5), not " green"
    (7). The scores 1, 5, 1 have the mean 7/3."""
    prepared, report = prepare([ROW])
    assert prepared[0] == {
        "row_id": 0,
        "prompt_input_ids": ids_of("Sky?"),
        "completion_input_ids": [[*ids_of(text), 2] for text in ROW["completions"]],
        "completion_loss_mask": [[True] * 5, [True] * 6, [True] * 7],
        "scores": [1.0, 5.0, 1.0],
        "truncated": [False] * 3,
    }
    assert {name: count for name, count in report.counts.items() if count} == {"num_equal_scores": 1}
    assert (report.num_rows, report.num_pairs, report.chosen_longer_share) == (1, 2, 0.5)
    assert report.mean_lengths == {"prompt_length": 4, "completion_length": 6}
    assert report.max_lengths == {"prompt_length": 4, "completion_length": 7}
    assert report.scores == {"mean": pytest.approx(7 / 3), "min": 1, "max": 5, "mean_difference": 4}
    assert "1 rows, 2 pairs" in report.lines()[0]
    assert "preferred minus other 4" in report.lines()[2]


def test_parcel_of_a_prepared_row():
    prepared, _ = prepare([{**ROW, "weight": 3.0}])
    batch = PreferenceCollator(0)(prepared.to_list())
    assert batch.pairs.tolist() == [[1, 0], [1, 2]]
    assert batch.margin.tolist() == [4.0, 4.0]
    assert batch.weight.tolist() == [3.0, 3.0]
    assert batch.prompt_index.tolist() == [0, 0, 0]
    assert batch.completion_mask.sum(1).tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    "completions",
    [
        [assistant("red"), assistant("blue"), assistant("green")],
        [[assistant("red")], [assistant("blue")], [assistant("green")]],
        ["red", "blue", "green"],
    ],
)
def test_messages_become_the_tokens_of_pair_rows(completions):
    """Every two of the three are what a pair row of them becomes, as text behind a prompt of messages too."""
    prepared, report = prepare([{"prompt": [USER], "completions": completions, "ranks": [3, 1, 2]}])
    row = prepared[0]
    assert (row["ranks"], report.num_pairs, report.scores) == ([3, 1, 2], 3, {})
    for first, second in [(0, 1), (2, 0)]:
        pair = {"prompt": [USER], "chosen": completions[first], "rejected": completions[second]}
        expected = prepare([pair])[0][0]
        assert row["prompt_input_ids"] == expected["prompt_input_ids"]
        for place, answer in ((first, "chosen"), (second, "rejected")):
            assert row["completion_input_ids"][place] == expected[f"{answer}_input_ids"]
            assert row["completion_loss_mask"][place] == expected[f"{answer}_loss_mask"]


def test_rows_of_different_numbers_of_completions():
    rows = [ROW, {"prompt": "Sea?", "completions": [" wet", " dry"], "scores": [0.5, -0.5]}]
    prepared, report = prepare(rows)
    batch = PreferenceCollator(0)(prepared.to_list())
    assert batch.pairs.tolist() == [[1, 0], [1, 2], [3, 4]]
    assert batch.columns["score"].tolist() == [1.0, 5.0, 1.0, 0.5, -0.5]
    assert report.num_pairs == 3


def test_the_cut_of_the_prompt_is_shared():
    """`keep_end` of 9 tokens: the longest answer has 7 of them, so 2 of the prompt are left; without it, 5 are cut."""
    prepared, report = prepare([ROW], max_length=9, truncation_mode="keep_end")
    assert prepared[0]["prompt_input_ids"] == ids_of("y?")
    assert list(map(len, prepared[0]["completion_input_ids"])) == [5, 6, 7]
    assert prepared[0]["truncated"] == [True] * 3
    assert (report.counts["num_prompts_cut"], report.counts["num_completions_cut"]) == (1, 0)
    prepared, report = prepare([ROW], max_length=9)
    assert list(map(len, prepared[0]["completion_input_ids"])) == [5, 5, 5]
    assert prepared[0]["truncated"] == [False, True, True]
    assert report.counts["num_completion_tokens_cut"] == 1 + 2
    assert report.truncated_share == 1.0


def test_equal_completions_of_equal_score_are_allowed():
    prepared, report = prepare([{**ROW, "completions": [" red", " blue", " red"]}])
    assert prepared[0]["completion_input_ids"][0] == prepared[0]["completion_input_ids"][2]
    assert report.counts["num_equal_scores"] == 1


def test_prepared_rows_pass_through_unchanged():
    prepared, report = prepare(
        [{**ROW, "weight": 2.0}, {**ROW, "weight": 1.0, "completions": ["a", "b", "c"]}], max_length=9
    )
    again, second = prepare(prepared, max_length=9)
    assert again[:] == prepared[:]
    assert second.fingerprint == report.fingerprint
    assert prepare([ROW])[1].fingerprint != prepare([{**ROW, "scores": [1, 5, 2]}])[1].fingerprint


def test_token_ids_with_reference_log_probs_are_cut_together():
    row = {
        "prompt_input_ids": [5],
        "completion_input_ids": [[6, 7, 2], [8, 2]],
        "scores": [1, 0],
        "ref_completion_logps": [-3.0, -1.0],
        "ref_completion_token_logps": [[-1.0, -1.5, -0.5], [-0.25, -0.75]],
    }
    prepared, report = prepare([row], max_completion_length=2)
    assert prepared[0]["completion_loss_mask"] == [[True, True], [True, True]]
    assert prepared[0]["ref_completion_token_logps"] == [[-1.0, -1.5], [-0.25, -0.75]]
    assert prepared[0]["truncated"] == [True, False]
    assert report.counts["num_ref_logps_of_cut_rows"] == 1


def test_images_stand_in_the_shared_prompt():
    processor = make_processor("smolvlm")
    tokenizer = tokenizer_of(processor)
    image, parts = make_image(8, 8), [{"type": "image"}, {"type": "text", "text": "What?"}]
    prompt = [{"role": "user", "content": parts}]
    row = {"prompt": prompt, "completions": ["cat", "dog", "cow"], "scores": [3, 2, 1], "images": [image]}
    prepared, _ = prepare([row], tokenizer, processor=processor)
    pair = {"prompt": prompt, "chosen": "cow", "rejected": "dog", "images": [image]}
    expected, _ = prepare([pair], tokenizer, processor=processor)
    assert prepared[0]["prompt_input_ids"] == expected[0]["prompt_input_ids"]
    assert prepared[0]["image_digests"] == expected[0]["image_digests"]
    again, _ = prepare(prepared, tokenizer, processor=processor)
    assert again[0]["completion_input_ids"] == prepared[0]["completion_input_ids"]
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    broken = {**prepared[0], "completion_input_ids": [[9], [8], [7, image_token]], "completion_loss_mask": None}
    with pytest.raises(DataError, match=r"column 'completion_input_ids\[2\]': has image tokens"):
        prepare([broken], tokenizer, processor=processor)


BAD_ROWS = [
    ({"completions": None}, "completions", "is NoneType, not a list"),
    ({"completions": []}, "completions", "has 0 items"),
    ({"completions": [" red"], "scores": [1]}, "completions", "has 1 items"),
    ({"completions": [" red"] * 3}, "completions", "are all the same"),
    ({"completions": [" red", " blue", None]}, "completions[2]", "is missing"),
    ({"completions": [" red", " ", " blue"]}, "completions[1]", "is only white space"),
    ({"prompt": None}, "prompt", "is missing"),
    ({"prompt": " "}, "prompt", "is only white space"),
    ({"scores": None}, "scores", "is NoneType, not a list"),
    ({"scores": [1, 2]}, "scores", "has 2 numbers for 3 completions"),
    ({"scores": [1, 2, None]}, "scores", "item 2 is not a number"),
    ({"scores": [1, math.inf, 0]}, "scores", "item 1 is not finite"),
    ({"scores": [4, 4, 4]}, "scores", "are all 4"),
    (
        {"completions": [" red", " blue", " red"], "scores": [1, 5, 2]},
        "completions[0]",
        "same tokens as completions[2]",
    ),
]


@pytest.mark.parametrize(("change", "column", "problem"), BAD_ROWS)
def test_bad_rows_are_named(change, column, problem):
    with pytest.raises(DataError) as caught:
        prepare([ROW, {**ROW, **change}])
    assert f"row 1, column {column!r}" in str(caught.value)
    assert problem in str(caught.value)
    prepared, report = prepare([ROW, {**ROW, **change}], on_bad_row="drop")
    assert (len(prepared), report.num_dropped, report.dropped_share) == (1, 1, 0.5)


@pytest.mark.parametrize("rank", [0, -1, 1.5])
def test_bad_ranks_are_named(rank):
    with pytest.raises(RowProblem, match="item 1 is no rank"):
        read_kwise_numbers({"ranks": [1, rank, 3]}, 3)
    assert read_kwise_numbers({"ranks": [1, 2.0, 2]}, 3) == {"ranks": [1, 2, 2]}


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"completion_input_ids": [[6, 2]]}, "completion_input_ids"),
        ({"completion_input_ids": [[6, 2], [999]]}, "completion_input_ids[1]"),
        ({"completion_input_ids": [[6, 2], None]}, "completion_input_ids[1]"),
        ({"completion_loss_mask": [[True, True]]}, "completion_loss_mask"),
        ({"completion_loss_mask": [[True, True], [True, True]]}, "completion_loss_mask[1]"),
        ({"completion_loss_mask": [[True, True], [False]]}, "completion_input_ids[1]"),
        ({"truncated": [True]}, "truncated"),
        ({"ref_completion_token_logps": [[-1.0, -1.0]]}, "ref_completion_token_logps"),
        ({"ref_completion_token_logps": [[-1.0, -1.0], []]}, "ref_completion_token_logps[1]"),
        ({"ref_completion_logps": [-1.0]}, "ref_completion_logps"),
        ({"scores": [1, 1]}, "scores"),
    ],
)
def test_bad_token_ids_are_named(change, column):
    row = {
        "prompt_input_ids": [5],
        "completion_input_ids": [[6, 2], [7]],
        "completion_loss_mask": [[True, True], [True]],
        "truncated": [False, False],
        "scores": [1, 0],
        "ref_completion_token_logps": [[-1.0, -1.0], [-1.0]],
        "ref_completion_logps": [-2.0, -1.0],
    }
    with pytest.raises(DataError) as caught:
        prepare([row, {**row, **change}])
    assert f"row 1, column {column!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "completions": ["b", "c"]}, "several completions in each row, and no scores"),
        ({"prompt": "a", "completions": ["b", "c"], "score": [1, 2]}, "no scores, did you mean 'score'"),
        ({**ROW, "ranks": [1, 2, 3]}, "both scores and ranks"),
        ({"completions": ["b", "c"], "scores": [1, 2]}, "but no column 'prompt'"),
        ({**ROW, "chosen": "b", "rejected": "c"}, "has chosen and rejected, and graded completions too"),
        (
            {
                "prompt_input_ids": [1],
                "completion_input_ids": [[1]],
                "chosen_input_ids": [1],
                "rejected_input_ids": [2],
            },
            "has chosen_input_ids, and completion_input_ids too",
        ),
    ],
)
def test_columns_that_do_not_fit_are_one_error(row, words):
    with pytest.raises(DataError, match=words) as caught:
        prepare([row])
    assert len(str(caught.value).splitlines()) <= 12


def test_completions_beside_chosen_and_rejected_are_not_read():
    row = {"prompt": "a", "completions": ["b", "c", "d"], "chosen": "b", "rejected": "c"}
    prepared, report = prepare([row])
    assert "chosen_input_ids" in prepared.column_names
    assert report.ignored_columns == ("completions",)


def test_completions_that_leave_other_prompts():
    """The text prompt is the user's turn that the completions begin with, but the last two share an answer more."""
    begin = [USER, assistant("It depends."), {"role": "user", "content": "On?"}]
    completions = [[USER, assistant(word)] for word in ("red", "blue")]
    completions += [[*begin, assistant(word)] for word in ("rain", "snow")]
    with pytest.raises(DataError, match=r"'completions\[2\]': leaves another prompt than completions\[0\]"):
        prepare([{"prompt": "Sky?", "completions": completions, "scores": [1, 2, 3, 4]}])


def test_numbers_of_pair_rows_are_not_read():
    _, report = prepare([{**ROW, "tie": True, "margin": 1.0, "ref_logps": [1.0, 2.0, 3.0]}])
    assert report.ignored_columns == ("margin", "ref_logps", "tie")


def test_problems_are_given_the_names_of_completions():
    with pytest.raises(RowProblem) as caught, naming_completions(4, 7):
        raise RowProblem("rejected", "begins with other turns than chosen", value="x", fix="See chosen_input_ids.")
    assert caught.value.column == "completions[7]"
    assert caught.value.problem == "begins with other turns than completions[4]"
    assert caught.value.fix == "See completion_input_ids[4]."
    assert caught.value.value == "'x'"


def test_the_first_pair_is_of_different_completions():
    row = {"prompt": "a", "completions": ["b", "b", "c"], "scores": [1, 1, 2]}
    assert first_pair(row) == {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert read_completions(row) == ["b", "b", "c"]


def test_pairs_of_many_grades():
    """K different grades are K (K - 1) / 2 pairs, the better one first."""
    pairs = preferred_pairs(range(8))
    assert len(pairs) == 28
    assert all(better > worse for better, worse in pairs)


def test_lint_looks_at_every_pair():
    """Row 1 has row 0's pair " blue" over " red" again; row 2 has it the other way round; row 3 says nothing new."""
    rows = [
        ROW,
        {"prompt": "Sky?", "completions": [" blue", " red"], "scores": [2, 1]},
        {"prompt": "Sky?", "completions": [" blue", " red", " pink"], "scores": [1, 2, 3]},
        {"prompt": "Sea?", "completions": [" blue", " red", " red"], "scores": [9, 1, 1]},
    ]
    train, _ = prepare(rows)
    held_out, _ = prepare(rows[3:])
    findings = {finding.code: finding.rows for finding in lint_preferences(train, {"eval": held_out})}
    assert findings == {"duplicate_rows": (1,), "contradicting_pairs": (2,), "eval_overlap": (0,)}
