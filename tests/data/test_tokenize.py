import json

import datasets
import pytest
from datasets import Dataset, disable_progress_bars
from test_encode import merging_tokenizer

from burnish.data.collate import PreferenceCollator
from burnish.data.errors import DataError
from burnish.data.sources import load_rows
from burnish.data.tokenize import prepare_preferences
from burnish.data.truncate import TruncationPolicy
from conftest import make_rows, make_tokenizer

disable_progress_bars()
COLUMNS = [
    "row_id",
    "prompt_input_ids",
    "chosen_input_ids",
    "chosen_loss_mask",
    "rejected_input_ids",
    "rejected_loss_mask",
]
TEXT = {"prompt": "Sky?", "chosen": " blue", "rejected": " red"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def prepare(rows, tokenizer=None, on_bad_row="error", eos_token_ids=(), num_proc=None, **limits):
    dataset = rows if isinstance(rows, Dataset) else load_rows(rows)
    return prepare_preferences(
        dataset,
        tokenizer or make_tokenizer(),
        truncation=TruncationPolicy(**limits),
        on_bad_row=on_bad_row,
        eos_token_ids=eos_token_ids,
        num_proc=num_proc,
    )


def ids_of(text, tokenizer=None):
    return (tokenizer or make_tokenizer())(text, add_special_tokens=False)["input_ids"]


def test_text_row_token_for_token():
    prepared, report = prepare([TEXT])
    assert prepared.column_names == [*COLUMNS, "truncated"]
    assert prepared[0] == {
        "row_id": 0,
        "prompt_input_ids": ids_of("Sky?"),
        "chosen_input_ids": [*ids_of(" blue"), 2],
        "chosen_loss_mask": [True] * 6,
        "rejected_input_ids": [*ids_of(" red"), 2],
        "rejected_loss_mask": [True] * 5,
        "truncated": [False, False],
    }
    assert report.counts == dict.fromkeys(report.counts, 0)


def test_chat_row_token_for_token():
    row = {
        "prompt": [{"role": "user", "content": "a"}],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "cd"}],
    }
    prepared, report = prepare([row])
    assert prepared[0]["prompt_input_ids"] == ids_of("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n")
    assert prepared[0]["chosen_input_ids"] == [*ids_of("b"), 2]
    assert prepared[0]["rejected_input_ids"] == [*ids_of("cd"), 2]
    assert report.counts["num_template_tokens_removed"] == 2
    assert report.counts["num_without_eos"] == 0
    assert report.mean_lengths == {
        "prompt_length": len(prepared[0]["prompt_input_ids"]),
        "chosen_length": 2,
        "rejected_length": 3,
    }
    assert report.chosen_longer_share == 0.0


def test_turns_of_the_user_inside_a_completion_are_counted_as_untrained():
    turns = [("assistant", "b"), ("user", "why"), ("assistant", "c")]
    row = {
        "prompt": [{"role": "user", "content": "a"}],
        "chosen": [{"role": role, "content": content} for role, content in turns],
        "rejected": [{"role": "assistant", "content": "d"}],
    }
    prepared, report = prepare([row])
    between = "\n<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n"
    mask = [True] * 2 + [False] * len(ids_of(between)) + [True] * 2
    assert prepared[0]["chosen_input_ids"] == [*ids_of("b<|im_end|>" + between + "c<|im_end|>")]
    assert prepared[0]["chosen_loss_mask"] == mask
    assert report.counts["num_untrained_tokens"] == len(ids_of(between))


def test_pad_equal_to_eos_keeps_the_eos_trained():
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    prepared, _ = prepare([TEXT], tokenizer)
    batch = PreferenceCollator(tokenizer.pad_token_id)([prepared[0]])
    assert batch.loss_mask.sum(1).tolist() == [6, 5]


def test_chinese_text():
    prepared, _ = prepare([{"prompt": "天空是什么颜色？", "chosen": "蓝色。", "rejected": "红色。"}])
    tokenizer = make_tokenizer()
    assert tokenizer.decode(prepared[0]["prompt_input_ids"]) == "天空是什么颜色？"
    assert tokenizer.decode(prepared[0]["chosen_input_ids"]) == "蓝色。<|im_end|>"
    assert all(prepared[0]["chosen_loss_mask"])


