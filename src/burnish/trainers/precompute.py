"""Reference log-probs computed once: one pass over all prepared rows before the first step, kept on disk.

    rows -> longest first -> batches of a fixed size, dealt to the ranks -> reference -> gathered -> columns

Which rows are scored together depends on the rows and the batch size alone, so that every number of ranks, and a
resumed run, gets the same bits. Values are kept as computed, in float32 or float64.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from transformers import ProcessorMixin
from transformers.utils import logging

from burnish.data.images import DIGEST_COLUMN
from burnish.data.report import content_fingerprint as rows_fingerprint
from burnish.data.sampler import RowDataset
from burnish.models.refcache import (
    CacheKey,
    DamagedCacheError,
    Precomputed,
    StartingPolicy,
    code_fingerprint,
    content_fingerprint,
    device_fingerprint,
    library_versions,
    read_logps,
    write_logps,
)
from burnish.models.reference import ModelReference
from burnish.runtime.distributed import gather_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from burnish.trainers.dpo import DPOTrainer
    from burnish.types import PreferenceBatch

ANSWERS = ("chosen", "rejected")  # the order of a parcel's pairs
ID_COLUMNS = ("prompt_input_ids", *(f"{answer}_input_ids" for answer in ANSWERS))
CONTENT_COLUMNS = (*ID_COLUMNS, *(f"{answer}_loss_mask" for answer in ANSWERS), DIGEST_COLUMN)
LISTED_ROWS = 10
LENGTHS_BATCH = 10_000  # rows whose lengths are read at a time


@dataclass(frozen=True, kw_only=True)
class Precomputation:
    """Data sets with the reference's log-probs, and the reference that reads them there.

    Attributes:
        train: training rows, or None.
        evaluation: evaluation rows, the same by name, or None.
        reference: reads the rows' columns; the model that computed them is no longer needed.
    """

    train: Dataset | None
    evaluation: Dataset | dict[str, Dataset] | None
    reference: Precomputed


def precompute(trainer: DPOTrainer) -> Precomputation:
    """Score all rows of a trainer with its reference, before the first step.

    Per token if the trainer weights tokens (`ld_alpha`), else the sum over each answer. What is on disk under the
    same `CacheKey` is read; a damaged file is told and computed again.

    Raises:
        ValueError: rows of another kind, a log-prob that is not finite, or a policy that was changed meanwhile.
    """
    reference = trainer.reference
    assert isinstance(reference, ModelReference)
    if isinstance(reference, StartingPolicy):
        reference.check_unchanged()
    per_token = trainer.args.ld_alpha is not None
    weights = content_fingerprint(reference)

    def scored(dataset: Dataset, name: str) -> Dataset:
        check_can_precompute(dataset, name=name)
        key = cache_key(trainer, dataset, weights=weights, per_token=per_token)
        return with_logps(dataset, _logps(trainer, dataset, key, name=name), per_token=per_token)

    train = None if trainer.train_dataset is None else scored(trainer.train_dataset, "train")
    held_out = trainer.eval_dataset
    if isinstance(held_out, Mapping):
        evaluation = {name: scored(rows, f"eval_{name}") for name, rows in held_out.items()}
    else:
        evaluation = None if held_out is None else scored(held_out, "eval")
    return Precomputation(
        train=train,
        evaluation=evaluation,
        reference=Precomputed(reference, knows_tokens=per_token),
    )


def check_can_precompute(dataset: Any, *, name: str) -> None:
    """Refuse rows that cannot be scored before training.

    Raises:
        ValueError: a stream, rows that are no pairs, or rows with log-probs of their own.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"{name} is a stream ({type(dataset).__name__}), and precompute_ref_log_probs=True needs all rows before "
            "the first step: load them without streaming, or set precompute_ref_log_probs=False"
        )
    present = dataset.column_names
    if missing := [column for column in ID_COLUMNS if column not in present]:
        raise ValueError(
            f"{name} has no {', '.join(missing)}: precompute_ref_log_probs=True is for rows of one chosen and one "
            "rejected answer. Set precompute_ref_log_probs=False for rows of several completions."
        )
    if own := [column for column in present if column.startswith("ref_")]:
        raise ValueError(
            f"{name} has {', '.join(own)} already: set precompute_ref_log_probs=False to use them, or remove them "
            "from every data set to have them computed"
        )


