"""Answers to held-out prompts at each evaluation, and how often a judge prefers them.

rows of this rank -> answers of the policy -> those of the reference, or the chosen ones -> judge -> sums -> files
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import ProcessorMixin

from burnish.data.kwise import row_pairs
from burnish.data.sampler import RowDataset
from burnish.data.schema import KWISE_IDS, PROMPT_COLUMN
from burnish.generation.base import Prompt
from burnish.generation.decode import check_cache
from burnish.generation.native import NativeGenerator
from burnish.intervals import wilson
from burnish.metrics import Estimate, MetricBuffer
from burnish.models.adapters import plain_model
from burnish.models.introspect import evaluation_mode
from burnish.models.moving import MovingReference
from burnish.models.padding import filling_id
from burnish.runtime.distributed import gather_lines, sum_over_ranks
from burnish.trainers.host import Host
from burnish.trainers.judging import Contest, Judge
from burnish.types import Mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from burnish.generation.base import SamplingParams
    from burnish.models.reference import Reference
    from burnish.trainers.sampling_options import SamplingOptions
    from burnish.types import Completion, TokenBatch


@dataclass(frozen=True)
class EvalAnswer:
    """An answer to a held-out prompt.

    Attributes:
        row_id: of the data set.
        prompt: the prompt's text, as the chat template words it, without special tokens.
        completion: the policy's answer.
        num_tokens: its length, the end token included.
        is_cut: it did not end within `eval_max_new_tokens`.
        compared_with: the answer it is judged against, or None without a judge.
        score: 1 won, 0 lost, 0.5 a tie; None: not judged.
    """

    row_id: int
    prompt: str
    completion: str
    num_tokens: int
    is_cut: bool
    compared_with: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class EvalAnswers:
    """The answers of one evaluation of one data set, of all processes, in the order of the rows.

    Attributes:
        step: optimizer steps of the policy.
        data_set: the prefix of the evaluation's metrics: `eval`, `eval_<name>`.
        against: what the answers are compared with, in words; None without a judge.
        win_rate: how often the policy wins, or None without a judge.
    """

    step: int
    data_set: str
    against: str | None
    win_rate: Estimate | None
    answers: tuple[EvalAnswer, ...]


class SamplingMixin(Host):
    """Answering prompts at evaluation; the latest answers are in `eval_answers`."""

    if TYPE_CHECKING:
        args: SamplingOptions  # pyright: ignore[reportIncompatibleVariableOverride]
        reference: Reference

    def prepare_sampling(self) -> None:
        """Look for what makes answering impossible, before training.

        Raises:
            ValueError: no held-out rows, or prompts with images; or the judge is no function.
            UnsupportedModelError: the model does not decode through a cache.
        """
        self.eval_answers = {}
        self._reference_answers: dict[tuple[int, ...], EvalAnswer] = {}
        self._generators: dict[type, NativeGenerator] = {}  # each looks once whether models of a class can decode
        self.judge = None if self.args.judge is None else Judge.of(self.args.judge)
        if not self.args.generate_during_eval:
            return
        if self.eval_dataset is None:
            raise ValueError("generate_during_eval=True answers prompts of eval_dataset, and there is none: pass one")
        if isinstance(self.processing_class, ProcessorMixin):
            raise ValueError(
                "generate_during_eval=True is not built for models that read images: set it to False; "
                "docs/limits.md lists what is missing"
            )
        with evaluation_mode(self.model):
            check_cache(plain_model(self.model))

    def draw(
        self, batch: TokenBatch, rows: Tensor, params: SamplingParams, *, model: nn.Module | None = None
    ) -> list[Completion]:
        """An answer to the prompt of each of some rows (K) of a parcel; its random numbers hang on row and step.

        Args:
            batch: the parcel.
            rows: (K,) their places in it.
            params: the distribution that answers are drawn from.
            model: who answers; the policy if None.
        """
        places = batch.prompt_index[rows]
        ids = [batch.prompt_ids[place][batch.prompt_mask[place]].cpu() for place in places]
        keys = map(int, batch.row_id[rows])
        prompts = [Prompt(ids=tokens, key=key) for tokens, key in zip(ids, keys, strict=True)]
        generator = self._generator_of(model if model is not None else self.policy)
        with self.accelerator.autocast():
            return generator.generate(
                prompts, params, num_samples=1, seed=self.args.seed, round_index=self.state.global_step
            )

    def _generator_of(self, model: nn.Module) -> NativeGenerator:
        plain = plain_model(model)
        fill = filling_id(self.tokenizer, self.end_token_ids)
        generator = self._generators.setdefault(type(plain), NativeGenerator(plain, pad_token_id=fill))
        generator.update_policy(plain, version=self.state.global_step)
        return generator

    def evaluate_answers(self, dataloader: Any, prefix: str) -> dict[str, Estimate]:
        """Answer `num_eval_samples` prompts spread over the data set, each rank its share, and sum up."""
        if not self.args.generate_during_eval:
            return {}
        rows = self._sampled_rows(dataloader.dataset)
        answers, against = self._answer(self.policy, rows), None
        if self.judge is not None:
            others, against = self._opponents(rows)
            answers = _judged(self.judge, answers, others, seed=self.args.seed)
        estimates = self._sum_up(answers)
        self._keep(prefix, answers, against, estimates.get("win_rate"))
        return estimates

    def _sampled_rows(self, dataset: RowDataset) -> list[dict[str, Any]]:
        count = min(self.args.num_eval_samples, len(dataset))
        chosen = [number * len(dataset) // count for number in range(count)]
        return dataset.__getitems__(chosen[self.args.process_index :: self.args.world_size])

    def _answer(self, model: nn.Module, rows: Sequence[dict[str, Any]]) -> list[EvalAnswer]:
        """The model's answers. Policy and reference draw with the same random numbers, at every evaluation."""
        prompts = [Prompt(ids=torch.tensor(row[PROMPT_COLUMN]), key=row["row_id"]) for row in rows]
        generator = self._generator_of(model)
        params = self.args.eval_sampling(self.end_token_ids)
        with self.accelerator.autocast():
            completions = generator.generate(prompts, params, num_samples=1, seed=self.args.seed, round_index=0)
        return [
            EvalAnswer(
                row_id=row["row_id"],
                prompt=self._text(row[PROMPT_COLUMN]),
                completion=self._text(completion.token_ids.tolist()),
                num_tokens=len(completion),
                is_cut=completion.is_truncated,
            )
            for row, completion in zip(rows, completions, strict=True)
        ]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _opponents(self, rows: Sequence[dict[str, Any]]) -> tuple[list[str], str]:
        """The answers to compare with, and what they are: the reference's where it can answer, else the chosen ones."""
        with self.reference.answering() as model:
            if model is None:
                chosen = [self._text(preferred_ids(row)) for row in rows]
                return chosen, f"the chosen answers of the data set (reference: {self.reference.description})"
            known = {} if isinstance(self.reference, MovingReference) else self._reference_answers
            new = [row for row in rows if _identity(row) not in known]
            known |= dict(zip(map(_identity, new), self._answer(model, new), strict=True))
        return [known[_identity(row)].completion for row in rows], f"the reference ({self.reference.description})"

    def _sum_up(self, answers: Sequence[EvalAnswer]) -> dict[str, Estimate]:
        def mean(values: Sequence[float]) -> Mean:
            return Mean.of(torch.tensor(values, dtype=torch.float32, device=self.args.device))

        buffer = MetricBuffer()
        buffer.add({"completions/mean_length": mean([answer.num_tokens for answer in answers])})
        buffer.add({"completions/clipped_ratio": mean([answer.is_cut for answer in answers])})
        if self.judge is not None:
            buffer.add({"win_rate": mean([answer.score for answer in answers if answer.score is not None])})
        return buffer.flush(sum_over_ranks)

    def _keep(self, prefix: str, answers: Sequence[EvalAnswer], against: str | None, win_rate: Estimate | None) -> None:
        """Bring the answers of all ranks together, and write them to the run directory."""
        lines = gather_lines([json.dumps(asdict(answer)) for answer in answers], self.args.device)
        everyones = sorted((EvalAnswer(**json.loads(line)) for line in lines), key=lambda answer: answer.row_id)
        step = self.state.global_step
        found = EvalAnswers(step, prefix, against, win_rate, tuple(everyones))
        self.eval_answers = {**self.eval_answers, prefix: found}
        if self.run is None:
            return
        path = self.run.completions(step, [asdict(answer) for answer in everyones], name=prefix)
        event: dict[str, Any] = {"step": step, "data_set": prefix, "path": path, "num_answers": len(everyones)}
        if self.judge is not None:
            event["num_equal"] = sum(answer.completion == answer.compared_with for answer in everyones)
            event["num_unjudged"] = sum(answer.score is None for answer in everyones)
            event |= {"judge": self.judge.name, "against": against}
        self.tell("answers", answers_line(found), show=False, **event)


