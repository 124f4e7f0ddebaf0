"""What both PPO arms record. Imports the standard library, torch and transformers: it runs in two environments.

An arm runs twice, in a process each: once one round on the frozen rollout, whose log-probs, values and advantages are
compared; then the rounds that are timed, on answers that the library draws itself. A step is a round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from measure import StepClock, common_options, loaded_bytes, start_job, train, write_result
from phases import Phases
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

PHASES = ("generate", "score", "rescore")  # rescore: reference log-probs, values, and Burnish's old log-probs
Job = dict[str, Any]


@dataclass(frozen=True)
class Models:
    """What an arm makes its trainer of, in float32."""

    policy: Any
    reference: Any
    reward: Any
    value: Any
    tokenizer: Any


class RoundClock(StepClock):
    """A clock of rounds.

    Args:
        num_updates: what a library counts as its steps in a round.
    """

    def __init__(self, num_updates: int) -> None:
        super().__init__()
        self.num_updates = num_updates

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Where the first round begins: TRL's loop has no epochs that begin."""
        self.on_epoch_begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Where a round ends."""
        if state.global_step % self.num_updates == 0:
            super().on_step_end()


@dataclass
class Rounds:
    """What each round had: tokens that were drawn, and useful ones: these, and each prompt once."""

    steps: list[dict[str, float]] = field(default_factory=list)

    def add(self, *, prompts: float, answers: int) -> None:
        """Tokens of a round."""
        self.steps.append({"useful_tokens": prompts + answers, "drawn_tokens": answers})


def run(
    *,
    library: str,
    make_trainer: Callable[[Job, Models], Any],
    watch: Callable[[Job, Any, Phases, Rounds], None],
    first_step: Callable[[Job, Models], dict[str, Any]],
    updates_in_round: Callable[[Job], int],
) -> None:
    """Train the job that the command line names, and write its result.

    Args:
        library: the distribution whose version is reported.
        make_trainer: job, models -> a trainer with nothing run yet.
        watch: job, trainer, phases, rounds -> seconds and tokens of every round go there.
        first_step: job, models -> what the round on the frozen rollout came to.
        updates_in_round: job -> what the library counts as its steps in a round.
    """
    job = start_job()
    models = load_models(job)
    if job["frozen_step"]:
        write_result(job, {"first_step": first_step(job, models)})
        return
    loaded = loaded_bytes(models.policy, models.reference, models.reward, models.value)
    trainer, clock, phases = make_trainer(job, models), RoundClock(updates_in_round(job)), Phases(*PHASES)
    rounds = Rounds()
    watch(job, trainer, phases, rounds)
    result = train(job, trainer, library=library, loaded=loaded, clock=clock)
    write_result(job, {**result, "phases": phases.of_steps(result["seconds"]), "steps": rounds.steps})


def load_models(job: Job) -> Models:
    """All four, and the policy's tokenizer with a padding token that ends no text."""
    return Models(
        policy=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
        reference=AutoModelForCausalLM.from_pretrained(job["reference_model"], dtype=torch.float32),
        reward=AutoModelForSequenceClassification.from_pretrained(job["reward_model"], dtype=torch.float32),
        value=AutoModelForSequenceClassification.from_pretrained(job["value_model"], dtype=torch.float32),
        # Not by its own class: transformers 5 writes a name that transformers 4 does not know. TRL pads by it, and
        # answers have to begin where their prompts end.
        tokenizer=PreTrainedTokenizerFast.from_pretrained(
            job["model"], pad_token=job["pad_token"], padding_side="left"
        ),
    )


def training_options(job: Job) -> dict[str, Any]:
    """The options that both libraries get, under the names that both know: TRL's."""
    rows = num_answers(job)
    size = rows if job["micro_batch"] is None else job["micro_batch"]
    options = {
        name: value for name, value in common_options(job).items() if name not in ("max_steps", "disable_dropout")
    }
    return {
        **options,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": rows // size,
        "total_episodes": num_rounds(job) * rows,
        "num_ppo_epochs": 1 if job["frozen_step"] else job["epochs"],
        "num_mini_batches": 1,
        "response_length": job["new_tokens"],
        "temperature": 1.0,
        "kl_coef": 0.05,
        "kl_estimator": "k1",
        "cliprange": 0.2,
        "cliprange_value": 0.2,
        "vf_coef": 0.1,
        "gamma": 1.0,
        "lam": 0.95,
    }


def num_drawn(answers: torch.Tensor, stop: int | None) -> int:
    """Tokens of all rows (N, T) up to the first stop token of each, that one too."""
    ended = torch.zeros_like(answers) if stop is None else (answers == stop).cumsum(1) - (answers == stop).long()
    return int((ended == 0).sum())


def prompts_of(job: Job) -> list[str]:
    """Of the frozen round, or of all rounds that are timed."""
    return job["frozen"]["prompts"] if job["frozen_step"] else job["prompts"]


def num_answers(job: Job) -> int:
    """Of a round."""
    return job["num_prompts"] * job["num_generations"]


def num_rounds(job: Job) -> int:
    """One on the frozen rollout, else as many as are timed and one to warm up."""
    return 1 if job["frozen_step"] else job["num_steps"]


def gradient_norm(model: torch.nn.Module) -> float:
    """Length of the whole gradient."""
    return float(torch.stack([p.grad.double().norm() for p in model.parameters() if p.grad is not None]).norm())


def found_quantities(tokens: dict[str, torch.Tensor], *, value_loss: float, grad_norm: float) -> dict[str, Any]:
    """The result of the compared step: what there is for each token, (N, T), as lists, and two numbers."""
    named = {f"tokens/{name}": values.double().flatten().tolist() for name, values in tokens.items()}
    return {**named, "value_loss": value_loss, "grad_norm": grad_norm}
