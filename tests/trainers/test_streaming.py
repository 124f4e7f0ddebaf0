"""Training on a stream from outside: its end, its dropped rows, what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
import pytest
import torch
from datasets import Dataset, IterableDataset, IterableDatasetDict

from burnish.data import stream as room
from burnish.data.errors import DataError
from burnish.runtime.rundir import checkpoints, read_events
from conftest import make_rows

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from training import make_trainer, step_gradients

pytestmark = pytest.mark.gallery  # a gallery: make test has one of each kind elsewhere

ROWS = make_rows(30)
BAD = {**ROWS[0], "rejected": ROWS[0]["chosen"]}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch, tmp_path):
    monkeypatch.setattr(room, "NUM_CHECKED", 8)
    monkeypatch.setattr(room, "CHUNK_ROWS", 4)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def generate(rows):
    yield from rows


def stream_of(rows):
    return IterableDataset.from_generator(generate, gen_kwargs={"rows": rows})


def streaming(directory, rows=ROWS, **options):
    return make_trainer(directory, rows=stream_of(rows), **{"max_steps": 5, **options})


def events(directory, kind):
    return [event for event in read_events(directory / "events.jsonl") if event["kind"] == kind]


def test_a_stream_trains_as_its_rows_in_order_do(tmp_path):
    """Each step has the gradient of a step on the same four rows, whatever the micro-batches."""
    gradients = step_gradients(streaming(tmp_path / "one", lr_scheduler_type="constant"))
    cut = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    split = step_gradients(streaming(tmp_path / "split", lr_scheduler_type="constant", **cut))
    assert len(gradients) == len(split) == 5
    for whole, parts in zip(gradients, split, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-12)
    alone = step_gradients(make_trainer(tmp_path / "alone", rows=ROWS[:4], max_steps=1))
    torch.testing.assert_close(gradients[0], alone[0], rtol=1e-9, atol=1e-12)
    assert events(tmp_path / "one", "stream")[0]["counts"]["num_read"] == 24  # 20 trained, and the next chunk


@pytest.mark.parametrize(("size", "accumulation"), [(4, 1), (2, 2), (1, 3)])
def test_a_stream_that_ends_early_ends_the_run(tmp_path, size, accumulation):
    """30 rows of which 3 are bad: 27 are 7 steps of 4, or 9 of 3; the last may be short. The last step is saved."""
    rows = [BAD if index in (10, 11, 28) else row for index, row in enumerate(ROWS)]
    trainer = streaming(
        tmp_path / "run",
        rows,
        max_steps=50,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        save_strategy="steps",
        save_steps=4,
        logging_steps=1,
    )
    trainer.train()
    last = -(-27 // (size * accumulation))
    assert trainer.state.global_step == last
    assert checkpoints(tmp_path / "run")[0].name == f"checkpoint-{last}"
    (end,) = events(tmp_path / "run", "stream_end")
    assert (end["step"], end["max_steps"]) == (last, 50)
    (total,) = events(tmp_path / "run", "stream")
    assert total["dropped_rows"] == [10, 11, 28]
    assert "30 rows read from the stream, 3 bad ones dropped (10.0%)" in total["message"]
    assert [event["row"] for event in events(tmp_path / "run", "dropped_row")] == [10, 11, 28]
    lines = [line for line in trainer.state.log_history if "grad_norm" in line]
    assert lines[-1]["num_dropped_rows"] == 3
    assert lines[-1]["num_stream_rows"] == 30
    assert all(line["loss"] != 0 for line in lines)


def test_resuming_a_run_whose_stream_has_ended_trains_nothing(tmp_path):
    options = {"max_steps": 50, "save_strategy": "steps", "save_steps": 4}
    first = streaming(tmp_path / "run", **options)
    first.train()
    again = streaming(tmp_path / "run", **options)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == first.state.global_step == 8
    assert all(torch.equal(first.model.state_dict()[k], v) for k, v in again.model.state_dict().items())


def test_resuming_a_finished_run_trains_nothing(tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 4}
    first = streaming(tmp_path / "run", **options)
    first.train()
    again = streaming(tmp_path / "run", **options)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert all(torch.equal(first.model.state_dict()[k], v) for k, v in again.model.state_dict().items())


def test_the_report_and_the_lint_are_of_the_first_rows(tmp_path):
    trainer = streaming(tmp_path / "run", [*ROWS[:4], ROWS[0], *ROWS[4:]])
    report = trainer.data_reports["train"]
    assert report.num_rows == 8
    assert report.lines()[0].startswith("train, the first rows of a stream: 8 rows")
    assert [finding.code for finding in trainer.findings] == ["duplicate_rows"]


def test_on_bad_row_holds_for_the_first_rows(tmp_path):
    rows = [BAD if index in (1, 5, 20) else row for index, row in enumerate(ROWS)]
    with pytest.raises(DataError, match="2 of 8 rows cannot be trained on"):
        streaming(tmp_path / "error", rows)
    trainer = streaming(tmp_path / "drop", rows, on_bad_row="drop", max_steps=50)
    trainer.train()
    assert events(tmp_path / "drop", "stream")[0]["dropped_rows"] == [1, 5, 20]
    assert trainer.state.global_step == 7  # 27 rows


def test_a_split_of_a_streamed_data_set(tmp_path):
    trainer = make_trainer(tmp_path / "run", rows=IterableDatasetDict({"train": stream_of(ROWS)}), max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": -1}, "set max_steps"),
        ({"dataloader_num_workers": 2}, "dataloader_num_workers=2"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last=True"),
        ({"dataset_weights": [1.0]}, "train_dataset is one source"),
        ({"shuffle_buffer_size": 1}, "shuffle_buffer_size=1"),
        ({"precompute_ref_log_probs": True}, "train is a stream"),
    ],
)
def test_options_that_a_stream_does_not_allow(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        streaming(tmp_path / "run", **options)


def test_streams_are_refused_elsewhere(tmp_path):
    with pytest.raises(ValueError, match="accepted as train_dataset alone"):
        make_trainer(tmp_path / "a", rows={"a": stream_of(ROWS), "b": ROWS}, max_steps=2)
    trainer = streaming(tmp_path / "b")
    with pytest.raises(ValueError, match="not for evaluation"):
        trainer.evaluate(stream_of(ROWS))
    with pytest.raises(ValueError, match="shuffle_buffer_size=4, but train_dataset is no stream"):
        make_trainer(tmp_path / "c", rows=ROWS, shuffle_buffer_size=4)


def test_evaluation_beside_a_stream(tmp_path):
    """The step at which the stream ends is evaluated like the last step of a run."""
    from burnish import DPOConfig, DPOTrainer
    from conftest import make_model, make_tokenizer

    options = {"output_dir": str(tmp_path / "run"), "max_steps": 50, "per_device_train_batch_size": 4, "seed": 5}
    quiet = {"report_to": "none", "disable_tqdm": True, "cpu_tuning": "off", "save_strategy": "no"}
    trainer = DPOTrainer(
        make_model(),
        DPOConfig(**options, **quiet, eval_strategy="steps", eval_steps=5),
        train_dataset=stream_of(ROWS),
        eval_dataset=Dataset.from_list(make_rows(5)),
        processing_class=make_tokenizer(),
    )
    trainer.train()
    assert [line["step"] for line in trainer.state.log_history if "eval_loss" in line] == [5, 8]