def _identity(row: dict[str, Any]) -> tuple[int, ...]:
    """All that the reference's answer depends on."""
    return (row["row_id"], *row[PROMPT_COLUMN])


def preferred_ids(row: dict[str, Any]) -> list[int]:
    """The answer of a prepared row that is preferred to the others; the first of several."""
    answers = row[KWISE_IDS] if KWISE_IDS in row else [row["chosen_input_ids"], row["rejected_input_ids"]]
    pairs = row_pairs(row)
    beaten = {worse for _, worse in pairs}
    return answers[next((better for better, _ in pairs if better not in beaten), 0)]


def answers_line(found: EvalAnswers) -> str:
    """What an evaluation's answers came to, in one line."""
    cut = sum(answer.is_cut for answer in found.answers)
    line = f"{found.data_set}: {len(found.answers)} prompts answered{f', {cut} answers cut' if cut else ''}"
    if found.against is None:
        return line
    if found.win_rate is None:
        return f"{line}, none judged against {found.against}"
    interval = wilson(found.win_rate.mean, found.win_rate.weight)
    rate = f"win rate {found.win_rate.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    unjudged = sum(answer.score is None for answer in found.answers)
    return f"{line}, {rate} against {found.against}{f', {unjudged} not judged' if unjudged else ''}"


def _judged(judge: Judge, answers: Sequence[EvalAnswer], others: Sequence[str], *, seed: int) -> list[EvalAnswer]:
    contests = [
        Contest(answer.row_id, answer.prompt, answer.completion, other)
        for answer, other in zip(answers, others, strict=True)
    ]
    scores = judge.scores(contests, seed=seed)
    return [
        replace(answer, compared_with=other, score=score)
        for answer, other, score in zip(answers, others, scores, strict=True)
    ]
