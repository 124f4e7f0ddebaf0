"""The peer's arm: one job of TRL's GRPOTrainer, in the peer's environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from grpo_measure import digit_reward, frozen_reward, run, training_options
from trl import GRPOConfig, GRPOTrainer


class FrozenTrainer(GRPOTrainer):
    """Trains on the frozen rollout, its old policy moved by the job's noise."""

    frozen: dict[str, Any]

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        return self.frozen["completion_ids"], None

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        noise = torch.tensor(self.frozen["old_noise"])
        output["old_per_token_logps"] = output["old_per_token_logps"] + noise
        return output

    def kl_of_loss(self, line: Mapping[str, float]) -> float:
        """With `use_bias_correction_kl` the `kl` that is logged is that of the loss: multiplied by the ratio."""
        return line.get("kl", 0.0)


def make_trainer(
    job: dict[str, Any], policy: Any, tokenizer: Any, *, kind: type = GRPOTrainer, reward: Any = digit_reward
) -> Any:
    own: dict[str, Any] = {}
    if not job["frozen_step"]:
        own["generation_kwargs"] = {"min_new_tokens": job["new_tokens"]}
    if job["beta"]:
        policy.config._name_or_path = job["reference_model"]  # where TRL loads its reference from
    return kind(
        model=policy,
        reward_funcs=reward,
        args=GRPOConfig(**training_options(job), **own),
        train_dataset=Dataset.from_list([{"prompt": text} for text in job["prompts"]]),
        processing_class=tokenizer,
    )


def make_frozen(job: dict[str, Any], policy: Any, tokenizer: Any) -> FrozenTrainer:
    trainer = make_trainer(job, policy, tokenizer, kind=FrozenTrainer, reward=frozen_reward(job))
    trainer.frozen = job["frozen"]
    return trainer


if __name__ == "__main__":
    run(
        library="trl",
        make_trainer=make_trainer,
        make_frozen=make_frozen,
        reference_of=lambda trainer: trainer.ref_model,
    )
