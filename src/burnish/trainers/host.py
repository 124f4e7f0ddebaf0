"""The typed ground under a trainer: what its parts may rely on, declared once.

`PolicyTrainer` is made of parts (rows, evaluation, running, persistence), one file each. Each is a `Host`:
`transformers.Trainer` with the attributes below, whose types are narrower than the Trainer's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from transformers import Trainer

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    from burnish.data.lint import Finding
    from burnish.data.mixture import Mixture
    from burnish.data.stream import RankStream, RowStream
    from burnish.metrics import Estimate, MetricBuffer
    from burnish.models.sharing import Sharing
    from burnish.runtime.cpu import CpuSettings
    from burnish.runtime.guard import StepGuard
    from burnish.runtime.rundir import RunDirectory
    from burnish.runtime.state import Counter, RunningMeans, Stateful
    from burnish.trainers.casts import KeptCasts
    from burnish.trainers.config import PolicyConfig
    from burnish.trainers.sampling import EvalAnswers
    from burnish.types import LossOutput, TokenBatch


class Report(Protocol):
    """What preparing a data set did to it, whatever kind of rows it has."""

    @property
    def name(self) -> str:
        """The data set's name in messages."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of all that is trained on."""
        ...

    @property
    def num_rows(self) -> int:
        """Rows that are left."""
        ...

    def lines(self) -> list[str]:
        """The report for a person."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        ...


class Host(Trainer):
    """`transformers.Trainer` as the parts of a trainer see it.

    Attributes:
        tokenizer: the processing class, or its tokenizer with its chat template.
        data_reports: what was cut, dropped or left out of each data set, by its name.
        estimates: mean, weight and standard error of each metric of the latest evaluations, by prefixed name.
        sharing: how prompts that several answers share are run.
        num_compiled_layers: how many layers of the policy torch.compile compiles.
        estimated: the names of the latest evaluation of each prefix.
        num_dropouts_disabled: how many dropout probabilities were set to 0.
        has_new_adapter: the adapter that is trained was made for this run.
        end_token_ids: the tokens that end an answer.
        metric_buffer: sums of the metrics since the last log line.
        guard: lets only finite steps reach the optimizer.
        num_tokens: tokens seen since the start of the run.
        running_means: means of metrics over past steps, which a loss may read.
        late_evaluations: events of the evaluations outside `train`, which are in no file.
        run: the open run directory of the main process during training, else None.
        cpu_settings: what the CPU runtime was set to for the run, or None.
        findings: faults of the data sets that do not stop a run.
        couples_rows: the loss of a row depends on the other rows of the step.
        eval_answers: the latest answers to held-out prompts, by the prefix of the metrics.
        source_names: the sources that the training rows come from, by their number in the column `source`.
        mixture: how several sources were mixed, or None for one.
        rank_stream: this rank's rows if the training rows are a stream, once training has begun.
        stream_has_more: some rank has rows for another step.
        stream_sums: what was read, dropped and cut of a stream so far, over all ranks.
    """

    couples_rows: bool = False
    eval_answers: Mapping[str, EvalAnswers] = MappingProxyType({})
    estimated: Mapping[str, frozenset[str]] = MappingProxyType({})
    source_names: Sequence[str] = ()
    mixture: Mixture | None = None
    rank_stream: RankStream | None = None
    stream_has_more: bool = True
    stream_sums: Mapping[str, int] = MappingProxyType({})

    if TYPE_CHECKING:
        args: PolicyConfig
        model: PreTrainedModel
        model_wrapped: nn.Module
        processing_class: PreTrainedTokenizerBase | ProcessorMixin
        tokenizer: PreTrainedTokenizerBase
        train_dataset: Dataset | RowStream | None
        eval_dataset: Dataset | dict[str, Dataset] | None
        data_collator: Any
        optimizer: torch.optim.Optimizer
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler
        data_reports: dict[str, Report]
        estimates: dict[str, Estimate]
        sharing: Sharing
        num_compiled_layers: int
        num_dropouts_disabled: int
        has_new_adapter: bool
        end_token_ids: tuple[int, ...]
        findings: list[Finding]
        metric_buffer: MetricBuffer
        guard: StepGuard
        casts: KeptCasts
        num_tokens: Counter
        running_means: RunningMeans
        late_evaluations: list[dict[str, Any]]
        run: RunDirectory | None
        push_in_progress: Any
        cpu_settings: CpuSettings | None

        def _prepare_dataset(self, dataset: Any, name: str) -> Dataset: ...

        def loss(self, model: nn.Module, batch: Any) -> LossOutput: ...

        def prepare_step(self, model: nn.Module, parcels: Sequence[TokenBatch]) -> list[TokenBatch]: ...

        def check_first_step(self, batch: Any) -> dict[str, Any]: ...

        def stateful(self) -> dict[str, Stateful]: ...

        def train_fingerprint(self) -> str | None: ...
        def rank_stateful(self) -> dict[str, Stateful]: ...

        def binding(self) -> dict[str, Any]: ...

        def describe_method(self) -> dict[str, Any]: ...

        def run_config(self) -> dict[str, Any]: ...

        def manifest(self) -> dict[str, Any]: ...

        def tell(self, kind: str, message: str, *, show: bool = True, **fields: Any) -> None: ...

        def find_checkpoint(
            self, resume_from_checkpoint: str | bool | None
        ) -> tuple[Path | None, list[dict[str, Any]]]: ...

    @property
    def policy(self) -> PreTrainedModel:
        """The policy as it is trained, without what wraps it; all of `model`, unless that has a critic as well."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def run_path(self) -> Path:
        """The run directory, whether or not it is open."""
        if self.args.output_dir is None:
            raise ValueError("output_dir is None: it was unset after the configuration was made")
        return Path(self.args.output_dir)
