"""The model card, and what goes up to the hub: the model, its tokenizer and its card, and nothing else."""

from __future__ import annotations

import shutil
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress, hf_api

from burnish.runtime import hub
from burnish.runtime.card import CARD, card_text, is_own_card
from burnish.runtime.checkpoint import UPLOAD
from burnish.runtime.jsonl import atomic_write_text
from burnish.runtime.record import RunRecord, read_record
from burnish.runtime.usage import CardOptions, Names
from burnish.trainers.host import Host

if TYPE_CHECKING:
    from concurrent.futures import Future


class PublishingMixin(Host):
    """Saving with a card, and uploading."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, its tokenizer and its card; with `push_to_hub=True`, upload them as well.

        A README.md that a person wrote is left as it is. A checkpoint has no card.
        """
        card = Path(output_dir or self.run_path) / CARD
        is_kept = card.is_file() and not is_own_card(card)
        super().save_model(output_dir, _internal_call=True)
        if _internal_call:
            return
        if is_kept:
            message = f"{card} was not written by Burnish, so it is left as it is: the model is saved without a card"
            self.tell("card_not_written", message)
        elif self.args.should_save:
            atomic_write_text(card, card_text(self.record(), self._card_options(card.parent)))
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save")

    def create_model_card(
        self,
        language: Names = None,
        license: str | None = None,
        tags: Names = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: Names = None,
        dataset_tags: Names = None,
        dataset: Names = None,
        dataset_args: Names = None,
        *,
        dataset_name: str | None = None,
    ) -> None:
        """Write the model card, README.md, into `output_dir`.

        What is not given is taken from the run, never from a network.

        Args:
            language: of the model, as the hub writes it ("en").
            license: of this model; that of the base model if None.
            tags: besides `burnish`, the method and its losses.
            model_name: the heading; the last part of `hub_model_id`, or the name of `output_dir`.
            finetuned_from: the base model.
            tasks: as the hub writes them; "text-generation" if None.
            dataset_tags: names of data sets on the hub.
            dataset: what the data set is called.
            dataset_args: which part of it.
            dataset_name: the same as `dataset`, which TRL calls so.
        """
        if not self.is_world_process_zero():
            return
        options = self._card_options(
            self.run_path,
            language=language,
            license=license,
            tags=tags,
            model_name=model_name,
            finetuned_from=finetuned_from,
            tasks=tasks,
            dataset_tags=dataset_tags,
            dataset=dataset or dataset_name,
            dataset_args=dataset_args,
        )
        self.run_path.mkdir(parents=True, exist_ok=True)
        atomic_write_text(self.run_path / CARD, card_text(self.record(), options))

    def record(self) -> RunRecord:
        """The run so far: its directory, and what this trainer knows beyond it."""
        written = read_record(self.run_path)
        if written is not None:
            return replace(written, events=[*written.events, *self.late_evaluations])
        data = [{"kind": "data", "data_set": n, "lines": report.lines()} for n, report in self.data_reports.items()]
        return RunRecord(self.run_config(), self.manifest(), events=[*data, *self.late_evaluations])

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upload the model, its tokenizer and its card to `hub_model_id`.

        Args:
            commit_message: of the commit.
            blocking: wait until it is there.
            token: with write permission; `hub_token`, else the one that you are logged in with.
            revision: the branch; `hub_revision`, else main.
            private: make a new repository private; `hub_private_repo` if None.
            kwargs: as in `create_model_card`.

        Returns:
            The commit, or its future if not `blocking`; None on all processes but the first.

        Raises:
            UploadRefusedError: a file holds a secret, or is no file of a model.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        if private is not None:
            self.args.hub_private_repo = private
        if self.hub_model_id is None:
            self.init_hf_repo(token=token)
        folder = hub.upload_folder(self.run_path) if self.args.should_save else self.run_path / UPLOAD
        self.save_model(str(folder), _internal_call=True)
        if not self.is_world_process_zero():
            return None
        kwargs.setdefault("model_name", self._model_name())
        kwargs["dataset"] = kwargs.pop("dataset_name", None) or kwargs.get("dataset")
        self._finish_current_push()
        uploaded = self._upload(folder, commit_message or "Model save", token=token, revision=revision, **kwargs)
        return uploaded.result() if blocking else uploaded

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Upload the model of a checkpoint, or the whole of it, as `hub_strategy` says; training goes on meanwhile."""
        strategy, checkpoint = self.args.hub_strategy, Path(checkpoint_folder)
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            self.tell("push_skipped", f"{checkpoint.name} was not pushed: the last push is still going on", show=False)
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder = hub.upload_folder(self.run_path, checkpoint.name)
        hub.link_files(hub.model_files(checkpoint), checkpoint, folder)
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
            hub.link_files(hub.files_of(checkpoint), checkpoint, folder / name)
        message = f"Training in progress, step {self.state.global_step}"
        try:
            job = self._upload(folder, message, token=self.args.hub_token, model_name=self._model_name())
        except hub.UploadRefusedError as error:
            self.tell("push_refused", f"{checkpoint.name}: {error}")
            return
        jobs: Any = [job] if self.push_in_progress is None else [*self.push_in_progress.jobs, job]
        self.push_in_progress = PushInProgress(jobs)

    def _upload(
        self, folder: Path, message: str, *, token: str | None, revision: str | None = None, **card: Any
    ) -> Future[Any]:
        """Write the card, look through the folder, and send it off; it is deleted when that is over."""
        hub_id = str(self.hub_model_id)
        atomic_write_text(folder / CARD, card_text(self.record(), self._card_options(folder, load_name=hub_id, **card)))
        try:
            listed = hub.check_upload(folder, secrets=(token,))
        except hub.UploadRefusedError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.tell("push", f"to {hub_id}: {listed}", repo=hub_id)
        return hf_api().run_as_future(self._send, folder, message, token, revision or self.args.hub_revision)

    def _send(self, folder: Path, message: str, token: str | None, revision: str | None) -> Any:
        """Upload a folder and delete it, in a thread of its own; a failure is told, since nobody may be waiting."""
        hub_id = str(self.hub_model_id)
        try:
            return hf_api().upload_folder(
                repo_id=hub_id, folder_path=str(folder), commit_message=message, token=token, revision=revision
            )
        except Exception as error:
            self.tell("push_failed", f"nothing new is on {hub_id}: {error}", repo=hub_id)
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _card_options(self, directory: Path, **given: Any) -> CardOptions:
        given["model_name"] = given.get("model_name") or self._model_name()
        known = {
            "load_name": self.hub_model_id or f"path/to/{directory.resolve().name}",
            "step": self._step_of_weights(),
            "is_adapter": (directory / "adapter_config.json").is_file(),
            "chats": bool(self.tokenizer.chat_template),
        }
        return CardOptions(**{**known, **given})

    def _model_name(self) -> str:
        given = self.args.hub_model_id
        return self.run_path.resolve().name if given is None else given.split("/")[-1]

    def _step_of_weights(self) -> int:
        """The best checkpoint's step where that was loaded at the end, else the last one."""
        best = self.state.best_global_step
        if best and self.args.load_best_model_at_end and not self.is_in_train:
            return best
        return self.state.global_step
