"""The contract of trainers: the library's keep every law, and one that breaks one is caught by its name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from burnish import DPOTrainer, GRPOTrainer, KTOTrainer, PPOTrainer, RewardTrainer, SFTTrainer
from burnish.testing import ContractError, assert_trainer_contract
from burnish.testing.training import LAWS

sys.path.insert(0, str(Path(__file__).parent))
import broken_trainers as broken


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "options", "processes"),
    [
        (DPOTrainer, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}, 2),
        (DPOTrainer, {"loss_type": "aot"}, 1),
        (RewardTrainer, {"center_rewards_coefficient": 0.01}, 2),
        (GRPOTrainer, {"beta": 0.1}, 2),
        (GRPOTrainer, {"loss_type": "gspo", "advantage": "rloo"}, 1),
        (PPOTrainer, {"kl_coef": 0.1}, 2),
        (SFTTrainer, {}, 1),
        (KTOTrainer, {}, 1),
        (broken.LeadTrainer, {}, 1),
        (broken.Reinforce, {}, 1),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_trainers_keep_the_laws(trainer, options, processes):
    assert_trainer_contract(trainer, options=options, processes=processes)


def all_but(law: str) -> list[str]:
    return [other.name for other in LAWS if other.name != law]


def test_one_law_by_itself():
    """The message shows the smallest case."""
    law = "split into micro-batches"
    with pytest.raises(
        ContractError, match=r"(?s)breaks the law 'split.*Return unreduced.*an optimizer step of 2 rows"
    ):
        assert_trainer_contract(broken.MeanOfMicroBatch, without=all_but(law))


BROKEN = [
    (broken.Detached, "a step has a gradient", "the gradient is 0"),
    (broken.ReadsPadding, "padding", "with other ids in the padding, and more of it"),
    (broken.ReadsOrder, "order of rows", "with the rows in reverse order"),
    (broken.MeanOfMicroBatch, "split into micro-batches", "Return unreduced losses"),
    (broken.WholeGroups, "token budget", "in parts"),
    (broken.Uphill, "a step lowers the loss", "up to"),
    (broken.Turned, "direction of the gradient", "Is a sign turned"),
    (broken.Overflows, "finite at extremes", "very sure"),
    (broken.ReadsTheLog, "indifference to logging", "not bit for bit"),
    (broken.Forgetful, "exact resume", r"belongs in stateful\(\)"),
    (broken.OwnRank, "several processes", "on 2 processes instead of 1"),
    (broken.ReinforceTurned, "direction of the gradient", "Is a sign turned"),
    (broken.ReinforceOfRow, "split into micro-batches", "Return unreduced losses"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "law", "words"), BROKEN, ids=lambda value: value.__name__ if isinstance(value, type) else ""
)
def test_a_trainer_that_breaks_a_law_is_caught(trainer, law, words):
    message = f"(?s)the trainer {trainer.__name__} breaks the law '{law}'.*{words}.*an optimizer step of"
    with pytest.raises(ContractError, match=message):
        assert_trainer_contract(trainer, without=all_but(law))


def test_every_law_is_broken_by_some_trainer():
    assert {law for _, law, _ in BROKEN} == {law.name for law in LAWS}


def test_a_class_of_a_script_is_told_what_to_do():
    class Local(broken.LeadTrainer):
        """Another process cannot import it."""

    with pytest.raises(ContractError, match=r"define it at the top of a module that is no script, or .* processes=1"):
        assert_trainer_contract(Local, without=all_but("several processes"))


def test_wrong_arguments_are_named():
    class Poems(broken.LeadConfig):
        row_kind = "poems"

    class Other(broken.LeadTrainer):
        config_class = Poems

    with pytest.raises(ValueError, match="there is no law 'exact resum', did you mean 'exact resume'"):
        assert_trainer_contract(broken.LeadTrainer, without=["exact resum"])
    with pytest.raises(ValueError, match=r"rows of the kind 'poems', and there are made-up ones of preferences"):
        assert_trainer_contract(Other)