def cache_key(trainer: DPOTrainer, dataset: Dataset, *, weights: str, per_token: bool) -> CacheKey:
    """Everything that the reference's log-probs of these rows depend on."""
    content = [column for column in CONTENT_COLUMNS if column in dataset.column_names]
    precision = trainer.accelerator.mixed_precision
    return CacheKey(
        weights=weights,
        rows=rows_fingerprint(dataset.select_columns(content)),
        per="token" if per_token else "row",
        dtype=str(value_dtype(trainer)),
        autocast="off" if precision == "no" else precision,
        batch_size=batch_size(trainer),
        padding=int(trainer.args.pad_to_multiple_of or 1),
        images=_image_settings(trainer) if DIGEST_COLUMN in content else "",
        device=device_fingerprint(trainer.args.device),
        versions=library_versions(),
        code=code_fingerprint(),
    )


def batch_size(trainer: DPOTrainer) -> int:
    """Rows that are scored together: `precompute_ref_batch_size`, else as in training."""
    return trainer.args.precompute_ref_batch_size or trainer.args.per_device_train_batch_size


def value_dtype(trainer: DPOTrainer) -> torch.dtype:
    """The dtype of log-probs: float64 for a model in float64, else float32."""
    return torch.promote_types(trainer.model.dtype, torch.float32)


def scoring_order(dataset: Dataset) -> list[int]:
    """Rows by falling length of prompt and longer answer, equal ones in their own order."""
    prompts, *answers = (_lengths(dataset, column) for column in ID_COLUMNS)
    return np.argsort(-(prompts + np.maximum(*answers)), kind="stable").tolist()


def with_logps(dataset: Dataset, values: Float[Tensor, "R"], *, per_token: bool) -> Dataset:
    """The rows with the log-probs of both answers, as numbers or as lists of one number for each answer token.

    Args:
        dataset: prepared rows.
        values: first of all chosen answers, row by row, then of all rejected ones.
        per_token: one value for each stored token of an answer, 0 where it is not trained.
    """
    sizes = answer_sizes(dataset, per_token=per_token)
    for answer, size, part in zip(ANSWERS, sizes, values.split(sizes.sum(1).tolist()), strict=True):
        column: Any = part.numpy()
        if per_token:
            offsets = np.concatenate([[0], np.cumsum(size)])
            column = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(column))
        name = f"ref_{answer}_token_logps" if per_token else f"ref_{answer}_logps"
        dataset = dataset.add_column(name, column)  # pyright: ignore[reportCallIssue]
    return dataset


def answer_sizes(dataset: Dataset, *, per_token: bool) -> Int[np.ndarray, "2 rows"]:
    """How many values each chosen and each rejected answer has: its stored tokens, or 1."""
    columns = [_lengths(dataset, f"{answer}_input_ids") for answer in ANSWERS]
    return np.stack(columns if per_token else [np.ones_like(lengths) for lengths in columns])


def score_rows(trainer: DPOTrainer, dataset: Dataset, *, per_token: bool, name: str) -> Float[Tensor, "R"]:
    """The reference's log-probs of all rows, the same on every rank: chosen row by row, then rejected.

    Raises:
        ValueError: a log-prob that is not finite, or a collator that does not make one pair of each row.
    """
    args, rows = trainer.args, RowDataset(dataset)
    sizes = answer_sizes(dataset, per_token=per_token)  # (2, rows)
    starts = (np.cumsum(sizes) - sizes.reshape(-1)).reshape(sizes.shape)  # (2, rows)
    order, size = scoring_order(dataset), batch_size(trainer)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    mine = batches[args.process_index :: args.world_size]
    found = [torch.empty(0, 2, dtype=torch.float64)]
    for indices in logging.tqdm(mine, desc=f"reference log-probs of {name}", disable=args.disable_tqdm):
        batch: PreferenceBatch = trainer.data_collator(rows.__getitems__(indices)).to(args.device)
        _check_pairs(batch, len(indices))
        logps, mask = trainer.compute_ref_log_probs(batch), batch.completion_mask  # (N, T)
        if not per_token:
            logps, mask = logps.sum(1, keepdim=True), mask.new_ones(len(batch), 1)  # (N, 1)
        found.append(_placed(logps.cpu(), mask.cpu(), batch.pairs.cpu(), torch.from_numpy(starts[:, indices])))
    table = torch.cat(found)  # (K, 2)
    gathered = gather_rows(table.to(args.device))[0].cpu() if args.world_size > 1 else table
    values = torch.full((int(sizes.sum()),), torch.nan, dtype=value_dtype(trainer))
    values[gathered[:, 0].long()] = gathered[:, 1].to(values.dtype)
    _check_finite(values, dataset, sizes, name=name, reference=trainer.reference.description)
    return values


