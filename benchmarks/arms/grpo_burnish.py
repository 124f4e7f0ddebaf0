"""Burnish's arm: one job of its GRPOTrainer, in the environment that started the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from frozen_answers import FrozenGenerator
from grpo_measure import digit_reward, frozen_reward, run, training_options
from transformers import AutoModelForCausalLM

from burnish import GRPOConfig, GRPOTrainer
from burnish.types import LossOutput, RolloutBatch


class FrozenTrainer(GRPOTrainer):
    """Trains on the frozen rollout, its old policy moved by the job's noise."""

    old_noise: torch.Tensor
    kl_total, num_rows = 0.0, 0

    def _rescore(self, batch: RolloutBatch) -> RolloutBatch:
        scored = super()._rescore(batch)
        assert scored.old_logps is not None
        return replace(scored, old_logps=scored.old_logps + self.old_noise)

    def _compute_loss(self, model: Any, batch: RolloutBatch) -> LossOutput:
        output = super()._compute_loss(model, batch)
        if torch.is_grad_enabled():  # a micro-batch comes in parts
            # One mean a row. The answers are of one length, so the mean over rows is the mean over tokens.
            self.kl_total += sum(float(term.losses.detach().sum()) for term in output.terms if term.name == "kl")
            self.num_rows += len(batch)
        return output

    def kl_of_loss(self, line: Mapping[str, float]) -> float:
        """The term's mean; the `kl` that is logged is not multiplied by the ratio."""
        del line
        return self.kl_total / self.num_rows


def make_trainer(
    job: dict[str, Any],
    policy: Any,
    tokenizer: Any,
    *,
    kind: type = GRPOTrainer,
    reward: Any = digit_reward,
    **own: Any,
) -> Any:
    config = GRPOConfig(
        **training_options(job),
        cpu_tuning=job["cpu_tuning"],
        min_new_tokens=0 if job["frozen_step"] else job["new_tokens"],
        reward_isolation="none",
    )
    reference = {}
    if job["beta"]:
        reference["ref_model"] = AutoModelForCausalLM.from_pretrained(job["reference_model"], dtype=torch.float32)
    rows = [{"prompt": text} for text in job["prompts"]]
    return kind(policy, reward, config, train_dataset=rows, processing_class=tokenizer, **reference, **own)


def make_frozen(job: dict[str, Any], policy: Any, tokenizer: Any) -> FrozenTrainer:
    frozen = job["frozen"]
    generator = FrozenGenerator(frozen["completion_ids"], finish_reason="length")
    trainer = make_trainer(job, policy, tokenizer, kind=FrozenTrainer, reward=frozen_reward(job), generator=generator)
    trainer.old_noise = torch.tensor(frozen["old_noise"])
    return trainer


if __name__ == "__main__":
    run(
        library="burnish",
        make_trainer=make_trainer,
        make_frozen=make_frozen,
        reference_of=lambda trainer: trainer.reference.model,
    )
