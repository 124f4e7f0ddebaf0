"""Burnish's arm: one job of its PPOTrainer, in the environment that started the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from measure import first_log_line
from phases import Phases
from ppo_measure import Job, Models, found_quantities, run, training_options

from burnish import Completion, PPOConfig, PPOTrainer
from burnish.types import RolloutBatch

METHODS = {"generate": "_generate", "score": "_calculate_rewards", "rescore": "_rescore"}


class FrozenGenerator:
    """Gives the answers of the frozen rollout."""

    def __init__(self, completion_ids: list[list[int]]) -> None:
        self.completion_ids = completion_ids

    def update_policy(self, model: Any, *, version: int) -> None:
        """The answers stay."""

    def generate(self, prompts: Any, params: Any, **_: Any) -> list[Completion]:
        """The frozen answers, in order; their sampler's log-probs are not read."""
        return [
            Completion(
                prompt_ids=prompt.ids,
                token_ids=torch.tensor(ids),
                logps=torch.zeros(len(ids)),
                kept_mass=torch.ones(len(ids)),
                loss_mask=torch.ones(len(ids), dtype=torch.bool),
                finish_reason="stop",
            )
            for prompt, ids in zip(prompts, self.completion_ids, strict=True)
        ]


class FrozenTrainer(PPOTrainer):
    """Keeps the round that it trains on."""

    round: RolloutBatch

    def _generate_and_score_completions(self, prompts: Any) -> RolloutBatch:
        self.round = super()._generate_and_score_completions(prompts)
        return self.round


def make_trainer(job: Job, models: Models, *, kind: type = PPOTrainer, **own: Any) -> Any:
    config = PPOConfig(
        **training_options(job),
        cpu_tuning=job["cpu_tuning"],
        num_generations=job["num_generations"],
        min_new_tokens=0 if job["frozen_step"] else job["new_tokens"],
        reward_options={Path(job["reward_model"]).name: {"append_eos": True}},
        shuffle_dataset=False,
    )
    return kind(
        models.policy,
        models.reward,
        config,
        ref_model=models.reference,
        value_model=models.value,
        train_dataset=[{"prompt": text} for text in job["prompts"]],
        processing_class=models.tokenizer,
        reward_processing_classes=models.tokenizer,
        **own,
    )


def watch(trainer: Any, phases: Phases) -> None:
    for phase, method in METHODS.items():
        phases.watch(trainer, method, phase)


def first_step(job: Job, models: Models) -> dict[str, Any]:
    generator = FrozenGenerator(job["frozen"]["completion_ids"])
    trainer = make_trainer(job, models, kind=FrozenTrainer, generator=generator)
    trainer.train()
    batch, line = trainer.round, first_log_line(trainer)
    assert batch.loss_mask.all()
    assert batch.old_logps is not None
    assert batch.ref_logps is not None
    assert batch.values is not None
    assert batch.returns is not None
    tokens = {
        "logps": batch.old_logps,
        "ref_logps": batch.ref_logps,
        "values": batch.values,
        "advantages": batch.returns - batch.values,
        "whitened_advantages": batch.advantages,
    }
    return found_quantities(tokens, value_loss=line["loss/value_avg"], grad_norm=line["grad_norm"])


if __name__ == "__main__":
    run(
        library="burnish",
        make_trainer=make_trainer,
        watch=watch,
        first_step=first_step,
        updates_in_round=lambda job: job["epochs"],
    )
