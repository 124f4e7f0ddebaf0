"""Burnish's arm: one job of its PPOTrainer, in the environment that started the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frozen_answers import FrozenGenerator
from measure import first_log_line
from phases import Phases
from ppo_measure import Job, Models, Rounds, found_quantities, prompts_of, run, training_options

from burnish import PPOConfig, PPOTrainer
from burnish.types import RolloutBatch

METHODS = {"generate": "_generate", "score": "_calculate_rewards", "rescore": "_rescore"}


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
        min_new_tokens=0 if job["frozen_step"] or job["until_eos"] else job["new_tokens"],
        reward_options={Path(job["reward_model"]).name: {"append_eos": True}},
        shuffle_dataset=False,
    )
    return kind(
        models.policy,
        models.reward,
        config,
        ref_model=models.reference,
        value_model=models.value,
        train_dataset=[{"prompt": text} for text in prompts_of(job)],
        processing_class=models.tokenizer,
        reward_processing_classes=models.tokenizer,
        **own,
    )


def watch(_: Job, trainer: Any, phases: Phases, rounds: Rounds) -> None:
    generate = trainer._generate

    def counting(prompts: Any) -> Any:
        completions = generate(prompts)
        rounds.add(
            prompts=sum(len(prompt.ids) for prompt in prompts),
            answers=sum(len(completion.token_ids) for completion in completions),
        )
        return completions

    trainer._generate = counting
    for phase, method in METHODS.items():
        phases.watch(trainer, method, phase)


def first_step(job: Job, models: Models) -> dict[str, Any]:
    generator = FrozenGenerator(job["frozen"]["completion_ids"], finish_reason="stop")
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