def _placed(
    logps: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"], pairs: Int[Tensor, "M 2"], starts: Int[Tensor, "2 M"]
) -> Float[Tensor, "K 2"]:
    """Each value under `mask` with its place: where its answer's values start, and its position in the answer."""
    parts: list[Tensor] = []
    for rows, start in zip(pairs.T, starts, strict=True):
        places = start[:, None] + torch.arange(mask.shape[1])  # (M, T)
        keep = mask[rows]
        parts.append(torch.stack([places[keep].double(), logps[rows][keep].double()], dim=1))
    return torch.cat(parts)


def _logps(trainer: DPOTrainer, dataset: Dataset, key: CacheKey, *, name: str) -> Float[Tensor, "R"]:
    """Read from disk, or computed and written there."""
    started, per_token = time.perf_counter(), key.per == "token"
    kept = _kept(trainer, key, num_values=int(answer_sizes(dataset, per_token=per_token).sum()))
    values = score_rows(trainer, dataset, per_token=per_token, name=name) if kept is None else kept
    if kept is None and trainer.is_local_process_zero():
        try:
            write_logps(key, values)
        except OSError as error:
            message = f"the reference's log-probs of {name} are not kept for another run: {error}"
            trainer.tell("reference_not_kept", message, path=str(key.path))
    source = f"computed in {time.perf_counter() - started:.1f} s" if kept is None else f"read from {key.path}"
    message = f"reference log-probs of {len(dataset)} rows of {name}: {source}"
    trainer.tell("reference", message, show=False, data_set=name, path=str(key.path), computed=kept is None)
    return values


def _kept(trainer: DPOTrainer, key: CacheKey, *, num_values: int) -> Tensor | None:
    """What is on disk under a key, if every rank has the same."""
    values = None
    if key.path.is_file():
        try:
            values = read_logps(key, num_values=num_values)
        except DamagedCacheError as error:
            message = f"{key.path} is damaged, so the reference's log-probs are computed again: {error}"
            trainer.tell("damaged_reference_cache", message, path=str(key.path), problem=str(error))
    if trainer.args.world_size == 1:
        return values
    mark = 0.0 if values is None else 1.0 + int(hashlib.sha256(values.numpy().data).hexdigest()[:12], 16)
    marks, _ = gather_rows(torch.tensor([[mark]], dtype=torch.float64, device=trainer.args.device))  # (ranks, 1)
    return values if bool((marks == mark).all()) else None


def _check_pairs(batch: PreferenceBatch, num_rows: int) -> None:
    if len(batch.pairs) != num_rows:
        raise ValueError(
            f"the data_collator made {len(batch.pairs)} pairs of {num_rows} rows, and precompute_ref_log_probs=True "
            "needs one of each row, in their order: set it to False"
        )


def _check_finite(
    values: Tensor, dataset: Dataset, sizes: Int[np.ndarray, "2 rows"], *, name: str, reference: str
) -> None:
    """Refuse log-probs that are not finite, naming their rows."""
    bad = ~values.isfinite().numpy()
    if not bad.any():
        return
    rows = np.repeat(np.tile(np.arange(sizes.shape[1]), len(sizes)), sizes.reshape(-1))[bad]
    ids = [dataset[int(row)]["row_id"] for row in np.unique(rows)[:LISTED_ROWS]]
    raise ValueError(
        f"the reference ({reference}) gives {len(np.unique(rows))} rows of {name} a log-prob that is not finite, first "
        f"of them rows {ids}: check its weights, and train in float32 or bfloat16 if this is float16"
    )


def _lengths(dataset: Dataset, column: str) -> Int[np.ndarray, "rows"]:
    """How many items each list of a column has."""
    parts = dataset.select_columns([column]).with_format("arrow").iter(batch_size=LENGTHS_BATCH)
    tables = cast("Iterator[pa.Table]", parts)
    return np.concatenate([table.column(0).combine_chunks().value_lengths().to_numpy() for table in tables])


def _image_settings(trainer: DPOTrainer) -> str:
    """Hash of how the processor turns images into the model's inputs."""
    assert isinstance(trainer.processing_class, ProcessorMixin)
    settings = trainer.processing_class.to_json_string()
    return hashlib.blake2b(settings.encode(), digest_size=16).hexdigest()
