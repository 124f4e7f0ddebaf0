"""PolicyTrainer: connects the rooms on `transformers.Trainer`. A subclass defines `loss`, and nothing else.

One optimizer step: `get_batch_samples` takes the step's parcels and counts their units over all ranks (one
collective); `compute_loss` runs `loss` on each parcel, divides its terms by the counts and adds up its metrics on the
device (no sync); `_get_grad_norm` lets only finite steps reach the optimizer; `log` reads the metrics (one
collective, one sync).
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import TrainerCallback

from burnish.compat import check_versions
from burnish.metrics import MetricBuffer
from burnish.models.adapters import adapt, plain_model
from burnish.models.forward import install_forward
from burnish.models.introspect import disable_dropout, end_token_ids, reads_images
from burnish.models.load import load_policy, load_tokenizer, place
from burnish.models.vision import check_processing_class, tokenizer_of
from burnish.runtime.distributed import sum_over_ranks
from burnish.runtime.guard import StepGuard, poison
from burnish.runtime.state import Counter, RunningMeans, Stateful
from burnish.trainers.casts import KeptCasts
from burnish.trainers.compiling import compile_as_asked, keep_from_compiling
from burnish.trainers.config import PolicyConfig
from burnish.trainers.division import counted, divide, step_counts, term_means, unit_rows
from burnish.trainers.evaluation import EvaluationMixin
from burnish.trainers.parts import Together, cut, token_budget
from burnish.trainers.persistence import PersistenceMixin
from burnish.trainers.publishing import PublishingMixin
from burnish.trainers.rows import RowsMixin, chosen_splits, opened
from burnish.trainers.running import RunningMixin
from burnish.trainers.streaming import StreamEnd
from burnish.types import LossOutput, Mean, TokenBatch, wide

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    from burnish.models.sharing import Sharing
    from burnish.registry import Table


class PolicyTrainer(RowsMixin, EvaluationMixin, RunningMixin, PublishingMixin, PersistenceMixin, ABC):
    """Trains a policy on parcels. Abstract: a subclass defines `loss`.

    Args:
        model: a causal model, its name or path, or the short name of an embedded one; or a `PeftModel`, or the
            directory of a saved adapter.
        args: the options; a subclass's `config_class` with its defaults if None.
        train_dataset: rows, a `datasets.Dataset`, a path (.jsonl, .json, .parquet, .csv), or a hub name; a mapping of
            names to several of these, which are mixed; a `DatasetDict`, whose split `train` is taken; or a stream, a
            `datasets.IterableDataset`.
        eval_dataset: rows as above, but no stream; or a mapping of names to several, each evaluated by itself, and so
            are the splits of a `DatasetDict`.
        processing_class: the tokenizer, or the processor of a vision-language model; loaded from the model's name if
            None.
        data_collator: rows to parcels; `PreferenceCollator` if None.
        callbacks: as in `transformers.Trainer`.
        optimizers: as in `transformers.Trainer`.
        peft_config: of a new adapter, which is trained instead of the model; a configuration of PEFT, or a mapping of
            its fields and `type`.
        quantization_config: for `from_pretrained` when the model is given by name; needs an adapter.

    Raises:
        ValueError: an option or combination that is not supported; the message says which and what to do.
        DataError: rows that cannot be trained on, all of them named.
    """

    loss_is_scaled_for_ga = True
    loss_table: ClassVar[Table[..., Any] | None] = None  # what `loss_type` names rows of
    writes_answers: ClassVar[bool] = True  # what is trained answers prompts; a reward model scores answers instead
    config_class: type[PolicyConfig] = PolicyConfig
    couples_rows = False
    follows: frozenset[tuple[str, float | None]] = frozenset()  # metrics whose running means the loss reads
    model_adapter_name: str | None = None  # of the adapter that is trained, where that is not the only or the new one

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: PolicyConfig | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        data_collator: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        quantization_config: Any = None,
    ) -> None:
        check_versions()
        options = self.checked_args(args)
        with options.main_process_first(desc="reading data sets"):
            train_dataset, eval_dataset = map(opened, chosen_splits(train_dataset, eval_dataset))
        self.processing_class = processing_class or load_tokenizer(
            model, trust_remote_code=options.trust_remote_code, init_kwargs=init_kwargs_of(options)
        )
        self.tokenizer = tokenizer_of(self.processing_class)
        loaded = self.load_model(model, options, quantization_config)
        adapter = self.adapter_options(peft_config)
        revision = init_kwargs_of(options).get("revision")
        policy = adapt(loaded, adapter, adapter=self.model_adapter_name, seed=options.seed, revision=revision)
        self.has_new_adapter = peft_config is not None
        self.num_dropouts_disabled = disable_dropout(policy) if options.disable_dropout else 0
        place(policy, options.device)
        plain = plain_model(policy)
        self.sharing = self.install(plain, options)
        self.num_compiled_layers = compile_as_asked(plain, options)
        check_processing_class(plain, self.processing_class)
        if options.ddp_find_unused_parameters is None:  # a rank whose rows have no image does not run the vision tower
            options.ddp_find_unused_parameters = reads_images(plain) or None
        self.args, self.data_reports, self.estimates = options, {}, {}
        self.end_token_ids = self.find_end_tokens(model, plain)
        self.late_evaluations: list[dict[str, Any]] = []
        self.run, self.cpu_settings = None, None
        self.metric_buffer = MetricBuffer()
        self.guard = StepGuard(max_skipped=options.max_skipped_steps)
        self.casts = KeptCasts(options.device.type, casts=options.bf16 or options.fp16)
        self.num_tokens, self.together = Counter(), Together[TokenBatch]()
        self.running_means = RunningMeans(self.follows)
        self._step_started: float | None = None  # set by the first step, so that what comes before it is not counted
        super().__init__(
            model=cast("Any", self.trained_module(cast("Any", policy))),
            args=options,
            data_collator=cast("Any", data_collator or self._make_collator()),
            train_dataset=cast("Any", self._prepare_train(train_dataset)),
            eval_dataset=self._prepare_eval(eval_dataset),
            processing_class=self.processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.add_callback(_FollowPolicy(self))
        self.add_callback(StreamEnd(self))
        _refuse_environment(self)
        keep_from_compiling(self.accelerator, options)
        self.findings = self._lint()

    @classmethod
    def checked_args(cls, args: PolicyConfig | None) -> Any:
        """The options, or the defaults of `config_class`.

        Raises:
            TypeError: not a configuration of this trainer.
        """
        if args is not None and not isinstance(args, cls.config_class):
            raise TypeError(
                f"args is {type(args).__name__}; {cls.__name__} takes {cls.config_class.__name__}(...), and everything "
                f"else is a keyword: {cls.__name__}(model, args={cls.config_class.__name__}(...), train_dataset=...)"
            )
        return cls.config_class() if args is None else args

    # What a method with another kind of model than a causal one redefines.

    def load_model(self, model: Any, options: Any, quantization_config: Any) -> PreTrainedModel | PeftModel:
        """The model that is trained, of whatever was given; the tokenizer is known."""
        return load_policy(
            model,
            trust_remote_code=options.trust_remote_code,
            init_kwargs=init_kwargs_of(options),
            quantization_config=quantization_config,
        )

    def adapter_options(self, peft_config: Any) -> Any:
        """The configuration of a new adapter, of what was given."""
        return peft_config

    def install(self, model: PreTrainedModel, options: Any) -> Sharing:
        """Teach the plain model to score parcels, in place; how it runs prompts that several answers share."""
        return install_forward(
            model,
            prefix_sharing=options.prefix_sharing,
            lean_activations=options.lean_activations,
            gradient_checkpointing=bool(options.gradient_checkpointing),
        )

    def find_end_tokens(self, given: Any, model: PreTrainedModel) -> tuple[int, ...]:
        """The tokens that end an answer, of the model that was given and the plain one that was made of it."""
        del given
        return end_token_ids(model, self.tokenizer)

    # What a subclass defines.

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> LossOutput:
        """Terms and metrics of one micro-batch.

        Args:
            model: the wrapped policy; only `burnish.forward(model, batch)` should call it.
            batch: a parcel of the collator.

        Returns:
            Unreduced losses with their unit. Do not divide: the trainer divides each term once, by the count of its
            unit in the whole optimizer step.
        """

    def prepare_step(self, model: nn.Module, parcels: Sequence[TokenBatch]) -> list[TokenBatch]:
        """The step's parcels before any of them is trained on. A loss that couples rows scores them all here."""
        del model
        return list(parcels)

    def follow_policy(self) -> None:
        """Called after each optimizer step: what follows the policy moves."""

    def check_first_step(self, batch: Any) -> dict[str, Any]:
        """Identities that must hold before the first step, as an event; `ok` False is shown as a warning."""
        del batch
        return {}

    def stateful(self) -> dict[str, Stateful]:
        """Counters and running statistics that belong in a checkpoint."""
        return {"num_tokens": self.num_tokens, "guard": self.guard, "running_means": self.running_means}

    def rank_stateful(self) -> dict[str, Stateful]:
        """The same of this rank alone."""
        return {} if self.rank_stream is None else {"stream": self.rank_stream}

    def binding(self) -> dict[str, Any]:
        """What else must be the same for a resumed run to continue this one, in JSON types."""
        return {}

    def describe_method(self) -> dict[str, Any]:
        """How the policy is trained, for manifest and model card, in JSON types.

        `trainer`: this class; `name`: of the method; `losses`: `name`, `paper` (an arXiv number or None) and `weight`.
        """
        name = type(self).__name__.removesuffix("Trainer").lower()
        return {"trainer": type(self).__name__, "name": name, "losses": []}

    def trained_module(self, policy: PreTrainedModel) -> nn.Module:
        """All that is trained, in one module, since the Trainer wraps one: the policy."""
        return policy

    # One step.

    def get_batch_samples(
        self, epoch_iterator: Iterator[TokenBatch], num_batches: int, device: torch.device
    ) -> tuple[list[TokenBatch], dict[str, Tensor]]:
        """The parcels of one optimizer step, and the count of every unit in it over all ranks."""
        if self.stream_is_done():
            return [], {}
        self._step_started = self._step_started or time.perf_counter()
        parcels = self.take_parcels(epoch_iterator, num_batches, device)
        counts = step_counts(parcels, device, also={**self.running_means.collected(), **self.stream_counts()})
        if not self.follow_stream(counts):
            return [], counts
        self.running_means.update(counts)
        self.num_tokens.add(counts["input_token"].long())
        self.metric_buffer.add({"loss": _steps(counts["input_token"], self.args.process_index == 0)})
        if self.state.global_step == 0 and not parcels[0].is_filler:
            self._report_first_step(parcels[0])
        with self.accelerator.autocast():
            prepared = self.prepare_step(self.model_wrapped, parcels)
        self.together.plan(prepared, token_budget(self.args))
        self.casts.open()
        return prepared, counts

    def take_parcels(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> Sequence[TokenBatch]:
        """This rank's micro-batches of the next optimizer step: exactly `num_batches`."""
        return [batch.to(device) for batch in islice(epoch_iterator, num_batches)]

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of a micro-batch, in parts under the token budget; gradients meet in the last one.

        Small ones wait for the next, with a loss of 0, and are trained on with it.
        """
        whole: Any = self.together.add(inputs)
        if whole is None:
            return torch.zeros((), device=self.args.device)
        rows = cut(whole, token_budget(self.args))
        *first, last = [whole] if len(rows) == 1 else [whole.take(own) for own in rows]
        losses: list[Tensor] = []
        for part in first:
            with self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        return torch.stack([*losses, super().training_step(model, last, num_items_in_batch)]).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: TokenBatch,
        return_outputs: bool = False,
        num_items_in_batch: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """`loss` of one micro-batch, divided once; times the number of processes, since gradients are averaged."""
        output = self.loss(model, inputs)
        counts = step_counts([inputs], self.args.device) if num_items_in_batch is None else num_items_in_batch
        total = divide(output.terms, inputs, counts)
        terms = term_means(output.terms, inputs) if len(output.terms) > 1 else {}
        metrics = counted({**terms, **output.metrics}, inputs)
        self.metric_buffer.add(metrics)
        self.running_means.collect(metrics)
        if not inputs.is_filler:
            for term in output.terms:
                self.guard.watch(*unit_rows(term, inputs))
        self.metric_buffer.add({"loss": _contribution(total)})
        loss = poison(total) * self.args.world_size
        return (loss, output) if return_outputs else loss

    def _prepare_inputs(self, inputs: TokenBatch) -> TokenBatch:
        return inputs.to(self.args.device)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Clip, unless the norm is not finite: clipping would spread one bad number over every gradient."""
        norm = self._total_norm(model)
        if bool(norm.isfinite()):
            clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, norm)
        return norm

    def _total_norm(self, model: nn.Module) -> Tensor:
        self.accelerator.unscale_gradients()
        return get_total_norm([p.grad for p in model.parameters() if p.grad is not None])

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        norm = float(self._total_norm(model) if grad_norm is None else grad_norm)
        event = self.guard.check(model, norm, step=self.state.global_step)
        if event is not None:
            rows = event["rows"] or event["all_rows"]
            message = f"step {self.state.global_step + 1} skipped: gradient norm {norm}, rows {rows}"
            self.tell("skipped_step", message, step=self.state.global_step + 1, **event)
        return norm

    def floating_point_ops(self, inputs: TokenBatch) -> int:
        """Six operations per parameter and token of the rows layout, padding included."""
        rows, length = inputs.completion_ids.shape
        return 6 * rows * (length + inputs.prompt_ids.shape[1]) * self.policy.num_parameters(exclude_embeddings=True)

    def _track_num_input_tokens(self, inputs: TokenBatch) -> None:
        """`num_tokens` is counted per step, on the device."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Complete a log line of training with the metrics since the last one, and write every line to the run."""
        if "loss" in logs and "grad_norm" in logs:
            estimates = self.metric_buffer.flush(sum_over_ranks)
            now, steps = time.perf_counter(), estimates["loss"].weight
            logs.update({name: estimate.mean for name, estimate in estimates.items()})
            logs["num_tokens"] = self.num_tokens.value
            logs["num_skipped_steps"] = self.guard.num_skipped.value
            logs.update(self.stream_metrics())
            logs["step_time"] = (now - (self._step_started or now)) / max(steps, 1)
            self._step_started = now
        super().log(logs, start_time)
        if self.run is not None:
            self.run.metric(self.state.global_step, {k: v for k, v in logs.items() if isinstance(v, int | float)})


