"""Evaluation on held-out prompts: the policy answers them, greedily and sampled, and the rewards judge the answers.

The same random numbers in every evaluation, so that what changes is the policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.trainer_utils import EvalLoopOutput

from burnish.generation.base import Generator, Prompt, SamplingParams
from burnish.metrics import MetricBuffer
from burnish.rewards.builtin import last_number
from burnish.rewards.table import text_of
from burnish.rollout.collect import Clock, PromptRow, ScoredGroups, generate_and_score, make_answers
from burnish.rollout.statistics import pass_at_k, powers_of_two
from burnish.rollout.whole import is_solved
from burnish.runtime.distributed import sum_over_ranks
from burnish.trainers.host import Host
from burnish.types import Completion, Mean

if TYPE_CHECKING:
    from datasets import Dataset

    from burnish.rewards import ScoreLog
    from burnish.trainers.rollout_options import OnlineConfig

EVALUATION_ROUND = 2**31 - 1  # a round that training never reaches: keys the randomness of evaluations


@dataclass(frozen=True)
class PromptLoader:
    """This rank's prompts of a data set, in lots. Ranks share the rows; one without rows has empty lots."""

    rows: Sequence[int]
    lot: int
    num_lots: int
    read: Callable[[Sequence[int]], list[PromptRow]]

    def __len__(self) -> int:
        return self.num_lots

    def __iter__(self) -> Iterator[list[PromptRow]]:
        for index in range(self.num_lots):
            yield self.read(self.rows[index * self.lot : (index + 1) * self.lot])


