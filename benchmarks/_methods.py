"""What can be compared: of each method its peer, what has to be equal, and the options of its job.

Standard library only. The scripts of a method are `arms/METHOD_*.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from _processes import TRL, TRL_WITH_PPO, Environment

SIDES = ("chosen", "rejected")
Options = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of training.

    Attributes:
        title: what its page is called.
        peer: where the TRL that has it lives.
        quantities: what of the first step is compared; see `_compare.differences`.
        data: its rows, if none are named.
        options: of its job, with their defaults.
        frozen_gate: the compared step runs in a process of its own, on answers that both are given.
        describe: the options in words.
    """

    title: str
    peer: Environment
    quantities: tuple[str, ...]
    data: str
    options: Options
    frozen_gate: bool
    describe: Callable[[Options], str]


def _pairs(options: Options) -> str:
    lengths = f"up to {options['max_length']} tokens"
    if exact := options["prompt_tokens"]:
        lengths = f"prompts of {exact} and answers of {options['answer_tokens']} tokens"
    return f"{options['pairs']} pairs a step, {lengths}"


def _dpo(options: Options) -> str:
    return f"{_pairs(options)}, reference {options['reference']}"


def _grpo(options: Options) -> str:
    exact = options["prompt_tokens"]
    prompts = f"of {exact} tokens" if exact else "as they are"
    sizes = f"{options['num_prompts']} prompts x {options['num_generations']} answers of {options['new_tokens']} tokens"
    return f"{sizes} a step, prompts {prompts}, beta {options['beta']:g}"


def _ppo(options: Options) -> str:
    exact, count, limit = options["prompt_tokens"], options["num_generations"], options["new_tokens"]
    prompts = f"{options['num_prompts']} prompts " + (f"of {exact} tokens" if exact else "as they are")
    answers = "an answer" if count == 1 else f"{count} answers"
    lengths = f"that end by themselves or after {limit} tokens" if options["until_eos"] else f"of {limit} tokens"
    passes = f"{options['epochs']} passes of one optimizer step over them"
    return f"a step is a round: {answers} {lengths} to each of {prompts}, {passes}"


METHODS = {
    "dpo": Method(
        title="DPO",
        peer=TRL,
        quantities=("loss", "grad_norm", *(f"{of}/{side}" for of in ("logps", "ref_logps") for side in SIDES)),
        data="recipe:spoken-train",
        options={"pairs": 4, "max_length": 512, "prompt_tokens": None, "answer_tokens": None, "reference": "live"},
        frozen_gate=False,
        describe=_dpo,
    ),
    "grpo": Method(
        title="GRPO",
        peer=TRL,
        quantities=("loss", "kl", "grad_norm"),
        data="recipe:sums-train",
        options={
            "num_prompts": 2,
            "num_generations": 8,
            "new_tokens": 64,
            "prompt_tokens": None,
            "micro_batch": None,
            "beta": 0.04,
        },
        frozen_gate=True,
        describe=_grpo,
    ),
    "reward": Method(
        title="reward model",
        peer=TRL,
        quantities=("loss", "accuracy", "scores/means", "grad_norm"),
        data="recipe:spoken-train",
        options={"pairs": 4, "max_length": 512, "prompt_tokens": None, "answer_tokens": None},
        frozen_gate=False,
        describe=_pairs,
    ),
    "ppo": Method(
        title="PPO",
        peer=TRL_WITH_PPO,
        quantities=(
            *(f"tokens/{name}" for name in ("logps", "ref_logps", "values", "advantages", "whitened_advantages")),
            "value_loss",
            "grad_norm",
        ),
        data="recipe:spoken-train",
        options={
            "num_prompts": 8,
            "num_generations": 1,
            "prompt_tokens": None,
            "new_tokens": 48,
            "until_eos": False,
            "epochs": 2,
            "micro_batch": None,
        },
        frozen_gate=True,
        describe=_ppo,
    ),
}
