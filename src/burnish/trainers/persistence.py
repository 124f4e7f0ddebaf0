"""How a trainer is saved and resumed: the trainer's half of `runtime/checkpoint.py`.

A checkpoint is a directory of safetensors and JSON that plain `from_pretrained` reads. It is written beside its
final place, checksummed and renamed last; on resume it is verified, and a damaged one is passed over.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers.trainer_callback import ExportableState

from burnish.models.adapter_files import load_adapter_weights, save_adapter
from burnish.models.adapter_summary import adapter_settings
from burnish.models.adapters import is_adapted, plain_model
from burnish.models.lean import lean_modules
from burnish.runtime import checkpoint, distributed
from burnish.runtime.rng import restore_rng_state, rng_state
from burnish.runtime.tree import load_tree, save_tree
from burnish.trainers.host import Host

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn


# Options that may change on a resume, since they cannot change a weight before the step they are set for. All others
# bind, those of a user's own configuration included.
FREE_PREFIXES = (
    "logging_", "log_", "save_", "eval_", "hub_", "push_", "report_", "trackio_", "dataloader_num", "dataloader_pin",
    "do_", "metric_", "disable_tqdm", "run_", "local_", "resume_", "restore_",
)  # fmt: skip
FREE_OPTIONS = frozenset({
    "output_dir", "overwrite_output_dir", "max_steps", "num_train_epochs", "per_device_eval_batch_size", "project",
    "dataset_num_proc", "cpu_tuning", "max_skipped_steps", "on_bad_row", "load_best_model_at_end", "greater_is_better",
    "debug", "skip_memory_metrics", "ddp_timeout", "trust_remote_code", "enable_jit_checkpoint",
    "generate_during_eval", "num_eval_samples", "judge",
})  # fmt: skip


NEWEST = "resume_from_checkpoint=True takes the newest sound one of output_dir."


def binds(option: str) -> bool:
    """Whether an exact continuation of a run needs this option to be as it was."""
    return option not in FREE_OPTIONS and not option.startswith(FREE_PREFIXES)


class PersistenceMixin(Host):
    """Saving and loading without pickle files, atomically and verified."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.store_flos()
        run_dir = self.run_path
        target = run_dir / f"checkpoint-{self.state.global_step}"
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(run_dir / f"checkpoint-{self.state.best_global_step}")
        manifest = {
            "step": self.state.global_step,
            "world_size": self.args.world_size,
            "binding": self._binding(),
        }
        manifest["cpu_settings"] = None if self.cpu_settings is None else self.cpu_settings.as_dict()
        with checkpoint.atomic_directory(
            target, is_main=self.args.should_save, barrier=distributed.barrier, manifest=manifest
        ) as directory:
            self.save_model(str(directory), _internal_call=True)
            if not self.args.save_only_model:
                self._save_training_state(directory)
            if self.args.should_save:
                self._export_callbacks()
                self.state.save_to_json(str(directory / "trainer_state.json"))
        self._after_save(target)

    def _after_save(self, target: Path) -> None:
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))
        if not self.args.should_save:
            return
        best = self.state.best_model_checkpoint
        protected = [Path(best)] if best else []
        deleted = checkpoint.rotate(target.parent, keep=self.args.save_total_limit, protected=protected)
        if self.run is not None:
            self.run.event(
                "checkpoint", step=self.state.global_step, path=target.name, deleted=[p.name for p in deleted]
            )

    def _save_training_state(self, directory: Path) -> None:
        rank = self.args.process_index
        own = {"metrics": self.metric_buffer.state(), "followed": self.running_means.collected()}
        parts = {name: item.state_dict() for name, item in self.rank_stateful().items()}
        save_tree(directory, f"rank_state_{rank}", {"rng": rng_state(), "parts": parts, **own})
        if not self.args.should_save:
            return
        save_tree(directory, "optimizer", self.optimizer.state_dict())
        save_tree(directory, "scheduler", self.lr_scheduler.state_dict())
        save_tree(directory, "trainer_extra", {name: item.state_dict() for name, item in self.stateful().items()})
        scaler = self.accelerator.scaler
        if scaler is not None:
            save_tree(directory, "scaler", scaler.state_dict())

    def _export_callbacks(self) -> None:
        stored: Any = self.state.stateful_callbacks
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                name = type(callback).__name__
                if isinstance(stored.get(name), list):
                    stored[name].append(callback.state())
                else:
                    stored[name] = callback.state()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        directory = output_dir or str(self.run_path)
        if not self.args.should_save:
            return
        Path(directory).mkdir(parents=True, exist_ok=True)
        model = self.policy
        if is_adapted(model):
            save_adapter(cast("PeftModel", model), directory)
        else:
            # The names of some families on the hub are not those of the model, which resuming needs.
            is_checkpoint = Path(directory).name.startswith(checkpoint.UNFINISHED)
            model.save_pretrained(directory, state_dict=state_dict, save_original_format=not is_checkpoint)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(directory)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The weights of a checkpoint into the policy, or a given model; with adapters those of the adapter alone."""
        target = self.policy if model is None else model
        if is_adapted(target):
            load_adapter_weights(cast("PeftModel", target), Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, target)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None and is_adapted(self.policy):
            load_adapter_weights(cast("PeftModel", self.policy), Path(best))
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        directory = Path(checkpoint)
        self.optimizer.load_state_dict(load_tree(directory, "optimizer"))
        self.lr_scheduler.load_state_dict(load_tree(directory, "scheduler"))
        saved = load_tree(directory, "trainer_extra")
        for name, item in self.stateful().items():
            item.load_state_dict(saved[name])
        own = load_tree(directory, f"rank_state_{self.args.process_index}")
        self.metric_buffer.load_state(own["metrics"], self.args.device)
        self.running_means.load_collected(own["followed"])
        begins_anew = {"stream"} if self.args.ignore_data_skip else set()
        for name, item in self.rank_stateful().items():
            if name not in begins_anew:
                item.load_state_dict(own["parts"][name])

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Tied weights are saved once, so the names of the copies are not missing; any other name is an error."""
        tied = set(self.policy.all_tied_weights_keys)
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        unsaved = self.policy._keys_to_ignore_on_save or ()
        missing = [name for name in load_result.missing_keys if name not in unsaved]
        if missing or load_result.unexpected_keys:
            raise ValueError(
                f"the checkpoint does not fit {type(self.policy).__name__}: {len(missing)} weights are missing: "
                f"{', '.join(missing[:3])}; {len(load_result.unexpected_keys)} are not the model's: "
                f"{', '.join(load_result.unexpected_keys[:3])}. Resume with the model that the checkpoint was made of."
            )
        super()._issue_warnings_after_load(load_result)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(load_tree(Path(checkpoint), "scaler"))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            restore_rng_state(load_tree(Path(checkpoint), f"rank_state_{self.args.process_index}")["rng"])

    def _binding(self) -> dict[str, Any]:
        return {
            "world_size": self.args.world_size,
            **({"adapters": settings} if (settings := adapter_settings(self.policy)) else {}),
            "layout": self.sharing.trained,
            "lean": lean_modules(plain_model(self.policy)),
            "train_data": self.train_fingerprint(),
            **self.binding(),
            **{name: value for name, value in self.args.resolved().items() if binds(name)},
        }

    def find_checkpoint(self, resume_from_checkpoint: str | bool | None) -> tuple[Path | None, list[dict[str, Any]]]:
        """The checkpoint to resume from, and an event for each damaged one that was passed over.

        Args:
            resume_from_checkpoint: True for the newest sound one in `output_dir`, or a path to one.

        Raises:
            ValueError: there is none, the given one is damaged or incomplete, or the options differ from its run's.
        """
        if not resume_from_checkpoint:
            return None, []
        skipped: list[dict[str, Any]] = []
        if resume_from_checkpoint is True:
            found = checkpoint.newest_sound(
                self.run_path,
                on_skip=lambda path, problems: skipped.append({"path": path.name, "problems": problems}),
            )
            if found is None:
                raise ValueError(
                    f"no sound checkpoint in {self.args.output_dir}; damaged: {skipped or 'none'}. "
                    "Check output_dir, or start anew without resume_from_checkpoint."
                )
        else:
            found = Path(resume_from_checkpoint)
            if problems := checkpoint.verify(found):
                raise ValueError(f"{checkpoint.what_is_wrong(found, problems)} {NEWEST}")
        self._refuse_changed_options(found)
        return found, skipped

    def _refuse_changed_options(self, found: Path) -> None:
        manifest = checkpoint.read_manifest(found)
        if not (found / "optimizer.json").is_file():
            raise ValueError(f"{found} was saved with save_only_model=True, so training cannot be resumed from it")
        then, now = manifest["binding"], self._binding()
        changed = {n: (then.get(n), now.get(n)) for n in {**then, **now} if then.get(n) != now.get(n)}
        if changed:
            lines = "\n".join(f"  {name}: was {was!r}, is {value!r}" for name, (was, value) in sorted(changed.items()))
            raise ValueError(
                f"the run of {found} was made with other settings, so resuming would not continue it:\n{lines}\n"
                "Set them back, or start a new run with model=<that checkpoint>."
            )