class _FollowPolicy(TrainerCallback):
    """Forgets the casts of weights that change, and calls `follow_policy` after, before anything is logged or saved."""

    def __init__(self, trainer: PolicyTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.casts.close()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.follow_policy()


def _refuse_environment(trainer: PolicyTrainer) -> None:
    if trainer.args.n_gpu > 1:
        raise ValueError(
            f"{trainer.args.n_gpu} GPUs are visible to one process, which would use DataParallel: start with "
            "`accelerate launch`, or set CUDA_VISIBLE_DEVICES to one of them"
        )
    if trainer.is_fsdp_enabled or trainer.args.fsdp:
        raise ValueError("FSDP through the Trainer is not built yet (on CPU it silently becomes DDP): remove fsdp")


def init_kwargs_of(args: PolicyConfig) -> dict[str, Any]:
    """`model_init_kwargs`, which may be JSON, as a mapping."""
    value = args.model_init_kwargs
    if isinstance(value, str):
        return json.loads(value)
    return dict(value or {})


def _steps(like: Tensor, count: bool) -> Mean:
    """The weight of one more step under `loss`; one rank counts it."""
    zero = torch.zeros_like(like)
    return Mean(total=zero, weight=zero + float(count), squares=zero)


def _contribution(total: Tensor) -> Mean:
    """A micro-batch's share of a step's loss; `_steps` holds the weight."""
    value = wide(total.detach())
    return Mean(total=value, weight=torch.zeros_like(value), squares=torch.zeros_like(value))