def test_everything_cut_is_counted_and_a_cut_answer_has_no_eos():
    prepared, report = prepare([TEXT], max_length=7, max_prompt_length=3)
    assert prepared[0]["prompt_input_ids"] == ids_of("ky?")
    assert prepared[0]["chosen_input_ids"] == ids_of(" blu")
    assert prepared[0]["rejected_input_ids"] == ids_of(" red")
    assert report.counts["num_prompts_cut"] == report.counts["num_prompt_tokens_cut"] == 1
    assert report.counts["num_completions_cut"] == 2
    assert report.counts["num_completion_tokens_cut"] == 3
    assert report.counts["num_without_eos"] == 0
    assert any("lost their end" in line for line in report.lines())


def test_optional_columns_row_ids_and_ignored_columns():
    row = {
        **TEXT,
        "reference_chosen_logps": -3.0,
        "reference_rejected_logps": -4.0,
        "weight": 2,
        "row_id": 17,
        "id": "x",
    }
    prepared, report = prepare([row])
    assert prepared.column_names == [*COLUMNS, "ref_chosen_logps", "ref_rejected_logps", "weight", "truncated"]
    assert (prepared[0]["row_id"], prepared[0]["ref_chosen_logps"], prepared[0]["weight"]) == (17, -3.0, 2.0)
    assert report.ignored_columns == ("id",)


def test_all_bad_rows_are_named_at_once():
    rows = [TEXT, {**TEXT, "chosen": None}, TEXT, {**TEXT, "rejected": " "}]
    with pytest.raises(DataError, match="2 of 4 rows") as caught:
        prepare(rows)
    assert "row 1, column 'chosen'" in str(caught.value)
    assert "row 3, column 'rejected'" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 12


def test_dropped_rows_are_counted_and_the_others_keep_their_index():
    prepared, report = prepare([{**TEXT, "chosen": None, "weight": 1.0}, {**TEXT, "weight": 1.0}], on_bad_row="drop")
    assert prepared["row_id"][:] == [1]
    assert (report.num_rows, report.num_dropped, report.bad_rows[0].column) == (1, 1, "chosen")


def test_bad_rows_alone_are_an_error_also_under_drop():
    with pytest.raises(DataError, match="1 of 1 rows"):
        prepare([{**TEXT, "weight": -1.0}], on_bad_row="drop")


def test_missing_column_is_named_with_the_closest():
    with pytest.raises(DataError, match=r"no column 'rejected', did you mean 'rejectd'") as caught:
        prepare([{"prompt": "a", "chosen": "b", "rejectd": "c"}])
    assert "rename_column" in str(caught.value)


def test_no_chat_template_is_one_error():
    with pytest.raises(DataError, match="has no chat template"):
        prepare(make_rows(3), make_tokenizer(None))


def test_prompt_too_long_names_lengths_and_fix():
    with pytest.raises(DataError, match=r"no room is left.*prompt 4, chosen 6, rejected 5.*max_length=4"):
        prepare([TEXT], max_length=4)


def test_unknown_option_and_empty_data_set():
    with pytest.raises(ValueError, match="on_bad_row='skip'"):
        prepare([TEXT], on_bad_row="skip")
    with pytest.raises(DataError, match="no rows"):
        prepare(Dataset.from_dict({"chosen": [], "rejected": []}))


def test_prepared_rows_pass_through_unchanged():
    prepared, report = prepare(make_rows(), max_length=60)
    again, second = prepare(prepared, max_length=60)
    assert again[:] == prepared[:]
    assert second.fingerprint == report.fingerprint


def test_token_ids_without_masks_train_the_whole_answer():
    row = {"prompt_input_ids": [5], "chosen_input_ids": [6, 2], "rejected_input_ids": [7]}
    prepared, report = prepare([row])
    assert prepared[0]["chosen_loss_mask"] == [True, True]
    assert prepared[0]["rejected_loss_mask"] == [True]
    assert report.counts["num_without_eos"] == 1
    assert prepare([row], eos_token_ids=[7])[1].counts["num_without_eos"] == 0


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"chosen_input_ids": [6, 999]}, "chosen_input_ids"),
        ({"rejected_input_ids": None}, "rejected_input_ids"),
        ({"chosen_loss_mask": [True]}, "chosen_loss_mask"),
        ({"prompt_input_ids": []}, "prompt"),
    ],
)
def test_bad_token_ids_are_named(change, column):
    row = {"prompt_input_ids": [5], "chosen_input_ids": [6, 2], "rejected_input_ids": [7]}
    with pytest.raises(DataError, match=f"row 1, column '{column}'"):
        prepare([{**row, "chosen_loss_mask": [True, True]}, {**row, **change}])


