"""The rows of a trainer: several sources, how they are given, and what happens if rows are not there or change."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import datasets
import pytest
from datasets import DatasetDict

from burnish import DPOConfig, DPOTrainer
from burnish.data.errors import DataError
from burnish.runtime.checkpoint import verify
from burnish.runtime.rundir import checkpoints, read_events
from conftest import make_model, make_rows, make_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from training import make_trainer

ROWS = make_rows(30)
SOURCES = {"short": ROWS[:6], "long": ROWS[6:20]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def record_rows(trainer):
    seen = []
    own = trainer.get_batch_samples

    def record(*arguments):
        parcels, counts = own(*arguments)
        seen.extend(int(row) for parcel in parcels for row in parcel.row_id[parcel.pairs[:, 0]])
        return parcels, counts

    trainer.get_batch_samples = record
    trainer.train()
    return seen


def test_every_row_once_without_weights(tmp_path):
    trainer = make_trainer(tmp_path / "run", rows=SOURCES)
    assert sorted(record_rows(trainer)) == list(range(20))
    assert trainer.source_names == ("short", "long")
    assert set(trainer.data_reports) == {"train_short", "train_long"}
    lines = [line for line in trainer.state.log_history if "grad_norm" in line]
    named = {name for line in lines for name in line if name.count("/") == 2}
    assert named == {f"rewards/{what}/{name}" for what in ("accuracies", "margins") for name in SOURCES}
    (event,) = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["kind"] == "mixture"]
    assert "long: 14 rows once, 70.0% of it; its rows are numbered from 6" in event["message"]


def test_shares_of_two_epochs(tmp_path):
    """20 rows an epoch, three quarters of the 6: each of them five times in two epochs, and 10 of the 14 once."""
    trainer = make_trainer(tmp_path / "run", rows=SOURCES, dataset_weights={"long": 1, "short": 3}, num_train_epochs=2)
    taken = Counter(record_rows(trainer))
    assert [taken[row] for row in range(6)] == [5] * 6
    assert sorted(taken[row] for row in range(6, 20)) == [0] * 4 + [1] * 10


@pytest.mark.slow
def test_a_resumed_epoch_goes_on_with_the_same_rows(tmp_path):
    options = {"rows": SOURCES, "dataset_weights": [3.0, 1.0], "num_train_epochs": 2, "save_strategy": "steps"}
    whole = record_rows(make_trainer(tmp_path / "whole", save_steps=7, **options))
    make_trainer(tmp_path / "run", save_steps=7, **options).train()
    resumed = make_trainer(tmp_path / "run", save_steps=7, **options)
    seen = []
    own = resumed.get_batch_samples

    def record(*arguments):
        parcels, counts = own(*arguments)
        seen.extend(int(row) for parcel in parcels for row in parcel.row_id[parcel.pairs[:, 0]])
        return parcels, counts

    resumed.get_batch_samples = record
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-7"))
    assert seen == whole[28:]


def test_another_mixture_is_refused_on_a_resume(tmp_path):
    options = {"rows": SOURCES, "dataset_weights": [3.0, 1.0], "save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path / "run", **options, max_steps=2).train()
    for changed, named in (
        ({"dataset_weights": [1.0, 3.0]}, "dataset_weights: was"),
        ({"rows": {"short": ROWS[:6], "other": ROWS[6:20]}}, "train_data: was"),
        ({"rows": {"short": ROWS[:6], "long": ROWS[7:21]}}, "train_data: was"),
    ):
        with pytest.raises(ValueError, match=named):
            make_trainer(tmp_path / "run", **{**options, **changed}).train(resume_from_checkpoint=True)


def test_evaluation_rows_need_no_source(tmp_path):
    trainer = make_trainer(tmp_path / "run", rows=SOURCES, max_steps=1)
    trainer.train()
    assert "eval_rewards/accuracies" in trainer.evaluate(ROWS[20:])
    assert "eval_rewards/accuracies/short" in trainer.evaluate(trainer.train_dataset)


@pytest.mark.parametrize(
    ("rows", "weights", "message"),
    [
        (ROWS[:4], [1.0], "train_dataset is one source"),
        ({}, None, "an empty mapping"),
        (SOURCES, [1.0], "one for each of short, long"),
        (SOURCES, {"short": 1.0, "lng": 2.0}, "'lng' is no source, did you mean 'long'"),
        (SOURCES, {"short": 1.0, "long": 0.0}, "allowed: above 0"),
        ({"short": ROWS[:4], "long": []}, None, "is empty"),
    ],
)
def test_what_is_refused(tmp_path, rows, weights, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path / "run", rows=rows, dataset_weights=weights)


class Killed:
    """A collator that takes its process with it."""

    def __init__(self, own):
        self.own = own

    def __call__(self, rows):
        if any(row["row_id"] == 9 for row in rows):
            os._exit(1)
        return self.own(rows)


def test_a_worker_that_dies_ends_the_run(tmp_path):
    """Told by the name of what died, not waited for; the newest checkpoint stays sound."""
    options = {"dataloader_num_workers": 1, "num_train_epochs": 4, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(tmp_path / "run", rows=ROWS[:12], **options)
    trainer.data_collator = Killed(trainer.data_collator)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        trainer.train()
    found = checkpoints(tmp_path / "run")
    assert all(verify(path) == [] for path in found)


def test_a_file_that_changed_during_the_run_is_refused_on_a_resume(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:12]))
    options = {"rows": str(path), "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    make_trainer(tmp_path / "run", **options).train()
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS[:11], ROWS[20]]))
    with pytest.raises(ValueError, match="train_data: was"):
        make_trainer(tmp_path / "run", **options).train(resume_from_checkpoint=True)


def test_fewer_rows_than_a_batch_are_one_step(tmp_path):
    trainer = make_trainer(
        tmp_path / "run", rows=ROWS[:3], per_device_train_batch_size=8, gradient_accumulation_steps=4
    )
    trainer.train()
    assert trainer.state.global_step == 1
    with pytest.raises(ValueError, match="drop_last leaves none of 3 rows: a round takes 8"):
        make_trainer(tmp_path / "b", rows=ROWS[:3], per_device_train_batch_size=8, dataloader_drop_last=True).train()


@pytest.mark.parametrize("rows", [[], "absent.jsonl", {"a": "absent.jsonl"}, datasets.Dataset.from_list([])])
@pytest.mark.parametrize("side", ["train_dataset", "eval_dataset"])
def test_rows_that_are_not_there_are_told_before_a_model_is_loaded(tmp_path, rows, side):
    config = DPOConfig(output_dir=str(tmp_path / "run"))
    with pytest.raises(DataError, match=r"at least one|there is no file"):
        DPOTrainer(str(tmp_path / "no-model"), config, **{side: rows})


def test_a_data_set_of_splits_is_no_mixture(tmp_path):
    splits = DatasetDict({"train": datasets.Dataset.from_list(ROWS[:5]), "test": datasets.Dataset.from_list(ROWS[5:9])})
    trainer = make_trainer(tmp_path / "run", rows=splits)
    assert (len(trainer.train_dataset), trainer.mixture) == (5, None)


def test_each_split_of_held_out_rows_is_evaluated_by_itself(tmp_path):
    splits = DatasetDict({"train": datasets.Dataset.from_list(ROWS[:5]), "test": datasets.Dataset.from_list(ROWS[5:9])})
    args = DPOConfig(output_dir=str(tmp_path / "run"))
    trainer = DPOTrainer(make_model(), args, train_dataset=ROWS, eval_dataset=splits, processing_class=make_tokenizer())
    assert {name: len(rows) for name, rows in trainer.eval_dataset.items()} == {"train": 5, "test": 4}
