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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from transformers import ProcessorMixin
from transformers.utils import logging

from burnish.data.images import DIGEST_COLUMN
from burnish.data.kwise import KWISE_REF_COLUMN, KWISE_TOKEN_COLUMN
from burnish.data.numbers import REF_COLUMNS, TOKEN_COLUMNS
from burnish.data.report import content_fingerprint as rows_fingerprint
from burnish.data.sampler import RowDataset
from burnish.data.schema import KWISE_IDS, KWISE_MASK, PAIR_IDS, PAIR_MASKS, PROMPT_COLUMN
from burnish.models.moving import MovingReference
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
from burnish.trainers.logp_columns import flat_layout, place_values, scoring_order, with_logps

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from burnish.trainers.referring import ReferringTrainer
    from burnish.types import PreferenceBatch

CONTENT_COLUMNS = (PROMPT_COLUMN, *PAIR_IDS, *PAIR_MASKS, KWISE_IDS, KWISE_MASK, DIGEST_COLUMN)
LOGP_COLUMNS = (*REF_COLUMNS, *TOKEN_COLUMNS, KWISE_REF_COLUMN, KWISE_TOKEN_COLUMN)
LISTED_ROWS = 10


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


def precompute(trainer: ReferringTrainer) -> Precomputation:
    """Score all rows of a trainer with its reference, before the first step.

    Per token if the trainer asks for that (`needs_ref_tokens`), else the sum over each answer. What is on disk under
    the same `CacheKey` is read; a damaged file is told and computed again.

    Raises:
        ValueError: rows of another kind, a log-prob that is not finite, or a policy that was changed meanwhile.
    """
    reference = trainer.reference
    assert isinstance(reference, ModelReference)
    if isinstance(reference, StartingPolicy):
        reference.check_unchanged()
    per_token = trainer.needs_ref_tokens
    weights = content_fingerprint(reference)

    def scored(dataset: Dataset, name: str) -> Dataset:
        check_can_precompute(dataset, name=name)
        key = cache_key(trainer, dataset, weights=weights, per_token=per_token)
        return with_logps(dataset, _logps(trainer, dataset, key, name=name), per_token=per_token)

    rows: Any = trainer.train_dataset  # no stream, as was checked
    train = None if rows is None else scored(rows, "train")
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


def could_precompute(trainer: ReferringTrainer) -> bool:
    """Whether the option would save work: the reference is a model that stays, and the rows can be scored before."""
    stays = isinstance(trainer.reference, ModelReference) and not isinstance(trainer.reference, MovingReference)
    return stays and isinstance(trainer.train_dataset, Dataset) and "divergence" not in trainer.needs


def check_can_precompute(dataset: Any, *, name: str) -> None:
    """Refuse rows that cannot be scored before training.

    Raises:
        ValueError: a stream, or rows with log-probs of their own.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"{name} is a stream ({type(dataset).__name__}), and precompute_ref_log_probs=True needs all rows before "
            "the first step: load them without streaming, or set precompute_ref_log_probs=False"
        )
    present = dataset.column_names
    if own := [column for column in present if column in LOGP_COLUMNS]:
        raise ValueError(
            f"{name} has {', '.join(own)} already: set precompute_ref_log_probs=False to use them, or remove them "
            "from every data set to have them computed"
        )


def cache_key(trainer: ReferringTrainer, dataset: Dataset, *, weights: str, per_token: bool) -> CacheKey:
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
        layers=_layer_settings(trainer),
        device=device_fingerprint(trainer.args.device),
        versions=library_versions(),
        code=code_fingerprint(),
    )


def batch_size(trainer: ReferringTrainer) -> int:
    """Rows that are scored together: `precompute_ref_batch_size`, else as in training."""
    return trainer.args.precompute_ref_batch_size or trainer.args.per_device_train_batch_size


def value_dtype(trainer: ReferringTrainer) -> torch.dtype:
    """The dtype of log-probs: float64 for a model in float64, else float32."""
    return torch.promote_types(trainer.model.dtype, torch.float32)


def score_rows(trainer: ReferringTrainer, dataset: Dataset, *, per_token: bool, name: str) -> Float[Tensor, "R"]:
    """The reference's log-probs of all rows in their `FlatLayout`, the same on every rank.

    Raises:
        ValueError: a log-prob that is not finite, or a collator that makes other completions than the rows have.
    """
    args, rows, layout = trainer.args, RowDataset(dataset), flat_layout(dataset, per_token=per_token)
    order, size = scoring_order(dataset), batch_size(trainer)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    mine = batches[args.process_index :: args.world_size]
    found = [torch.empty(0, 2, dtype=torch.float64)]
    for indices in logging.tqdm(mine, desc=f"reference log-probs of {name}", disable=args.disable_tqdm):
        batch: PreferenceBatch = trainer.data_collator(rows.__getitems__(indices)).to(args.device)
        logps = trainer.compute_ref_log_probs(batch)  # (N, T)
        found.append(place_values(batch, logps if per_token else logps.sum(1, keepdim=True), indices, layout))
    table = torch.cat(found)  # (K, 2)
    gathered = gather_rows(table.to(args.device))[0].cpu() if args.world_size > 1 else table
    values = torch.full((layout.num_values,), torch.nan, dtype=value_dtype(trainer))
    values[gathered[:, 0].long()] = gathered[:, 1].to(values.dtype)
    bad = np.unique(layout.row_of(np.flatnonzero(~values.isfinite().numpy())))
    if len(bad):
        ids = [dataset[int(row)]["row_id"] for row in bad[:LISTED_ROWS]]
        raise ValueError(
            f"the reference ({trainer.reference.description}) gives {len(bad)} rows of {name} a log-prob that is not "
            f"finite, first of them rows {ids}: check its weights; if they are float16, use float32 or bfloat16"
        )
    return values


def _logps(trainer: ReferringTrainer, dataset: Dataset, key: CacheKey, *, name: str) -> Float[Tensor, "R"]:
    """Read from disk, or computed and written there."""
    started, per_token = time.perf_counter(), key.per == "token"
    kept = _kept(trainer, key, num_values=flat_layout(dataset, per_token=per_token).num_values)
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


def _kept(trainer: ReferringTrainer, key: CacheKey, *, num_values: int) -> Tensor | None:
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


def _layer_settings(trainer: ReferringTrainer) -> str:
    """What decides the last bits of a layer's results, beside its code and the device."""
    args = trainer.args
    compiled = args.torch_compile_backend if trainer.num_compiled_layers else None
    return f"{args.prefix_sharing}: {trainer.sharing.layout}, lean {args.lean_activations}, compiled by {compiled}"


def _image_settings(trainer: ReferringTrainer) -> str:
    """Hash of how the processor turns images into the model's inputs."""
    assert isinstance(trainer.processing_class, ProcessorMixin)
    settings = trainer.processing_class.to_json_string()
    return hashlib.blake2b(settings.encode(), digest_size=16).hexdigest()
