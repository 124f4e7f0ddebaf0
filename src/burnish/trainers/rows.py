"""A trainer's rows: from whatever was given as a data set to this rank's parcels."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers import ProcessorMixin

from burnish.data.collate import PreferenceCollator
from burnish.data.lint import Finding, lint_preferences
from burnish.data.mixture import mix, read_weights
from burnish.data.pixels import ImageCollator
from burnish.data.report import DataReport
from burnish.data.sampler import BatchLoader, RankBatchSampler
from burnish.data.schema import KWISE_IDS, PAIR_IDS, PROMPT_COLUMN, is_prepared
from burnish.data.sources import load_rows, pick_split
from burnish.data.stream import RowStream, prepare_stream
from burnish.data.tokenize import TruncationPolicy, prepare_preferences
from burnish.models.adapters import plain_model
from burnish.models.padding import filling_id
from burnish.models.vision import tokenizer_of
from burnish.trainers.positions import check_vocabulary, lint_positions
from burnish.trainers.streaming import StreamingMixin, StreamLoader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from burnish.trainers.config import PolicyConfig


class RowsMixin(StreamingMixin):
    """Preparing data sets, and the loaders over them."""

    def _prepare_dataset(self, dataset: Any, name: str) -> Dataset:
        """Rows of any accepted form -> token ids; what was cut, dropped or left out is in `data_reports[name]`."""
        with self.args.main_process_first(desc=f"tokenising {name}"):
            prepared, report = prepare_rows(
                load_rows(dataset), self.processing_class, self.args, end_token_ids=self.end_token_ids, name=name
            )
        self.data_reports[name] = report
        return prepared

    def _prepare_train(self, train_dataset: Any) -> Dataset | RowStream | None:
        """One source as it is; a mapping of several mixed; a stream with its first rows checked."""
        args = self.args
        if train_dataset is None:
            return None
        if isinstance(train_dataset, Mapping):
            return self._mix(train_dataset)
        if args.dataset_weights is not None:
            raise ValueError(
                f"dataset_weights={args.dataset_weights!r}, but train_dataset is one source: give a mapping of names "
                "to sources, or remove dataset_weights"
            )
        if isinstance(train_dataset, IterableDataset):
            return self._check_stream(train_dataset)
        self._refuse_buffer()
        return self._prepare_dataset(train_dataset, "train")

    def _mix(self, sources: Mapping[str, Any]) -> Dataset:
        if not sources:
            raise ValueError("train_dataset is an empty mapping: give at least one source")
        self._refuse_buffer()
        read_weights(self.args.dataset_weights, [str(name) for name in sources])  # before any source is read
        prepared = {str(name): self._prepare_dataset(rows, f"train_{name}") for name, rows in sources.items()}
        mixed, self.mixture = mix(prepared, self.args.dataset_weights)
        self.source_names = self.mixture.names
        return mixed

    def _check_stream(self, source: IterableDataset) -> RowStream:
        args = self.args
        if args.max_steps <= 0:
            raise ValueError("train_dataset is a stream, whose length nobody knows: set max_steps")
        for option, off in (("dataloader_num_workers", 0), ("dataloader_drop_last", False)):
            if (value := vars(args)[option]) != off:
                raise ValueError(f"{option}={value!r}, but a stream is read in the training process: set it to {off!r}")
        seed, size = self._data_seed, args.shuffle_buffer_size
        options = preparation_options(self.processing_class, args, end_token_ids=self.end_token_ids, name="train")
        stream, self.data_reports["train"] = prepare_stream(source, shuffle_buffer_size=size, seed=seed, **options)
        return stream

    def _refuse_buffer(self) -> None:
        if self.args.shuffle_buffer_size is not None:
            raise ValueError(
                f"shuffle_buffer_size={self.args.shuffle_buffer_size}, but train_dataset is no stream: its rows are "
                "shuffled as a whole. Remove it."
            )

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def train_fingerprint(self) -> str | None:
        """What is trained on, in which order, beside the seed; of a stream, its first rows."""
        if self.mixture is not None:
            reports = (self.data_reports[f"train_{name}"] for name in self.mixture.names)
            return self.mixture.fingerprint([report.fingerprint for report in reports])
        return self.data_reports["train"].fingerprint if "train" in self.data_reports else None

    def _prepare_eval(self, eval_dataset: Any) -> Any:
        if eval_dataset is None:
            return None
        if isinstance(eval_dataset, Mapping):
            return {name: self._prepare_dataset(rows, f"eval_{name}") for name, rows in eval_dataset.items()}
        return self._prepare_dataset(eval_dataset, "eval")

    def _lint(self) -> list[Finding]:
        """Faults of the data sets that do not stop a run, told when it starts."""
        if self.train_dataset is None:
            return []
        given = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        held_out = {name: rows for name, rows in given.items() if rows is not None}
        train = self.train_dataset.head if isinstance(self.train_dataset, RowStream) else self.train_dataset
        found, model = lint_preferences(train, held_out), plain_model(self.policy)
        for name, rows in [("train", train), *held_out.items()]:
            check_vocabulary(model, rows, name=name)
            found += lint_positions(model.config, rows, name=name)
        return found

    def _make_collator(self) -> PreferenceCollator | ImageCollator:
        return make_collator(self.processing_class, self.args, end_token_ids=self.end_token_ids)

    def _loader(self, dataset: Dataset, *, batch_size: int, train: bool) -> BatchLoader:
        args = self.args
        sampler = RankBatchSampler(
            len(dataset),
            batch_size=batch_size,
            num_replicas=args.world_size,
            rank=args.process_index,
            shuffle=train,
            seed=self._data_seed,
            drop_last=args.dataloader_drop_last and train,
            order=self.mixture.order if train and self.mixture is not None else None,
        )
        pin = args.dataloader_pin_memory and args.device.type == "cuda"
        return BatchLoader(
            dataset, sampler, self.data_collator, num_workers=args.dataloader_num_workers, pin_memory=pin
        )

    def get_train_dataloader(self) -> BatchLoader | StreamLoader:
        """This rank's micro-batches; no row is duplicated."""
        if self.train_dataset is None:
            raise ValueError("training needs train_dataset: give rows of it to the trainer")
        if isinstance(self.train_dataset, RowStream):
            return self._stream_loader(self.train_dataset)
        return self._loader(self.train_dataset, batch_size=self._train_batch_size, train=True)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> BatchLoader:
        """The same for evaluation, in order. Rows that are not prepared yet are."""
        if isinstance(eval_dataset, str) and isinstance(self.eval_dataset, dict) and eval_dataset in self.eval_dataset:
            eval_dataset = self.eval_dataset[eval_dataset]
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("evaluation needs eval_dataset: give one to the trainer, or to evaluate()")
        if not (isinstance(dataset, Dataset) and is_prepared(dataset.column_names)):
            dataset = self._prepare_dataset(dataset, "eval")
        return self._loader(longest_first(dataset), batch_size=self.args.eval_batch_size, train=False)

    def get_test_dataloader(self, test_dataset: Any) -> BatchLoader:
        """As `get_eval_dataloader`, for `predict`."""
        return self.get_eval_dataloader(test_dataset)