class PromptEvaluationMixin(Host):
    """`evaluate` over prompts. `estimates` holds what it found."""

    args: OnlineConfig

    if TYPE_CHECKING:
        generator: Generator
        sampling: SamplingParams
        scorer: Any

        def prompt_rows(self, dataset: Dataset, indices: Sequence[int]) -> list[PromptRow]: ...

        def tell_rewards(self, log: ScoreLog) -> None: ...

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """This rank's part of the held-out prompts. Rows that are not prepared yet are."""
        held_out: Any = self.eval_dataset
        if isinstance(held_out, dict) and isinstance(eval_dataset, str):
            held_out = held_out[eval_dataset]
        dataset: Any = held_out if eval_dataset is None or isinstance(eval_dataset, str) else eval_dataset
        if dataset is None:
            raise ValueError("evaluation needs eval_dataset: give one to the trainer, or to evaluate()")
        if "prompt_input_ids" not in dataset.column_names:
            dataset = self._prepare_dataset(dataset, "eval")
        rank, size, lot = self.args.process_index, self.args.world_size, self.args.per_device_eval_batch_size
        most = -(-len(dataset) // size)
        return PromptLoader(
            rows=range(rank, len(dataset), size),
            lot=lot,
            num_lots=-(-most // lot),
            read=lambda rows: self.prompt_rows(dataset, rows),
        )

    def evaluation_loop(
        self,
        dataloader: PromptLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Rewards, accuracy, pass@k and maj@k of the policy's answers to all prompts of `dataloader` on all ranks."""
        del description, prediction_loss_only, ignore_keys
        self.generator.update_policy(self.policy, version=self.state.global_step)
        buffer = MetricBuffer()
        num_prompts = torch.zeros((), device=self.args.device)
        for prompts in dataloader:
            for measure in self._measures():
                buffer.add({name: mean.to(self.args.device) for name, mean in measure(prompts).items()})
            num_prompts += len(prompts)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        estimates = buffer.flush(sum_over_ranks)
        named = {f"{metric_key_prefix}_{name}": estimate for name, estimate in estimates.items()}
        self.estimates = {**self.estimates, **named}
        return EvalLoopOutput(
            predictions=(np.empty(0),),
            label_ids=None,
            metrics={name: estimate.mean for name, estimate in named.items()},
            num_samples=int(sum_over_ranks(num_prompts)),
        )

    def _measures(self) -> list[Callable[[list[PromptRow]], dict[str, Mean]]]:
        measures: list[Callable[[list[PromptRow]], dict[str, Mean]]] = []
        if self.args.eval_greedy:
            measures.append(self._measure_greedy)
        if self.args.num_generations_eval != 0:
            measures.append(self._measure_sampled)
        return measures

    def _measure_greedy(self, prompts: list[PromptRow]) -> dict[str, Mean]:
        groups = self._answer(prompts, replace(self.sampling, temperature=0.0), num_samples=1)
        totals = groups.rewards.total()  # (P,)
        return {
            "reward_greedy": _known_mean(totals),
            "accuracy_greedy": Mean.of(is_solved(totals, self.args.solved_reward)),
        }

    def _measure_sampled(self, prompts: list[PromptRow]) -> dict[str, Mean]:
        args = self.args
        size = args.num_generations_eval or args.num_generations
        params = self.sampling
        if args.eval_temperature is not None:
            params = replace(params, temperature=args.eval_temperature)
        groups = self._answer(prompts, params, num_samples=size)
        totals = groups.rewards.total().view(len(prompts), size)  # (P, G)
        solved = is_solved(totals, args.solved_reward)
        right = solved.sum(1)
        lengths = torch.tensor([float(len(completion)) for completion in groups.completions])
        cut = torch.tensor([completion.is_truncated for completion in groups.completions])
        columns = {
            f"rewards/{name}/mean": _known_mean(groups.rewards.rewards[:, index])
            for index, name in enumerate(groups.rewards.names)
        }
        voted = self._majority_is_right(groups, solved)
        return {
            "reward": _known_mean(_group_means(totals)),
            "frac_unscored": Mean.of(totals.isnan()),
            "accuracy": Mean.of(solved.double().mean(1)),
            **columns,
            **{f"pass@{k}": Mean.of(pass_at_k(right, size, k)) for k in powers_of_two(size) if k > 1},
            **({f"maj@{size}": Mean.of(voted)} if size > 1 else {}),
            "completions/mean_length": Mean.of(lengths),
            "completions/clipped_ratio": Mean.of(cut),
            **self.measure_answers(groups, temperature=params.temperature),
        }

    def measure_answers(self, groups: ScoredGroups, *, temperature: float) -> dict[str, Mean]:
        """What else is measured of the sampled answers, the same names whether or not there are any: nothing."""
        del groups, temperature
        return {}

    def _majority_is_right(self, groups: ScoredGroups, solved: Tensor) -> Tensor:
        """(P,) whether the final answer that most samples of a group give is right; of a tie, the first one given."""
        answers = make_answers(groups.prompts, groups.completions, self.tokenizer).completions
        finals = [final_answer(answer) for answer in answers]
        size = groups.num_samples
        voted: list[bool] = []
        for index in range(len(groups.prompts)):
            group = finals[index * size : (index + 1) * size]
            winner = Counter(group).most_common(1)[0][0]
            voted.append(bool(solved[index, group.index(winner)]))
        return torch.tensor(voted, dtype=torch.bool)

    def _answer(self, prompts: list[PromptRow], params: SamplingParams, *, num_samples: int) -> ScoredGroups:
        def generate(rows: Sequence[PromptRow]) -> list[Completion]:
            wanted = [Prompt(ids=row.ids, key=row.key) for row in rows]
            with self.accelerator.autocast():
                return self.generator.generate(
                    wanted, params, num_samples=num_samples, seed=self.args.seed, round_index=EVALUATION_ROUND
                )

        def score(answers: Any, num_tokens: int) -> Any:
            options = {"num_tokens": num_tokens, "trainer_state": self.state, "device": self.args.device}
            table, log = self.scorer.score(answers, **options, frozen=True)
            self.tell_rewards(log)
            return table

        return generate_and_score(prompts, generate, score, tokenizer=self.tokenizer, clock=Clock())


def final_answer(completion: Any) -> str:
    """What an answer comes to, for a vote: its last number, or its text without white space and case.

    >>> final_answer("So it is 7."), final_answer(" Yes ")
    ('7', 'yes')
    """
    text = text_of(completion)
    number = last_number(text)
    return str(number) if number is not None else " ".join(text.casefold().split())


def _known_mean(values: Tensor) -> Mean:
    known = ~values.isnan()
    return Mean.of(values, weight=known.double())


def _group_means(totals: Tensor) -> Tensor:
    """(P,) the mean over the scored answers of a group; NaN where there is none."""
    known = ~totals.isnan()
    return torch.where(known.any(1), totals.nan_to_num(0.0).sum(1) / known.sum(1).clamp(min=1), torch.nan)
