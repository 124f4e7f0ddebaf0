"""A run from start to end: where it resumes, its directory, its CPU settings, what it tells."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from burnish.metrics import explain
from burnish.models.adapter_summary import adapter_line, describe_adapter
from burnish.models.adapters import plain_model
from burnish.models.compiled import compiled_line
from burnish.models.lean import lean_line, lean_modules
from burnish.models.origin import origin_of
from burnish.runtime import cpu
from burnish.runtime.checkpoint import read_manifest, remove_leftovers
from burnish.runtime.manifest import collect_manifest
from burnish.runtime.rundir import RunDirectory
from burnish.trainers.host import Host
from burnish.types import Mean

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.types import TokenBatch

logger = logging.get_logger(__name__)
WORTH_BFLOAT16 = 2.0  # times float32's speed; products are not all of a step


class RunningMixin(Host):
    """`train` with a run directory around it.

    Attributes:
        run_file: what else run.yaml holds, besides the options: model and data, if the run was made from a file.
    """

    run_file: Mapping[str, Any] = MappingProxyType({})

    def log_metric(self, name: str, values: Tensor | float, *, weight: Tensor | None = None) -> None:
        """Log a metric of your own from a hook of your trainer; what `loss` measures goes into its `LossOutput`.

        The next log line has the mean over all values since the last one, on all processes, each of which logs the
        same names.

        Args:
            name: as the log line has it.
            values: of any shape.
            weight: of the same shape; values of weight 0 are never read.

        Raises:
            ValueError: Burnish logs a metric of this name itself.
        """
        if explain(name) is not None:
            raise ValueError(f"log_metric({name!r}, ...): Burnish logs {name!r} itself; choose another name")
        measured = torch.as_tensor(values, dtype=None if isinstance(values, torch.Tensor) else torch.float64)
        self.metric_buffer.add({name: Mean.of(measured, weight=weight).to(self.args.device)})

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train, or continue a run exactly where its checkpoint was taken.

        Args:
            resume_from_checkpoint: True for the newest sound checkpoint of `output_dir`, or a path to one.
            kwargs: as in `transformers.Trainer.train`.

        Raises:
            RunExistsError: `output_dir` holds another run.
            ValueError: there is no sound checkpoint, or its run was made with other settings.
            DivergedError: too many steps in a row were not finite.
        """
        if resume_from_checkpoint is None:
            resume_from_checkpoint = self.args.resume_from_checkpoint
        found, skipped = self.find_checkpoint(resume_from_checkpoint)
        before = _current_settings()
        self.cpu_settings = self._choose_cpu_settings(found)
        self._open_run(found)
        for event in skipped:
            self.tell("damaged_checkpoint", f"passed over {event['path']}: {event['problems'][0]}", **event)
        self._step_started = None
        try:
            return super().train(resume_from_checkpoint=None if found is None else str(found), **kwargs)
        finally:
            self.casts.close()
            if self.cpu_settings is not None:
                cpu.apply(before)
            if self.run is not None:
                self.run.event("end", step=self.state.global_step)
                self.run.close()
                self.run = None

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """An epoch; nothing of it in a run that has made all of its steps, where Trainer would make one more."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
            return
        steps = self.state.global_step
        self.tell("complete", f"The run has made all of its steps ({steps}), so nothing is trained.", step=steps)
        self.control.should_training_stop = True

    def tell(self, kind: str, message: str, *, show: bool = True, **fields: Any) -> None:
        """Write an event of the run, and show its message unless told not to."""
        if self.run is not None:
            self.run.event(kind, message=message, **fields)
        if show and self.is_world_process_zero():
            logger.warning(message)

    def _choose_cpu_settings(self, found: Path | None) -> cpu.CpuSettings | None:
        if self.args.cpu_tuning == "off" or self.args.device.type != "cpu":
            return None
        saved = read_manifest(found).get("cpu_settings") if found is not None else None
        settings = cpu.CpuSettings.from_dict(saved) if saved else cpu.probe()
        return cpu.apply(settings)

    def _open_run(self, found: Path | None) -> None:
        if not self.args.should_save:
            return
        directory = self.run_path
        resumes = found is not None and found.resolve().parent == directory.resolve()
        self.run = RunDirectory.open(
            directory,
            config=self.run_config(),
            manifest=self.manifest(),
            resume_step=int(found.name.rsplit("-", 1)[1]) if found is not None and resumes else None,
            overwrite=self.args.overwrite_output_dir and not resumes,
        )
        remove_leftovers(directory)
        for name, report in self.data_reports.items():
            self.run.event("data", data_set=name, lines=report.lines())
        self._judge_bfloat16()
        self.tell("layout", self.sharing.line(), show=bool(self.sharing.reason), layout=self.sharing.trained)
        plain = plain_model(self.policy)
        self.tell("lean", lean_line(plain), show=False, modules=lean_modules(plain))
        if self.num_compiled_layers:
            self.tell("compile", self.compiled_line(), show=self.sharing.trained == "cache")
        if line := adapter_line(self.policy):
            self.tell("adapter", line, show=False)
        if self.mixture is not None:
            self.tell("mixture", "\n".join(self.mixture.lines()), quotas=list(self.mixture.quotas))
        for finding in self.findings:
            self.tell("lint", finding.message, code=finding.code, count=finding.count, rows=list(finding.rows))

    def compiled_line(self) -> str:
        """What is compiled of the policy, of how many layers; for the console and the report."""
        return compiled_line(
            self.num_compiled_layers, backend=self.args.torch_compile_backend, layout=self.sharing.trained
        )

    def _judge_bfloat16(self) -> None:
        """Say so if this CPU is faster in another precision than the run's."""
        if self.cpu_settings is None:
            return
        speedup = cpu.bfloat16_speedup()
        if self.args.bf16 and speedup < 1:
            message = (
                f"on this CPU a matrix product in bfloat16 takes {1 / speedup:.1f} times as long as in float32, which "
                "is exact besides: bf16=False is the faster choice"
            )
            self.tell("slow_bfloat16", message, speedup=speedup)
        elif not self.args.bf16 and self.policy.dtype == torch.float32 and speedup >= WORTH_BFLOAT16:
            message = (
                f"on this CPU a matrix product in bfloat16 is {speedup:.1f} times as fast as in float32: bf16=True "
                "computes them so, and keeps the weights in float32"
            )
            self.tell("fast_bfloat16", message, speedup=speedup)

    def run_config(self) -> dict[str, Any]:
        """What run.yaml holds: `run_file`, if somebody set it, with every option of `args` resolved."""
        return {**self.run_file, "training": self.args.resolved()}

    def manifest(self) -> dict[str, Any]:
        """What manifest.json holds: method, model, data, code, machine, and the options that were set."""
        made_with = collect_manifest(
            command=sys.argv,
            seed=self.args.seed,
            datasets=[report.as_dict() for report in self.data_reports.values()],
            model=self._describe_model(),
        )
        return {
            **made_with,
            "method": self.describe_method(),
            "options_set": list(self.args.options_set),
            "cpu_settings": None if self.cpu_settings is None else self.cpu_settings.as_dict(),
        }

    def _describe_model(self) -> dict[str, Any]:
        policy = self.policy
        name = policy.config._name_or_path
        return {
            "name": name,
            **asdict(origin_of(name)),
            "class": type(plain_model(policy)).__name__,
            "parameters": policy.num_parameters(),
            "trainable": policy.num_parameters(only_trainable=True),
            "dtype": str(policy.dtype),
            "adapter": describe_adapter(policy),
            "dropouts_disabled": self.num_dropouts_disabled,
        }

    def _report_first_step(self, batch: TokenBatch) -> None:
        event = self.check_first_step(batch)
        if event:
            self.tell("first_step", show=not event["ok"], step=0, **event)


def _current_settings() -> cpu.CpuSettings:
    """Threads and precision as they are now, to be put back after training."""
    precision: Any = torch.get_float32_matmul_precision()
    return cpu.CpuSettings(num_threads=torch.get_num_threads(), matmul_precision=precision, malloc_tuned=False)
