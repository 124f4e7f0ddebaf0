"""The inputs of both reward arms, made once: a classifier with a head drawn by the seed, and the rows of DPO's arms.

Padding is a token of its own: a classifier reads a text's score at its last token that is not padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_prepare import TextRow, pick_rows, usable_rows
from inputs import prepare, save_scored_model, token_ids

from burnish.models.padding import own_pad_token


def inputs(job: dict[str, Any], folder: Path, tokenizer: Any) -> dict[str, Any]:
    return {
        "tokenizer": job["model"],
        "pad_token": own_pad_token(tokenizer),
        "model": save_scored_model(job["model"], folder / "classifier", tokenizer, seed=job["seed"]),
        **pick_rows(job, tokenizer, usable=short_rows),
    }


def short_rows(texts: list[TextRow], job: Mapping[str, Any], tokenizer: Any) -> list[TextRow]:
    """The rows whose answers both fit into `max_length`: TRL leaves out the others, Burnish cuts them."""

    def fits(row: TextRow) -> bool:
        lengths = (len(token_ids(row["prompt"] + row[side], tokenizer)) for side in ("chosen", "rejected"))
        return max(lengths) <= job["max_length"]

    return usable_rows([row for row in texts if fits(row)], job, tokenizer)


if __name__ == "__main__":
    prepare(inputs)
