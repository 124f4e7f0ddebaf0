"""A run on a stream that is stopped at any step and resumed is bit for bit the run that was never stopped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from test_resume import NUM_STEPS, StopAfter, metrics_in, weights_of

from conftest import make_rows

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from training import make_trainer

from burnish.data import stream as room
from burnish.data.errors import DataError

pytestmark = pytest.mark.gallery  # a gallery: make test has one of each kind elsewhere

ROWS = make_rows(40)
BAD = {**ROWS[0], "rejected": ROWS[0]["chosen"]}
WITH_BAD = [BAD if index in (9, 17, 18, 27) else row for index, row in enumerate(ROWS)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(room, "NUM_CHECKED", 5)
    monkeypatch.setattr(room, "CHUNK_ROWS", 3)


def generate(rows):
    yield from rows


def generated(rows):
    return IterableDataset.from_generator(generate, gen_kwargs={"rows": rows})


def shuffled(rows):
    """An order that the source's own state does not lead back to."""
    return Dataset.from_list(rows).to_iterable_dataset(num_shards=4).shuffle(seed=1, buffer_size=6)


def trainer_at(directory: Path, source, **options):
    """Eight steps of four rows; log lines span two steps."""
    settings = {
        "rows": source,
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "lr_scheduler_type": "cosine",
        "dtype": torch.float32,
        "on_bad_row": "drop",
    }
    return make_trainer(directory, **{**settings, **options})


def stop_and_resume(directory: Path, step: int, source, **options):
    first = trainer_at(directory, source, **options)
    first.add_callback(StopAfter(step + 1))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = trainer_at(directory, source, **options)
    second.train(resume_from_checkpoint=True)
    return second


def same(tmp_path: Path, steps, source, **options):
    whole = trainer_at(tmp_path / "whole", source, **options)
    whole.train()
    for step in steps:
        resumed = stop_and_resume(tmp_path / str(step), step, source, **options)
        assert resumed.state.global_step == whole.state.global_step
        weights = weights_of(whole)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in weights_of(resumed).items())
        assert metrics_in(tmp_path / str(step)) == metrics_in(tmp_path / "whole")


@pytest.mark.parametrize("steps", [(2, 5), pytest.param((1, 3, 4, 6, 7), marks=pytest.mark.slow)])
def test_resumed_run_is_bit_identical(tmp_path, steps):
    same(tmp_path, steps, generated(WITH_BAD))


def test_a_shuffled_source(tmp_path):
    same(tmp_path, (3,), shuffled(WITH_BAD))


def test_a_buffer_of_our_own(tmp_path):
    same(tmp_path, (3,), generated(WITH_BAD), shuffle_buffer_size=8)


def test_a_stream_that_ends_early(tmp_path):
    """23 good rows of 26: six steps of eight, the last one short."""
    same(tmp_path, (2, 5), generated(WITH_BAD[:26]))


def test_first_rows_that_changed_are_refused(tmp_path):
    trainer = trainer_at(tmp_path, generated(ROWS), max_steps=2)
    trainer.train()
    with pytest.raises(ValueError, match="train_data: was"):
        trainer_at(tmp_path, generated(ROWS[1:])).train(resume_from_checkpoint=True)


def test_later_rows_that_changed_are_refused(tmp_path):
    trainer = trainer_at(tmp_path, generated(ROWS), max_steps=3)
    trainer.train()
    changed = [*ROWS[:13], *make_rows(50)[40:]]
    with pytest.raises(DataError, match="no longer those that this run was trained on; it had read 12"):
        trainer_at(tmp_path, generated(changed)).train(resume_from_checkpoint=True)


def test_another_buffer_is_refused(tmp_path):
    trainer_at(tmp_path, generated(ROWS), max_steps=2).train()
    with pytest.raises(ValueError, match="shuffle_buffer_size: was None, is 8"):
        trainer_at(tmp_path, generated(ROWS), shuffle_buffer_size=8).train(resume_from_checkpoint=True)


def test_ignore_data_skip_begins_anew(tmp_path):
    """As its documentation says: rows are repeated."""
    trainer_at(tmp_path, generated(ROWS), max_steps=2, ignore_data_skip=True).train()
    again = trainer_at(tmp_path, generated(ROWS), max_steps=4, ignore_data_skip=True)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert again.rank_stream.counts["num_read"] < 12
