"""Micro-batches that are put together: the parcel, who waits for whom, and a gradient that does not change."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
sys.path.insert(0, str(Path(__file__).parent))
from online_training import make_online_trainer
from test_ptx import make as make_with_supervised_rows
from test_token_budget import make_batch
from training import make_trainer, relative_distance, step_gradients

from burnish.data.collate import PreferenceCollator
from burnish.trainers.parts import Together, joined, neighbours
from burnish.types import PreferenceBatch, TokenBatch

SIZES = [(5, 3, 2), (2, 4, 6), (1, 1, 1), (4, 2, 2)]  # tokens of prompt, chosen and rejected answer


def rows(**more) -> list[dict]:
    made = []
    for number, (prompt, chosen, rejected) in enumerate(SIZES):
        row = {"row_id": 10 + number, "prompt_input_ids": [3 + number] * prompt}
        for side, length in (("chosen", chosen), ("rejected", rejected)):
            row |= {f"{side}_input_ids": list(range(7, 7 + length)), f"{side}_loss_mask": [True] * length}
        made.append({**row, **{name: value + number for name, value in more.items()}})
    return made


def collate(some: list[dict]) -> PreferenceBatch:
    return PreferenceCollator(0)(some)


COLUMNS = [{}, {"margin": 0.5}, {"weight": 1.0}, {"ref_chosen_logps": -3.0, "ref_rejected_logps": -4.0}]


@pytest.mark.parametrize("more", COLUMNS, ids=str)
@pytest.mark.parametrize("ends", [(0, 2, 4), (0, 1, 2, 3, 4), (0, 3, 4)], ids=str)
def test_it_is_the_parcel_of_all_rows(more, ends):
    """As if the collator had been given the rows of all at once; what lies in the padding is 0 in both."""
    parcels = [collate(rows(**more)[start:end]) for start, end in pairwise(ends)]
    found, expected = joined(parcels), collate(rows(**more))
    for name in (field.name for field in fields(expected)):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), msg=name)


def test_every_tensor_has_the_rows_of_both():
    """A new field would keep the rows of the first unless it is listed: of the parcel twice each is twice as long."""
    batch = make_batch()
    full = replace(batch, ref_token_logps=torch.ones(6, 4), turn_index=torch.ones(6, 4), columns={"a": torch.ones(6)})
    for name, value in vars(full.joined([full])).items():
        if isinstance(value, torch.Tensor):
            assert len(value) == 2 * len(full[name]), name
            begins = {"prompt_index": 3, "pairs": 6}.get(name, 0)
            again = value[len(full[name]) :]
            assert torch.equal(again - begins if begins else again, full[name]), name
    assert full.joined([full]).coupled["aot"].tolist() == 2 * full.coupled["aot"].tolist()


def test_neighbours_fit_the_budget_evenly():
    """10, 12, 3 and 8 tokens."""
    parcels = [collate([row]) for row in rows()]
    assert neighbours(parcels, None) == [1, 1, 1, 1]
    assert neighbours(parcels, 0) == neighbours(parcels, 9) == [1, 1, 1, 1]
    assert neighbours(parcels, 15) == [1, 1, 2]
    assert neighbours(parcels, 22) == neighbours(parcels, 24) == [2, 2]
    assert neighbours(parcels, 33) == [4]


def test_what_is_not_alike_stays_apart():
    plain, graded = collate(rows()[:1]), collate(rows(margin=0.5)[1:2])
    filler = replace(plain, is_filler=True)
    assert neighbours([plain, plain, graded, graded, plain, filler], 1000) == [2, 2, 1, 1]


def test_the_last_one_brings_those_that_waited():
    parcels, together = [collate([row]) for row in rows()], Together[TokenBatch]()
    together.plan(parcels, 22)
    found = [together.add(parcel) for parcel in parcels]
    assert [None if parcel is None else parcel.row_id.tolist() for parcel in found] == [
        None, [10, 10, 11, 11], None, [12, 12, 13, 13],
    ]  # fmt: skip
    together.plan(parcels, 33)
    together.add(parcels[0])  # a step that is broken off
    together.waits = False
    together.plan(parcels, 33)
    assert [together.add(parcel) for parcel in parcels] == parcels
    assert together.add(parcels[0]) is parcels[0]  # a step that nobody planned


def count_parts(trainer) -> list[int]:
    """Counts the rows of each part that is trained on."""
    sizes, own = [], trainer.compute_loss

    def counting(model, inputs, *args, **kwargs):
        sizes.append(len(inputs))
        return own(model, inputs, *args, **kwargs)

    trainer.compute_loss = counting
    return sizes


MAKERS = {
    "dpo": lambda directory, **options: make_trainer(
        directory, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=1, **options
    ),
    "coupled pairs": lambda directory, **options: make_trainer(
        directory,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        max_steps=1,
        loss_type=["aot"],
        **options,
    ),
    "grpo": lambda directory, **options: make_online_trainer(
        directory, per_device_train_batch_size=4, gradient_accumulation_steps=4, max_steps=1, beta=0.1, **options
    ),
    "supervised rows beside": lambda directory, **options: make_with_supervised_rows(
        directory, per_device_train_batch_size=4, gradient_accumulation_steps=4, max_steps=1, **options
    ),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_the_gradient_and_the_log_stay(tmp_path, maker):
    """In float64, to rounding; four micro-batches are one part."""
    found, lines, counts = {}, {}, {}
    for budget in (0, 100_000):
        trainer = MAKERS[maker](tmp_path / str(budget), token_budget=budget)
        counts[budget] = count_parts(trainer)
        (found[budget],) = step_gradients(trainer)
        lines[budget] = trainer.state.log_history[0]
    assert [len(counts[0]), len(counts[100_000])] == [4, 1]
    assert sum(counts[0]) == sum(counts[100_000])
    assert relative_distance(found[100_000], found[0]) < 1e-10
    timed = ("time", "second")
    for name, value in lines[0].items():
        if not any(word in name for word in timed):
            assert lines[100_000][name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
