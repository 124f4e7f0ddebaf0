"""The peer's arm: one job of the PPOTrainer of TRL 0.25, in an environment of its own.

Its `train` is one function: what it calls by name in its module is watched and, for the gate, replaced there.
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from phases import Phases
from ppo_measure import (
    Job,
    Models,
    Rounds,
    found_quantities,
    gradient_norm,
    num_drawn,
    prompts_of,
    run,
    training_options,
)
from trl import PPOConfig, PPOTrainer
from trl.trainer import ppo_trainer as library


def make_trainer(job: Job, models: Models) -> PPOTrainer:
    tokenizer = models.tokenizer
    rows = [{"input_ids": tokenizer(text, add_special_tokens=False)["input_ids"]} for text in prompts_of(job)]
    # TRL draws one answer to a prompt: several are as many rows.
    dataset = Dataset.from_list([row for row in rows for _ in range(job["num_generations"])])
    trainer = PPOTrainer(
        args=PPOConfig(**training_options(job), num_sample_generations=0, stop_token=stop_token(job)),
        processing_class=tokenizer,
        model=models.policy,
        ref_model=models.reference,
        reward_model=models.reward,
        value_model=models.value,
        train_dataset=dataset,
        eval_dataset=dataset,
    )
    # Else accelerate has the optimizer step after each micro-batch of the last round that a pass over the prompts has.
    trainer.accelerator.gradient_state.plugin_kwargs["sync_with_dataloader"] = False
    return trainer


def stop_token(job: Job) -> str | None:
    """None: every answer gets its full length."""
    return "eos" if job["until_eos"] and not job["frozen_step"] else None


def watch(job: Job, trainer: Any, phases: Phases, rounds: Rounds) -> None:
    generate = library.batch_generation

    def counting(model: Any, queries: torch.Tensor, size: int, pad: int, config: Any) -> Any:
        rows, logits = generate(model, queries, size, pad, config)
        drawn = num_drawn(rows[:, queries.shape[1] :], trainer.stop_token_id)
        rounds.add(prompts=int((queries != pad).sum()) / job["num_generations"], answers=drawn)
        return rows, logits

    library.batch_generation = counting
    phases.watch(library, "batch_generation", "generate")
    phases.watch(library, "get_reward", lambda model: "score" if model is trainer.reward_model else "rescore")
    phases.watch(library, "forward", lambda model: "rescore" if model is trainer.ref_model else None)


class FrozenRound:
    """Replaces generation by the frozen answers, and keeps what `train` computes of them.

    Attributes:
        order: which row of the frozen rollout stands where: TRL shuffles its prompts.
        kept: name -> the results, in the order of the calls.
    """

    def __init__(self, frozen: dict[str, Any]) -> None:
        self.answers: dict[tuple[int, ...], list[int]] = {}
        for row, ids in enumerate(frozen["prompt_ids"]):
            self.answers.setdefault(tuple(ids), []).append(row)
        self.completion_ids = torch.tensor(frozen["completion_ids"])
        self.order: list[int] = []
        self.kept: dict[str, list[torch.Tensor]] = {}

    def batch_generation(self, model: Any, queries: torch.Tensor, _: int, pad: int, config: Any) -> Any:
        """The frozen answers, and the logits that drew them, had the policy drawn them."""
        self.order = [self.answers[tuple(ids)].pop(0) for ids in queries.tolist()]
        rows = torch.cat([queries, self.completion_ids[self.order]], dim=1)
        logits = library.forward(model, rows, pad).logits[:, queries.shape[1] - 1 : -1]
        return rows, logits / config.temperature

    def keep(self, name: str, function: Any, pick: Any) -> Any:
        """The function, with what `pick` finds in its arguments and result kept."""

        def keeping(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self.kept.setdefault(name, []).append(pick(args, result).detach().clone())
            return result

        return keeping

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """(N, T) in the order of the frozen rollout."""
        return values[torch.tensor(self.order).argsort()]


def first_step(job: Job, models: Models) -> dict[str, Any]:
    trainer, frozen, norms = make_trainer(job, models), FrozenRound(job["frozen"]), list[float]()
    start, step = len(job["frozen"]["prompt_ids"][0]) - 1, trainer.optimizer.step
    own = {
        "batch_generation": frozen.batch_generation,
        "selective_log_softmax": frozen.keep("logps", library.selective_log_softmax, lambda _, result: result),
        "get_reward": frozen.keep("values", library.get_reward, lambda _, result: result[0][:, start:-1, 0]),
        "masked_whiten": frozen.keep(
            "advantages", library.masked_whiten, lambda args, result: torch.stack([args[0], result])
        ),
    }
    for name, function in own.items():
        setattr(library, name, function)

    def recording_step(*args: Any, **kwargs: Any) -> Any:
        norms.append(gradient_norm(trainer.model))
        return step(*args, **kwargs)

    trainer.optimizer.step = recording_step
    trainer.train()
    advantages, whitened = frozen.kept["advantages"][0]
    tokens = {
        "logps": frozen.kept["logps"][0],
        "ref_logps": frozen.kept["logps"][1],
        "values": frozen.kept["values"][0],
        "advantages": advantages,
        "whitened_advantages": whitened,
    }
    line = next(line for line in trainer.state.log_history if "loss/value_avg" in line)
    ordered = {name: frozen.rows(values) for name, values in tokens.items()}
    return found_quantities(ordered, value_loss=line["loss/value_avg"], grad_norm=norms[-1])


if __name__ == "__main__":
    run(
        library="trl",
        make_trainer=make_trainer,
        watch=watch,
        first_step=first_step,
        updates_in_round=lambda _: 1,
    )
