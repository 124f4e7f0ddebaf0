"""A run whose reference moves, or was computed once, is bit for bit the same when it is stopped and resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from test_resume import NUM_STEPS, StopAfter, metrics_in, trainer_at, weights_of

from burnish import DPOTrainer
from burnish.models.moving import MovingReference
from burnish.models.refcache import Precomputed
from burnish.runtime.rundir import read_events
from burnish.runtime.state import Stateful
from burnish.trainers.precompute import precompute

pytestmark = pytest.mark.gallery  # a gallery: make test has one of each kind elsewhere


class Following(DPOTrainer):
    def stateful(self):
        own = {"reference": self.reference} if isinstance(self.reference, Stateful) else {}
        return {**super().stateful(), **own}

    def _open_run(self, found):
        super()._open_run(found)
        if self.args.precompute_ref_log_probs and not isinstance(self.reference, Precomputed):
            scored = precompute(self)
            self.train_dataset, self.eval_dataset, self.reference = scored.train, scored.evaluation, scored.reference


# Moves at steps 2, 4, 6, 8, and, after a start at 1, at 3, 5, 7: before, at and after every possible stop.
REFERENCES = {
    "sync": {"sync_ref_model": True, "ref_model_mixup_alpha": 0.3, "ref_model_sync_steps": 2},
    "bema": {"ref_model_bema": {"update_freq": 2, "update_after": 1, "lag": 3}, "ref_seed": None},
    "bfloat16": {
        "sync_ref_model": True,
        "ref_model_mixup_alpha": 0.3,
        "ref_model_sync_steps": 2,
        "dtype": torch.bfloat16,
    },
}
FAST = {("sync", 3), ("sync", 4), ("bema", 1), ("bema", 5), ("bfloat16", 5)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reference"


def make_following(directory: Path, **options) -> DPOTrainer:
    return trainer_at(directory, trainer_class=Following, learning_rate=3e-3, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Each run without a stop, with the weights of policy and reference."""
    runs = {}
    for name, options in REFERENCES.items():
        directory = tmp_path_factory.mktemp(name) / "run"
        trainer = make_following(directory, **options)
        began_with = reference_of(trainer)
        trainer.train()
        assert trainer.state.global_step == NUM_STEPS
        assert any(not torch.equal(began_with[key], tensor) for key, tensor in reference_of(trainer).items())
        runs[name] = (weights_of(trainer), reference_of(trainer), metrics_in(directory))
    return runs


def reference_of(trainer: DPOTrainer) -> dict[str, torch.Tensor]:
    assert isinstance(trainer.reference, MovingReference)
    return {
        f"{group} {name}": tensor.detach().clone()
        for group, tensors in trainer.reference.tensors().items()
        for name, tensor in tensors.items()
    }


def stop(directory: Path, step: int, **options) -> None:
    trainer = make_following(directory, **options)
    trainer.add_callback(StopAfter(step + 1))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


@pytest.mark.parametrize(
    ("name", "step"),
    [
        (name, step) if (name, step) in FAST else pytest.param(name, step, marks=pytest.mark.slow)
        for name in REFERENCES
        for step in range(1, NUM_STEPS)
    ],
)
def test_a_moving_reference_resumes_bit_for_bit(tmp_path, whole, name, step):
    policy, reference, metrics = whole[name]
    directory = tmp_path / "run"
    stop(directory, step, **REFERENCES[name])
    resumed = make_following(directory, **REFERENCES[name])
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.equal(tensor, policy[key]) for key, tensor in weights_of(resumed).items())
    assert all(torch.equal(tensor, reference[key]) for key, tensor in reference_of(resumed).items())
    assert metrics_in(directory) == metrics


def test_a_moving_reference_changes_the_run(whole, tmp_path):
    """It does not move in vain: the metrics differ from those of a reference that stays."""
    trainer = make_following(tmp_path / "run")
    trainer.train()
    assert metrics_in(tmp_path / "run") != whole["sync"][2]


@pytest.mark.parametrize("kept", [True, False], ids=["file", "no_file"])
def test_a_precomputed_reference_resumes_bit_for_bit(tmp_path, cache, kept):
    """With the file of the first run, and without: the values are computed again, to the last bit."""
    options = {"precompute_ref_log_probs": True, "ref_seed": None}
    trainer = make_following(tmp_path / "whole", **options)
    trainer.train()
    directory = tmp_path / "run"
    stop(directory, 3, **options)
    if not kept:
        shutil.rmtree(cache)
    resumed = make_following(directory, **options)
    resumed.train(resume_from_checkpoint=True)
    told = [event["computed"] for event in read_events(directory / "events.jsonl") if event["kind"] == "reference"]
    assert told == [False, not kept]
    own = weights_of(trainer)
    assert all(torch.equal(tensor, own[key]) for key, tensor in weights_of(resumed).items())
    assert metrics_in(directory) == metrics_in(tmp_path / "whole")


def test_another_schedule_is_refused_on_a_resume(tmp_path):
    stop(tmp_path / "run", 2, **REFERENCES["sync"])
    trainer = make_following(tmp_path / "run", **{**REFERENCES["sync"], "ref_model_sync_steps": 3})
    with pytest.raises(ValueError, match="ref_model_sync_steps: was 2, is 3"):
        trainer.train(resume_from_checkpoint=True)
