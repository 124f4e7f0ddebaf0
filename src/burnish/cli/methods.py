"""The methods that a run file can name: those of the library, and trainers of users, `module:Trainer`.

A row says where the trainer is; what commands ask about a method is read off its class, the same for both kinds. Of
the library's own it is in schema.json, so that most commands need not import torch.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from burnish.cli.validate import is_function_name, own_method_problem, training_schema
from burnish.data.kinds import ROW_KINDS

if TYPE_CHECKING:
    from burnish.trainers.config import PolicyConfig


@dataclass(frozen=True)
class Method:
    """Where a method's trainer is.

    Attributes:
        name: in a run file.
        trainer: module and class, with a colon between them; the configuration is its `config_class`.
        retry: an option, and a value to try after a run; empty: none.
    """

    name: str
    trainer: str
    retry: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """What `burnish.cli.schema.facts_of` read off the classes."""
        return training_schema({"method": self.name})["x-facts"]

    @property
    def reads(self) -> str:
        """What its rows are: preferences, prompts, or a kind that only its trainer knows."""
        return self.facts["reads"]

    @property
    def knows_rows(self) -> bool:
        """Its rows can be read without its trainer."""
        return self.reads in (*ROW_KINDS, "prompts")

    @property
    def unread_rows(self) -> str:
        """Why its rows are not looked at before a run; empty if they are."""
        if self.knows_rows:
            return ""
        return (
            f"they are {self.reads}, a kind of its own (row_kind) that {self.name} alone prepares, when a run begins. "
            "burnish trace runs a batch of them, and shows it"
        )

    @property
    def draws_answers(self) -> bool:
        """Its rows are prompts, and it needs `rewards`."""
        return self.facts["draws_answers"]

    @property
    def writes_answers(self) -> bool:
        """What is trained answers prompts; a reward model scores answers instead."""
        return self.facts["writes_answers"]

    @property
    def takes_reference(self) -> bool:
        """It may be given a reference policy."""
        return self.facts["takes_reference"]


METHODS = {
    method.name: method
    for method in (
        Method("dpo", "burnish.trainers.dpo:DPOTrainer", retry="beta=0.3"),
        Method("grpo", "burnish.trainers.grpo:GRPOTrainer", retry="num_generations=16"),
        Method("ppo", "burnish.trainers.ppo:PPOTrainer", retry="critic_warmup_steps=4"),
        Method("reward", "burnish.trainers.reward:RewardTrainer", retry="label_smoothing=0.1"),
        Method("sft", "burnish.trainers.sft:SFTTrainer", retry="loss_type=dft"),
        Method("kto", "burnish.trainers.kto:KTOTrainer", retry="beta=0.3"),
    )
}


# Keys of a run file that only some methods read -> the fact that says so, and why the others do not.
READ_BY_SOME = {
    "ref_model": ("takes_reference", "has no reference"),
    "rewards": ("draws_answers", "draws no answers"),
    "max_new_tokens": ("writes_answers", "writes no answers"),
}


def find(name: Any) -> Method | None:
    """The method of this name, or that of a trainer `module:Trainer`; None for what is neither."""
    if not isinstance(name, str):
        return None
    return METHODS.get(name) or (Method(name, name) if is_own(name) else None)


def method_named(name: str) -> Method:
    """The same of a name that a checked run file holds."""
    method = find(name)
    if method is None:
        raise ValueError(f"there is no method {name!r}; known: {', '.join(METHODS)}, or module:Trainer")
    return method


def method_of(document: Any) -> Method | None:
    """The method of a run file, or the first one if it names none; None for a name that is none."""
    return find(document.get("method", next(iter(METHODS))))


def is_own(name: Any) -> bool:
    """Whether a method is a trainer of the user's, which can be loaded."""
    return isinstance(name, str) and is_function_name(name) and own_method_problem(name) is None


def unread_keys(name: str) -> dict[str, str]:
    """The keys of a run file that have no effect with a method, and why.

    >>> unread_keys("grpo"), unread_keys("dpo")
    ({}, {'rewards': 'draws no answers'})
    """
    facts = method_named(name).facts
    return {key: reason for key, (fact, reason) in READ_BY_SOME.items() if not facts[fact]}


def load(method: Method) -> tuple[type[PolicyConfig], Any]:
    """Configuration and trainer of a method; imports torch."""
    module, _, name = method.trainer.partition(":")
    trainer = vars(importlib.import_module(module))[name]
    return trainer.config_class, trainer
