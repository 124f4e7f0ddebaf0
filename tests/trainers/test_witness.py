"""A watched trainer trains as if nobody looked, and what it tells are the parcels themselves."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import logsigmoid

from burnish import DPOConfig, DPOTrainer, LossOutput, PolicyConfig, PolicyTrainer, forward
from burnish.trainers.witness import BACKWARD, FORWARD, Witness, gradients, is_parcel, watched
from burnish.types import LossOutput as Output
from burnish.types import Mean, PairLogps, PreferenceBatch, TokenStats
from conftest import make_model, make_rows, make_tokenizer


class MarginTrainer(PolicyTrainer):
    """A trainer of a user: `loss`, and nothing else."""

    def loss(self, model, batch):
        scores = forward(model, batch).sequence_mean()
        chosen, rejected = scores[batch.pairs].unbind(-1)
        return LossOutput.of(-logsigmoid(chosen - rejected), per="pair")


def train(trainer_class, config_class, directory, **options):
    args = config_class(
        output_dir=str(directory), max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        learning_rate=1e-2, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, cpu_tuning="off",
        token_budget=0, **options,
    )  # fmt: skip
    trainer = trainer_class(make_model(), args, train_dataset=make_rows(8), processing_class=make_tokenizer())
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def pair_of_runs(tmp_path_factory):
    """The same run of DPO, watched and not."""
    witness = Witness()
    seen = train(watched(DPOTrainer, witness), DPOConfig, tmp_path_factory.mktemp("seen"))
    alone = train(DPOTrainer, DPOConfig, tmp_path_factory.mktemp("alone"))
    return witness, seen, alone


def test_watching_changes_no_number(pair_of_runs):
    _, seen, alone = pair_of_runs
    for first, second in zip(seen.state.log_history, alone.state.log_history, strict=True):
        assert {n: v for n, v in first.items() if "time" not in n and "per_second" not in n} == {
            n: v for n, v in second.items() if "time" not in n and "per_second" not in n
        }
    for mine, other in zip(seen.policy.parameters(), alone.policy.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert type(seen).__name__ == "DPOTrainer"
    assert seen.describe_method() == alone.describe_method()


def test_rooms_are_told_once_and_in_order(pair_of_runs):
    witness, *_ = pair_of_runs
    rooms = [crossing.room for crossing in witness.crossings]
    way = ["_prepare_dataset", "take_parcels", "get_batch_samples", FORWARD, "concatenated_forward"]
    way += ["compute_ref_log_probs", "dpo_loss", "get_batch_loss_metrics", "compute_loss", BACKWARD]
    assert [room for room in rooms if room in way] == way
    assert len(rooms) == len(set(rooms))
    assert not {"check_first_step", "_clip_grad_norm"} & set(rooms)
    assert witness["dpo_loss"].owner == "DPOTrainer"
    assert witness["dpo_loss"].sentence == "One term for each loss: (M,), unreduced."
    assert isinstance(witness["dpo_loss"].received["pair"], PairLogps)
    with pytest.raises(KeyError):
        witness["no_such_room"]


def test_parcels_are_those_of_the_first_micro_batch(pair_of_runs):
    """The step has two; what the rooms gave is of the first, and the parcel itself."""
    witness, *_ = pair_of_runs
    first, second = witness["take_parcels"].returned
    stats = witness["concatenated_forward"].returned
    assert isinstance(stats, TokenStats)
    assert stats.mask is first.loss_mask
    assert stats.mask is not second.loss_mask
    assert stats.logps is witness[FORWARD].returned["logps"]


def test_gradients_are_those_that_the_backward_pass_left(tmp_path):
    """Of the first micro-batch alone: the same loss, divided by the same count, computed here."""
    witness = Witness()
    trainer = train(watched(MarginTrainer, witness), PolicyConfig, tmp_path)
    model = make_model()
    trainer.install(model, trainer.args)
    parcels, counts = witness["get_batch_samples"].returned
    output = MarginTrainer.loss(trainer, model, parcels[0])
    (output.terms[0].losses.sum() / counts["pair"]).backward()
    expected, found = gradients(model), witness[BACKWARD].returned
    torch.testing.assert_close(found.total, expected.total)
    assert list(found.norms) == list(expected.norms)
    assert list(found.norms.values()) == sorted(found.norms.values(), reverse=True)
    assert float(found.total) > float(next(iter(found.norms.values()))) > 0


def test_a_trainer_of_the_user_needs_no_entry(tmp_path):
    """Its forward is heard at the model, and its loss is a room."""
    witness = Witness()
    train(watched(MarginTrainer, witness), PolicyConfig, tmp_path)
    assert witness["loss"].owner == "MarginTrainer"
    assert isinstance(witness["loss"].returned, Output)
    assert isinstance(witness[FORWARD].received["token_batch"], PreferenceBatch)
    assert set(witness[FORWARD].returned) == {"logps"}


@dataclass(frozen=True)
class Own:
    """A parcel of a user."""

    values: torch.Tensor


def test_what_is_a_parcel():
    tensor = torch.zeros(2)
    assert all(map(is_parcel, (tensor, [tensor], (Own(tensor),), Own(tensor), ([Own(tensor)], {}))))
    assert not any(map(is_parcel, (1, "x", [], [1], {"x": tensor}, Mean.of(tensor), Own, None)))
