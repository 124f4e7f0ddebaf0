"""The peer's arm: one job of TRL's GRPOTrainer, in the peer's environment."""

from __future__ import annotations

from typing import Any

import torch
from _grpo_measure import frozen_reward, length_reward, run, training_options
from _measure import read_job
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer


class FrozenTrainer(GRPOTrainer):
    """Trains on the frozen rollout, its old policy moved by the job's noise."""

    job: dict[str, Any]

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        return self.job["frozen"]["completion_ids"], None

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        noise = torch.tensor(self.job["frozen"]["old_noise"])
        output["old_per_token_logps"] = output["old_per_token_logps"] + noise
        return output


def main() -> None:
    job = read_job()
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])

    def make_trainer(frozen: bool) -> GRPOTrainer:
        policy = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
        policy.config._name_or_path = job["reference"]  # where TRL loads its reference from
        own = {} if frozen else {"generation_kwargs": {"min_new_tokens": job["new_tokens"]}}
        kind = FrozenTrainer if frozen else GRPOTrainer
        trainer = kind(
            model=policy,
            reward_funcs=frozen_reward(job) if frozen else length_reward,
            args=GRPOConfig(**training_options(job, frozen=frozen), **own),
            train_dataset=Dataset.from_list([{"prompt": text} for text in job["prompts"]]),
            processing_class=tokenizer,
        )
        if frozen:
            trainer.job = job
        return trainer

    run(job, make_trainer, library="trl")


if __name__ == "__main__":
    main()
