"""What both GRPO arms record. Imports the standard library, torch and transformers: it runs in two environments.

An arm runs twice, in a process each: once one step on the frozen rollout, whose loss, KL and gradient norm are
compared; then the steps that are timed, on answers that the library draws itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from measure import StepClock, common_options, first_log_line, loaded_bytes, start_job, train, write_result
from phases import Phases
from transformers import AutoModelForCausalLM, AutoTokenizer

PHASES = {"generate": "_generate", "score": "_calculate_rewards"}
Job = dict[str, Any]


def run(
    *,
    library: str,
    make_trainer: Callable[[Job, Any, Any], Any],
    make_frozen: Callable[[Job, Any, Any], Any],
    reference_of: Callable[[Any], torch.nn.Module],
) -> None:
    """Train the job that the command line names, and write its result.

    Args:
        library: the distribution whose version is reported.
        make_trainer: job, policy, tokenizer -> a trainer with nothing run yet.
        make_frozen: the same for the frozen rollout; `kl_of_loss` of the trainer is its KL, as the loss has it.
        reference_of: a trainer with a reference -> its model.
    """
    job = start_job()
    make = make_frozen if job["frozen_step"] else make_trainer
    policy = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    trainer = make(job, policy, AutoTokenizer.from_pretrained(job["model"]))
    if job["frozen_step"]:
        trainer.train()
        line = first_log_line(trainer)
        first = {"loss": line["loss"], "kl": trainer.kl_of_loss(line), "grad_norm": line["grad_norm"]}
        write_result(job, {"first_step": first})
        return
    loaded = loaded_bytes(policy, *([reference_of(trainer)] if job["beta"] else []))
    clock, phases = StepClock(), Phases(*PHASES)
    for phase, method in PHASES.items():
        phases.watch(trainer, method, phase)
    result = train(job, trainer, library=library, loaded=loaded, clock=clock)
    drawn = job["num_prompts"] * job["num_generations"] * job["new_tokens"]
    step = {"useful_tokens": drawn + job["prompt_tokens_a_step"], "drawn_tokens": drawn}
    result["steps"] = [step for _ in result["seconds"]]
    write_result(job, {**result, "phases": phases.of_steps(result["seconds"])})


def training_options(job: Job) -> dict[str, Any]:
    """The options that both libraries get, under the names that both know."""
    frozen = job["frozen_step"]
    rows = job["num_prompts"] * job["num_generations"]
    size = rows if frozen or job["micro_batch"] is None else job["micro_batch"]
    return {
        **common_options(job),
        "max_steps": 1 if frozen else job["num_steps"],
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": rows // size,
        "num_generations": job["num_generations"],
        "num_iterations": 2 if frozen else 1,  # two passes: then both libraries score the old policy
        "max_completion_length": job["new_tokens"],
        "temperature": 1.0,
        "loss_type": "grpo",
        "beta": job["beta"],
        "epsilon": 0.2,
        "scale_rewards": "group",
        "use_bias_correction_kl": True,
        "shuffle_dataset": False,
    }


def frozen_reward(job: Job) -> Callable[..., list[float]]:
    """The rewards of the frozen rollout, by the answer's position."""

    def frozen(completions: list[Any], **_: Any) -> list[float]:
        assert len(completions) == len(job["frozen"]["rewards"])
        return list(job["frozen"]["rewards"])

    return frozen


def digit_reward(completion_ids: list[Any], **_: Any) -> list[float]:
    """Something cheap that differs within a group, whatever the tokens mean."""
    return [float(sum(int(token) for token in ids) % 10) / 10 for ids in completion_ids]