def chosen_splits(train_dataset: Any, eval_dataset: Any) -> tuple[Any, Any]:
    """What is trained on, and evaluated, of a data set of splits: its split `train`, and each split by itself.

    Raises:
        DataError: there is no split `train` to train on.
    """
    if isinstance(train_dataset, DatasetDict | IterableDatasetDict):
        train_dataset = pick_split(train_dataset, "train", "train_dataset")
    return train_dataset, dict(eval_dataset) if isinstance(eval_dataset, DatasetDict) else eval_dataset


def opened(dataset: Any) -> Any:
    """The data set, read if it is a path, a name or a list: what is not there, or empty, is found before a model loads.

    Raises:
        DataError: see `load_rows`.
    """
    if isinstance(dataset, str | Path | list | tuple | Dataset):
        return load_rows(dataset)
    if isinstance(dataset, Mapping) and not isinstance(dataset, IterableDatasetDict):
        return {name: opened(rows) for name, rows in dataset.items()}
    return dataset


def prepare_rows(
    rows: Dataset,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    args: PolicyConfig,
    *,
    end_token_ids: Sequence[int],
    name: str,
    on_bad_row: str | None = None,
    is_limited: bool = True,
) -> tuple[Dataset, DataReport]:
    """Rows as a trainer with these options prepares them, and the report; see `prepare_preferences`.

    Args:
        rows: in any accepted schema.
        processing_class: tokenizer or processor.
        args: the trainer's options.
        end_token_ids: the tokens that end an answer.
        name: the data set's name in messages.
        on_bad_row: in place of the option.
        is_limited: rows are cut to the lengths of the options; else they stay whole.
    """
    options = preparation_options(
        processing_class, args, end_token_ids=end_token_ids, name=name, on_bad_row=on_bad_row, is_limited=is_limited
    )
    return prepare_preferences(rows, **options)


def preparation_options(
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    args: PolicyConfig,
    *,
    end_token_ids: Sequence[int],
    name: str,
    on_bad_row: str | None = None,
    is_limited: bool = True,
) -> dict[str, Any]:
    """What `prepare_preferences` and `prepare_stream` take beside the rows; arguments as in `prepare_rows`."""
    limits = TruncationPolicy(
        max_length=args.max_length,
        max_prompt_length=args.max_prompt_length,
        max_completion_length=args.max_completion_length,
        truncation_mode=args.truncation_mode,
    )
    return {
        "tokenizer": tokenizer_of(processing_class),
        "processor": processing_class if isinstance(processing_class, ProcessorMixin) else None,
        "truncation": limits if is_limited else TruncationPolicy(),
        "on_bad_row": on_bad_row or args.on_bad_row,
        "eos_token_ids": end_token_ids,
        "num_proc": args.dataset_num_proc,
        "name": name,
        "keep_template_end": args.keeps_template_end,
        "kind": args.row_kind,
        "whole": args.whole_rows,
    }


def make_collator(
    processing_class: PreTrainedTokenizerBase | ProcessorMixin, args: PolicyConfig, *, end_token_ids: Sequence[int]
) -> PreferenceCollator | ImageCollator:
    """What makes parcels of prepared rows, with images if the model reads them."""
    pad = filling_id(tokenizer_of(processing_class), end_token_ids)
    multiple = args.pad_to_multiple_of
    collator = PreferenceCollator(
        pad,
        pad_to_multiple_of=None if multiple is None else int(multiple),
        margin_from_scores=args.margin_from_scores,
    )
    return ImageCollator(collator, processing_class) if isinstance(processing_class, ProcessorMixin) else collator


def longest_first(dataset: Dataset) -> Dataset:
    """The rows by falling length, so that evaluation pads little; sums do not depend on the order."""
    prompts = map(len, dataset[PROMPT_COLUMN])
    if KWISE_IDS in dataset.column_names:
        answers = (max(map(len, completions)) for completions in dataset[KWISE_IDS])
    else:
        answers = map(max, *(map(len, dataset[column]) for column in PAIR_IDS))
    lengths = list(map(operator.add, prompts, answers))
    return dataset.select(sorted(range(len(dataset)), key=lambda row: -lengths[row]))
