"""The methods that a run file can name, and where their classes are; imported only when they are needed."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.trainers.config import PolicyConfig


@dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Attributes:
        module: where the two classes are.
        config, trainer: their names.
        losses: module and name of the table that `loss_type` names rows of.
        unbuilt: the name in `burnish.compat` of TRL's options that are refused.
        retry: an option, and a value to try after a run.
        takes_several_losses: `loss_type` may be a list.
        draws_answers: its rows are prompts, and it needs `rewards`.
        reads: what its rows are read as, one of `burnish.data.schema.ROW_KINDS`, if it draws no answers.
        writes_answers: what is trained answers prompts; a reward model scores answers instead.
        takes_reference: it may be given a reference policy.
    """

    module: str
    config: str
    trainer: str
    losses: str
    unbuilt: str
    retry: str
    takes_several_losses: bool = False
    draws_answers: bool = False
    reads: str = "preferences"
    writes_answers: bool = True
    takes_reference: bool = True


METHODS = {
    "dpo": Method(
        "burnish.trainers.dpo",
        "DPOConfig",
        "DPOTrainer",
        losses="burnish.losses.preference_losses",
        unbuilt="UNBUILT_DPO",
        retry="beta=0.3",
        takes_several_losses=True,
    ),
    "grpo": Method(
        "burnish.trainers.grpo",
        "GRPOConfig",
        "GRPOTrainer",
        losses="burnish.losses.policy_losses",
        unbuilt="UNBUILT_GRPO",
        retry="num_generations=16",
        draws_answers=True,
    ),
    "ppo": Method(
        "burnish.trainers.ppo",
        "PPOConfig",
        "PPOTrainer",
        losses="burnish.losses.policy_losses",
        unbuilt="UNBUILT_PPO",
        retry="critic_warmup_steps=4",
        draws_answers=True,
    ),
    "reward": Method(
        "burnish.trainers.reward",
        "RewardConfig",
        "RewardTrainer",
        losses="burnish.losses.reward_losses",
        unbuilt="UNBUILT_REWARD",
        retry="label_smoothing=0.1",
        takes_several_losses=True,
        writes_answers=False,
        takes_reference=False,
    ),
    "sft": Method(
        "burnish.trainers.sft",
        "SFTConfig",
        "SFTTrainer",
        losses="burnish.losses.supervised_losses",
        unbuilt="UNBUILT_SFT",
        retry="loss_type=dft",
        reads="supervised",
        takes_reference=False,
    ),
    "kto": Method(
        "burnish.trainers.kto",
        "KTOConfig",
        "KTOTrainer",
        losses="burnish.losses.unpaired_losses",
        unbuilt="UNBUILT_KTO",
        retry="beta=0.3",
        reads="judged",
    ),
}


# Keys of a run file that only some methods read -> the fact that says so, and why the others do not.
READ_BY_SOME = {
    "ref_model": ("takes_reference", "has no reference"),
    "rewards": ("draws_answers", "draws no answers"),
    "max_new_tokens": ("writes_answers", "writes no answers"),
}


def unread_keys(name: str) -> dict[str, str]:
    """The keys of a run file that have no effect with a method, and why.

    >>> unread_keys("grpo"), unread_keys("dpo")
    ({}, {'rewards': 'draws no answers'})
    """
    facts = vars(METHODS[name])
    return {key: reason for key, (fact, reason) in READ_BY_SOME.items() if not facts[fact]}


def load(method: Method) -> tuple[type[PolicyConfig], Any]:
    """Configuration and trainer of a method; imports torch."""
    module = importlib.import_module(method.module)
    return vars(module)[method.config], vars(module)[method.trainer]


def load_losses(method: Method) -> Any:
    """The table of its losses; imports torch."""
    module, _, name = method.losses.rpartition(".")
    return vars(importlib.import_module(module))[name]
