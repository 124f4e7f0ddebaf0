"""OnlineTrainer: a round of rollouts is a queue of optimizer steps. A subclass defines `loss`, and nothing else.

    queue empty?  -> prompts of the round -> generate -> score -> re-score -> credit -> cut into steps -> queue
    pop one step  -> PolicyTrainer

Rounds happen inside `get_batch_samples`, between optimizer steps, so that a checkpoint never falls into one.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from burnish.advantages import advantages, compute_advantages
from burnish.data.prompt_stream import PromptStream
from burnish.data.prompts import PromptReport, check_prompt_columns, prepare_prompts
from burnish.data.sources import load_rows
from burnish.generation.base import Generator, Prompt
from burnish.models.adapters import plain_model
from burnish.models.padding import filling_id
from burnish.rollout.collect import PromptRow, Refill, RolloutSteps, collect
from burnish.rollout.plan import cut_rows, refuse_cut_groups
from burnish.rollout.whole import WholeRound
from burnish.runtime.distributed import largest_over_ranks, sum_over_ranks
from burnish.trainers.base import PolicyTrainer
from burnish.trainers.online_reference import OnlineReferenceMixin
from burnish.trainers.positions import check_positions
from burnish.trainers.prompt_evaluation import PromptEvaluationMixin
from burnish.trainers.rollout_options import OnlineConfig
from burnish.trainers.round_queue import RoundQueue
from burnish.trainers.round_report import RoundReport
from burnish.trainers.rows import chosen_splits
from burnish.trainers.scoring import make_scorer
from burnish.types import Answers, Completion, Mean, RewardTable, RolloutBatch, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from burnish.data.lint import Finding
    from burnish.models.reference import ModelReference
    from burnish.registry import Entry
    from burnish.rewards import ScoreLog
    from burnish.runtime.state import Stateful

OWN_COLUMNS = ("row_id", "prompt", "prompt_input_ids")  # of prepared rows: what reward functions are not given


class OnlineTrainer(OnlineReferenceMixin, PromptEvaluationMixin, PolicyTrainer, ABC):
    """Trains a policy on answers that it draws itself. Abstract: a subclass defines `loss`.

    A subclass states what its loss needs: `reads_reference`, another model's log-probs (`compute_ref_log_probs`) or
    whole distributions (`compute_teacher`); `compares_answers`, all answers to a prompt in one micro-batch; and
    `learns_from_rewards = False` if it reads no advantage, so that rewards only measure.

    Arguments as in `PolicyTrainer`, and:

    Args:
        reward_funcs: one or several: functions, names of built-in ones, sequence classifiers or their names.
        reward_processing_classes: the tokenizers of the classifiers; loaded by name if None.
        generator: answers the prompts; the model itself, in this process, if None.
        ref_model: the reference, a model, a name, or a `ModelReference`, of trainers that read one; if None, a frozen
            copy of the policy, taken now.
        train_dataset: rows with a `prompt`; other columns go to the reward functions.
    """

    config_class = OnlineConfig
    args: OnlineConfig
    advantage: Any = "group"  # a row of the table, or a function; a subclass may read an option instead
    compares_answers: ClassVar[bool] = False  # the loss reads a group as a whole: no micro-batch may cut one
    learns_from_rewards: ClassVar[bool] = True  # a round whose rewards say nothing teaches nothing; else they measure

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any,
        args: OnlineConfig | None = None,
        *,
        reward_processing_classes: Any = None,
        generator: Generator | None = None,
        ref_model: str | PreTrainedModel | ModelReference | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        options = self.checked_args(args)
        self.refuse_idle_reference(ref_model, options)
        self.model_adapter_name = options.model_adapter_name
        self.plan = options.round_plan()
        if self.compares_answers:
            refuse_cut_groups(self.plan)
        self.queue, self.round_report = RoundQueue(), RoundReport()
        self.credit_entry = self.bind_advantage(options)
        self.scorer = make_scorer(reward_funcs, reward_processing_classes, options)
        train_dataset, eval_dataset = chosen_splits(train_dataset, eval_dataset)
        given = self._checked_prompts(train_dataset=train_dataset, eval_dataset=eval_dataset)
        super().__init__(model, options, **given, **kwargs)
        self.scorer.to(options.device)
        if not (self.end_token_ids or options.stop_strings or generator):
            raise ValueError(
                "neither the tokenizer nor the model's generation config has an end-of-sequence token, so no answer "
                "would end by itself: set tokenizer.eos_token (or generation_config.eos_token_id), or stop_strings"
            )
        reports = {name: report for name, report in self.data_reports.items() if isinstance(report, PromptReport)}
        longest = {name: report.max_length for name, report in reports.items()}
        check_positions(plain_model(self.policy).config, longest, max_new_tokens=options.max_completion_length or 0)
        self.pad_token_id = filling_id(self.tokenizer, self.end_token_ids)
        self.sampling = options.sampling_params(end_token_ids=self.end_token_ids)
        self.generator: Generator = generator or options.make_generator(
            self.policy, pad_token_id=self.pad_token_id, tokenizer=self.tokenizer
        )
        window = options.curriculum_window
        self.prompt_stream = PromptStream(
            len(self.train_dataset) if isinstance(self.train_dataset, Dataset) else 1,
            seed=options.seed if options.data_seed is None else options.data_seed,
            shuffle=options.shuffle_dataset,
            window=None if window is None else (window[0], window[1]),
        )
        self.prepare_reference(ref_model)

    def advantage_choice(self, options: Any) -> Any:
        """The name of the advantage, or a callable."""
        del options
        return self.advantage

    def bind_advantage(self, options: Any) -> Entry[Any, Tensor]:
        """The function that `_credit` makes advantages with, its hyper-parameters bound."""
        return advantages.bind([self.advantage_choice(options)], options)[0]

    def objective_lines(self) -> list[str]:
        """How rewards become advantages, and what to watch, for a person."""
        return [f"advantage {self.credit_entry.name}"]

    # What prompts are.

    def _prepare_dataset(self, dataset: Any, name: str) -> Dataset:
        """Rows with a prompt -> token ids; what was cut, dropped or left out is in `data_reports[name]`."""
        args = self.args
        with args.main_process_first(desc=f"tokenising {name}"):
            prepared, report = prepare_prompts(
                load_rows(dataset),
                self.tokenizer,
                max_prompt_length=args.max_prompt_length,
                template_kwargs=args.chat_template_kwargs,
                on_bad_row=args.on_bad_row,
                name=name,
            )
        self.data_reports[name] = report
        return prepared

    def _lint(self) -> list[Finding]:
        return []

    def _make_collator(self) -> Any:
        return list

    def _checked_prompts(self, **given: Any) -> dict[str, Any]:
        """The data sets, loaded, with the columns that prompts and reward functions need: known before the model is."""
        loaded: dict[str, Any] = {}
        for argument, data in given.items():
            parts = data if isinstance(data, Mapping) else {argument.removesuffix("_dataset"): data}
            rows = {name: load_rows(part) for name, part in parts.items() if part is not None}
            for name, dataset in rows.items():
                check_prompt_columns(dataset, name)
                self.scorer.check_columns(set(dataset.column_names).difference(OWN_COLUMNS))
            loaded[argument] = rows if isinstance(data, Mapping) else next(iter(rows.values()), None)
        return loaded

    @property
    def prompts(self) -> Dataset:
        """The prepared training rows."""
        if not isinstance(self.train_dataset, Dataset):
            raise ValueError("training needs train_dataset: rows with a prompt, all of them, not a stream")
        return self.train_dataset

    def prompt_rows(self, dataset: Dataset, indices: Sequence[int]) -> list[PromptRow]:
        """Rows of a prepared data set as rollouts take them."""
        rows = (dataset[index] for index in indices)
        return [
            PromptRow(
                row_id=row["row_id"],
                ids=torch.tensor(row["prompt_input_ids"]),
                prompt=row["prompt"],
                columns={name: value for name, value in row.items() if name not in OWN_COLUMNS},
            )
            for row in rows
        ]

    def get_train_dataloader(self) -> DataLoader[int]:
        """One number for each micro-batch of an epoch: the Trainer counts steps by it, the queue holds the parcels."""
        count = self.plan.micro_batches_in_epoch(len(self.prompts))
        return DataLoader(range(count), batch_size=1, generator=torch.Generator())  # pyright: ignore[reportArgumentType]

    def num_examples(self, dataloader: Any) -> int:
        """Prompts of the data set that a loader stands for."""
        return len(self.prompts)

    # A round.

    def take_parcels(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> Sequence[TokenBatch]:
        """The micro-batches of the next optimizer step, out of the queue; an empty queue gets a round first."""
        for _ in zip(range(num_batches), epoch_iterator, strict=False):
            pass
        if self.queue.is_empty:
            self.queue.fill(self._next_round(), iterations=self.plan.iterations)
        return [parcel.to(device) for parcel in self.queue.take()]

    def _next_round(self) -> list[list[RolloutBatch]]:
        """A round, cut into optimizer steps and these into micro-batches."""
        batch = self._generate_and_score_completions(self._draw_prompts(self.plan.prompts_per_process))
        return [
            [batch.take(torch.tensor(rows, device=self.args.device)) for rows in step] for step in cut_rows(self.plan)
        ]

    def _draw_prompts(self, count: int) -> list[PromptRow]:
        """This rank's part of the next prompts: every rank draws for all, and takes `count` of its own.

        They are dealt in turn, so that the prompts of an optimizer step do not depend on the number of ranks.
        """
        rank, size = self.args.process_index, self.args.world_size
        visits = self.prompt_stream.take(count * size)[rank::size]
        rows = self.prompt_rows(self.prompts, [visit.row for visit in visits])
        return [replace(row, epoch=visit.epoch) for row, visit in zip(rows, visits, strict=True)]

    def _generate_and_score_completions(self, prompts: Sequence[PromptRow]) -> RolloutBatch:
        """One round over this rank's prompts: N answers with their advantages."""
        args = self.args
        self.generator.update_policy(self.policy, version=self.state.global_step)
        refill = None
        if args.dynamic_sampling:
            refill = Refill(
                draw=self._draw_prompts,
                most_missing=lambda missing: largest_over_ranks(missing, args.device),
                max_attempts=args.dynamic_sampling_attempts,
            )
        found = collect(
            prompts,
            RolloutSteps(
                generate=self._generate,
                score=self._calculate_rewards,
                rescore=self._rescore,
                shape=self._shape_rewards,
                credit=self._credit,
            ),
            tokenizer=self.tokenizer,
            pad_token_id=self.pad_token_id,
            temperature=args.temperature,
            mask_truncated=args.mask_truncated_completions,
            refill=refill,
            device=args.device,
        )
        if self.prompt_stream.window is not None:
            places = {row: place for place, row in enumerate(self.prompts["row_id"])}  # some rows may be dropped
            rates = found.whole.solve_rates(args.solved_reward)
            self.prompt_stream.learn({places[row]: rate for row, rate in rates.items()})
        self.scorer.update(sum_over_ranks)
        self.round_report.tell(self, found)
        return found.batch

    def _generate(self, prompts: Sequence[PromptRow]) -> list[Completion]:
        """G answers to each prompt, those of a prompt in a row."""
        return self.draw(prompts, self.plan.num_generations)

    def draw(
        self, prompts: Sequence[PromptRow], num_samples: int, *, model: nn.Module | None = None, stream: int = 0
    ) -> list[Completion]:
        """Answers to prompts of the round, those of a prompt in a row.

        Args:
            prompts: of this rank.
            num_samples: answers to each.
            model: who answers; the policy if None.
            stream: of random numbers; draws of one round that are to be independent have a number each.
        """
        wanted = [Prompt(ids=prompt.ids, key=prompt.key) for prompt in prompts]
        sampling = {"num_samples": num_samples, "seed": self.args.seed + stream, "round_index": self.queue.round_index}
        if model is not None:
            self.generator.update_policy(model, version=self.state.global_step)
        try:
            with self.accelerator.autocast():
                return self.generator.generate(wanted, self.sampling, **sampling)
        finally:
            if model is not None:
                self.generator.update_policy(self.policy, version=self.state.global_step)

    def _calculate_rewards(self, answers: Answers, num_tokens: int) -> RewardTable:
        """What the reward functions say of the answers, on the CPU, where the answers are."""
        table, log = self.scorer.score(answers, num_tokens=num_tokens, trainer_state=self.state)
        self.metric_buffer.add({name: mean.to(self.args.device) for name, mean in log.metrics.items()})
        self.tell_rewards(log)
        return replace(table, extra=log.columns)

    def tell_rewards(self, log: ScoreLog) -> None:
        """What reward functions failed on, and what a later call of them made good."""
        for event in log.events:
            details = {name: value for name, value in event.items() if name not in ("event", "kind")}
            message = f"{event['reward']} {event['problem']}: rows {event['rows']}"
            self.tell(event["event"], message, failure=event["kind"], **details)

    def _rescore(self, batch: RolloutBatch) -> RolloutBatch:
        """The batch with what the trainer's own forward says of its tokens; nothing unless a subclass needs it."""
        return batch

    def _shape_rewards(self, rewards: RewardTable, batch: RolloutBatch) -> RewardTable:
        """The rewards that advantages are made of: those of the functions, unless a subclass adds a penalty."""
        del batch
        return rewards

    def _credit(self, whole: WholeRound, batch: RolloutBatch) -> RolloutBatch:
        """The batch with this rank's advantages."""
        result = compute_advantages(self.credit_entry, whole.rewards, whole.prompt_index, whole.mask, whole.turn_index)
        mine = whole.mine(result)[:, : batch.completion_ids.shape[1]]  # (N, 1) or (N, T)
        return replace(batch, advantages=mine.to(batch.advantages.dtype))

    def stateful(self) -> dict[str, Stateful]:
        """As in `PolicyTrainer`, the prompts' cursor, and what reward functions remember."""
        return {**super().stateful(), "prompt_stream": self.prompt_stream, "scorer": self.scorer}

    def rank_stateful(self) -> dict[str, Stateful]:
        """As in `PolicyTrainer`, and this rank's queue."""
        return {**super().rank_stateful(), "queue": self.queue}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `PolicyTrainer`, and under a line of training the answers, if `log_completions` asks for them."""
        super().log(logs, start_time)
        if "grad_norm" in logs:
            self.round_report.show(self)

    def of_round(self, value: float) -> Mean:
        """A number of a round as a mean over rounds. The main process counts it; the others keep its name."""
        mean = Mean.of(torch.tensor(value, dtype=torch.float64, device=self.args.device))
        return mean if self.args.process_index == 0 else mean.without_weight()