def test_same_rows_same_fingerprint_other_rows_another():
    first, second = prepare(make_rows())[1], prepare(make_rows())[1]
    assert first == second
    assert prepare(make_rows(11))[1].fingerprint != first.fingerprint
    json.dumps(first.as_dict())


def test_second_preparation_of_a_file_comes_from_the_cache(tmp_path):
    """The tokenizer has been called in between, which must not change the cache's key."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in make_rows()))
    tokenizer = make_tokenizer()
    first, _ = prepare(load_rows(path), tokenizer)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    second, _ = prepare(load_rows(path), tokenizer)
    assert first.cache_files
    assert first.cache_files == second.cache_files
    assert prepare(load_rows(path), tokenizer, max_length=70)[0].cache_files != first.cache_files


def test_two_processes_agree_with_one():
    assert prepare(make_rows(), num_proc=2)[0][:] == prepare(make_rows())[0][:]


def test_errors_cross_processes():
    with pytest.raises(DataError, match="has no chat template"):
        prepare(make_rows(), make_tokenizer(None), num_proc=2)


def test_prompts_that_tokenise_differently_before_their_answers():
    """'?b' is one token, so the prompt's last token differs: 'Sky' is shared, '?b' and '?' stay untrained."""
    tokenizer = merging_tokenizer(("?", "b"))
    prepared, report = prepare([{"prompt": "Sky?", "chosen": "blue", "rejected": "red"}], tokenizer)
    row = prepared[0]
    assert tokenizer.convert_ids_to_tokens(row["prompt_input_ids"]) == ["S", "k", "y"]
    assert tokenizer.convert_ids_to_tokens(row["chosen_input_ids"]) == ["?b", "l", "u", "e", "</s>"]
    assert row["chosen_loss_mask"] == [False, True, True, True, True]
    assert row["rejected_loss_mask"] == [False, True, True, True, True]
    assert report.counts["num_straddling_tokens"] == 1
    assert report.counts["num_prompt_tokens_in_completions"] == report.counts["num_untrained_tokens"] == 2


def test_ties_and_scores_are_counted():
    """The tie is two pairs; only the last row's scores say otherwise than its label, since a tie says nothing. Of the
    scores 3, 1, 2, 4, 1, 2 the mean is 13/6; chosen - rejected of the rows that are no ties is 2 and -1."""
    rows = [
        {**TEXT, "tie": False, "chosen_rating": 3, "rejected_rating": 1},
        {**TEXT, "tie": True, "chosen_rating": 2, "rejected_rating": 4},
        {**TEXT, "tie": False, "chosen_rating": 1, "rejected_rating": 2},
    ]
    prepared, report = prepare(rows)
    assert prepared["tie"][:] == [False, True, False]
    assert prepared["score_chosen"][:] == [3.0, 2.0, 1.0]
    assert prepared["score_rejected"][:] == [1.0, 4.0, 2.0]
    counts = {name: count for name, count in report.counts.items() if count}
    assert counts == {"num_ties": 1, "num_scores_against_label": 1}
    assert (report.num_rows, report.num_pairs) == (3, 4)
    assert report.scores == {"mean": pytest.approx(13 / 6), "min": 1, "max": 4, "mean_difference": 0.5}
    assert report.ignored_columns == ()
    assert prepare(prepared)[0][:] == prepared[:]


