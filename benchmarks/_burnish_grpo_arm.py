"""Burnish's arm: one job of its GRPOTrainer, in the environment that started the benchmark."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from _grpo_measure import frozen_reward, length_reward, run, training_options
from _measure import read_job
from transformers import AutoModelForCausalLM, AutoTokenizer

from burnish import Completion, GRPOConfig, GRPOTrainer


class FrozenGenerator:
    """Gives the answers of the frozen rollout."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.completion_ids = job["frozen"]["completion_ids"]

    def update_policy(self, model: Any, *, version: int) -> None:
        """The answers stay."""

    def generate(self, prompts: Any, params: Any, *, num_samples: int, **_: Any) -> list[Completion]:
        """The frozen answers, in order; their sampler's log-probs are not read."""
        repeated = [prompt for prompt in prompts for _ in range(num_samples)]
        return [
            Completion(
                prompt_ids=prompt.ids,
                token_ids=torch.tensor(ids),
                logps=torch.zeros(len(ids)),
                kept_mass=torch.ones(len(ids)),
                loss_mask=torch.ones(len(ids), dtype=torch.bool),
                finish_reason="length",
            )
            for prompt, ids in zip(repeated, self.completion_ids, strict=True)
        ]


class FrozenTrainer(GRPOTrainer):
    """Trains on the frozen rollout, its old policy moved by the job's noise."""

    old_noise: torch.Tensor

    def _rescore(self, batch: Any) -> Any:
        scored = super()._rescore(batch)
        return replace(scored, old_logps=scored.old_logps + self.old_noise)


def main() -> None:
    job = read_job()
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])

    def make_trainer(frozen: bool) -> GRPOTrainer:
        options = {**training_options(job, frozen=frozen), "cpu_tuning": job["cpu_tuning"]}
        kind = FrozenTrainer if frozen else GRPOTrainer
        trainer = kind(
            AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
            frozen_reward(job) if frozen else length_reward,
            GRPOConfig(**options, min_new_tokens=0 if frozen else job["new_tokens"], reward_isolation="none"),
            ref_model=AutoModelForCausalLM.from_pretrained(job["reference"], dtype=torch.float32),
            train_dataset=[{"prompt": text} for text in job["prompts"]],
            processing_class=tokenizer,
            generator=FrozenGenerator(job) if frozen else None,
        )
        if frozen:
            trainer.old_noise = torch.tensor(job["frozen"]["old_noise"])
        return trainer

    run(job, make_trainer, library="burnish")


if __name__ == "__main__":
    main()