def test_token_logps_of_text_rows_are_those_of_the_tokens_that_are_kept():
    """ " blue" and " red" are 6 and 5 tokens; 5 and 5 are kept."""
    row = {**TEXT, "ref_chosen_token_logps": [-1.0] * 5, "ref_rejected_token_logps": [-2.0] * 5}
    prepared, report = prepare([row], max_completion_length=5)
    assert prepared[0]["ref_chosen_token_logps"] == [-1.0] * 5
    assert report.counts["num_ref_logps_of_cut_rows"] == 0
    with pytest.raises(DataError, match=r"'ref_chosen_token_logps': has 5 log-probs for an answer of 6 tokens"):
        prepare([row])


def test_token_logps_of_token_ids_are_cut_with_them():
    row = {
        "prompt_input_ids": [5],
        "chosen_input_ids": [6, 7, 2],
        "rejected_input_ids": [7],
        "ref_chosen_token_logps": [-1.0, -2.0, -3.0],
        "ref_rejected_token_logps": [-4.0],
    }
    prepared, _ = prepare([row], max_completion_length=2)
    assert prepared[0]["ref_chosen_token_logps"] == [-1.0, -2.0]
    assert prepared[0]["ref_rejected_token_logps"] == [-4.0]
    with pytest.raises(DataError, match=r"row 0, column 'ref_rejected_token_logps': has 0 log-probs"):
        prepare([{**row, "ref_rejected_token_logps": []}])


def test_sums_of_log_probs_of_rows_that_are_cut_are_counted():
    row = {**TEXT, "ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0}
    assert prepare([row])[1].counts["num_ref_logps_of_cut_rows"] == 0
    assert prepare([row], max_completion_length=5)[1].counts["num_ref_logps_of_cut_rows"] == 1


def test_sources_are_kept_if_they_are_integers():
    prepared, report = prepare([{**TEXT, "source": 1}, {**TEXT, "source": 0}])
    assert prepared["source"][:] == [1, 0]
    assert report.ignored_columns == ()
    assert report.fingerprint != prepare([TEXT, TEXT])[1].fingerprint
    prepared, report = prepare([{**TEXT, "source": "web"}])
    assert "source" not in prepared.column_names
    assert report.ignored_columns == ("source",)
    with pytest.raises(DataError, match="row 1, column 'source': is missing"):
        prepare([{**TEXT, "source": 1}, {**TEXT, "source": None}])


def test_shares_of_rows_truncated_and_dropped():
    """Of four rows one is bad; of the other three the second loses the end of its chosen answer (7 tokens)."""
    rows = [TEXT, {**TEXT, "chosen": " green"}, TEXT, {**TEXT, "chosen": None}]
    prepared, report = prepare(rows, max_completion_length=6, on_bad_row="drop")
    assert prepared["truncated"][:] == [[False, False], [True, False], [False, False]]
    assert (report.truncated_share, report.dropped_share) == (pytest.approx(1 / 3), 0.25)
    assert "1 bad rows dropped (25.0%)" in report.lines()[0]
    assert "  33.3% of the rows truncated" in report.lines()
    again, second = prepare(prepared)
    assert again[:] == prepared[:]
    assert (second.truncated_share, second.counts["num_completions_cut"]) == (report.truncated_share, 0)
    assert prepare([TEXT])[1].truncated_share == 0


def test_the_fingerprint_does_not_depend_on_what_is_not_trained_on():
    row = {"prompt_input_ids": [5], "chosen_input_ids": [6, 2], "rejected_input_ids": [7]}
    marked = {**row, "truncated": [True, False], "note": "x"}
    assert prepare([row])[1].fingerprint == prepare([marked])[1].fingerprint


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"tie": None}, "tie"),
        ({"score_chosen": None}, "score_chosen"),
        ({"ref_chosen_token_logps": None}, "ref_chosen_token_logps"),
    ],
)
def test_numbers_that_one_row_lacks_are_named(change, column):
    whole = {**TEXT, "tie": False, "score_chosen": 1.0, "score_rejected": 0.5}
    whole |= {"ref_chosen_token_logps": [-1.0] * 6, "ref_rejected_token_logps": [-1.0] * 5}
    with pytest.raises(DataError, match=f"row 1, column '{column}'"):
        prepare([whole, {**whole, **change}])


def test_a_column_of_nothing_is_as_none():
    prepared, _ = prepare([{**TEXT, "tie": None, "score_chosen": None, "ref_chosen_token_logps": None}])
    assert prepared.column_names == [*COLUMNS, "truncated"]
