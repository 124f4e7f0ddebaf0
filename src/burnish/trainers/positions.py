"""Whether rows, or the longest prompt with the longest answer, fit a model: its positions, and its vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.data.lint import NUM_LISTED_ROWS, Finding
from burnish.models.introspect import reads_images
from burnish.trainers.logp_columns import largest_ids, row_lengths

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedModel

KEYS = ("max_position_embeddings", "n_positions")  # of a configuration; models without either have no limit


def num_positions(config: PreTrainedConfig) -> int | None:
    """The positions that a model was made for, or None if its configuration names no limit."""
    options: dict[str, Any] = config.get_text_config().to_dict()
    return next((options[key] for key in KEYS if isinstance(options.get(key), int) and options[key] > 0), None)


def check_positions(config: PreTrainedConfig, longest: Mapping[str, int], *, max_new_tokens: int) -> None:
    """Refuse prompts that leave no room for the longest answer.

    Args:
        config: of the model.
        longest: data set -> tokens of its longest prompt.
        max_new_tokens: of an answer.

    Raises:
        ValueError: prompt and answer together are longer than the model's positions; the message says what would fit.
    """
    limit = num_positions(config)
    if limit is None or not longest:
        return
    name, length = max(longest.items(), key=lambda item: item[1])
    if length + max_new_tokens <= limit:
        return
    fixes = [f"- max_completion_length={limit - length}, for shorter answers"] if length < limit else []
    if max_new_tokens < limit:
        fixes.append(f"- max_prompt_length={limit - max_new_tokens}, which keeps the end of longer prompts")
    raise ValueError(
        f"the longest prompt of {name} has {length} tokens and an answer may have {max_new_tokens}, together "
        f"{length + max_new_tokens}; the model was made for {limit} (max_position_embeddings), and beyond them its "
        "answers are nonsense or its forward fails. Fix, one of:\n"
        + "\n".join([*fixes, "- a model with more positions, or without prompts that long"])
    )


def lint_positions(config: PreTrainedConfig, rows: Dataset, *, name: str) -> list[Finding]:
    """`beyond_positions`: rows whose prompt and longest answer have more tokens than the model has positions.

    Args:
        config: of the model.
        rows: prepared.
        name: the data set's name in messages.
    """
    limit = num_positions(config)
    lengths = row_lengths(rows)
    beyond = np.flatnonzero(lengths > (limit or lengths.max()))
    if not len(beyond):
        return []
    message = (
        f"{len(beyond)} rows of {name} have up to {lengths.max()} tokens; the model was made for {limit} "
        f"(max_position_embeddings), and beyond them its log-probs mean little or its forward fails: max_length={limit}"
    )
    first = rows.select(beyond[:NUM_LISTED_ROWS])["row_id"]
    return [Finding("beyond_positions", message, len(beyond), tuple(map(int, first)))]


def check_vocabulary(model: PreTrainedModel, rows: Dataset, *, name: str) -> None:
    """Refuse rows with a token that the model has no embedding for. Models that read images may put others there.

    Args:
        model: the plain one.
        rows: prepared.
        name: the data set's name in messages.

    Raises:
        ValueError: there is such a token; the message names its row.
    """
    if reads_images(model):
        return
    embeddings: Any = model.get_input_embeddings()
    size, largest = len(embeddings.weight), largest_ids(rows)
    if not (largest >= size).any():
        return
    row = int(np.argmax(largest >= size))
    raise ValueError(
        f"row {rows[row]['row_id']} of {name} has the token id {largest[row]}, and {type(model).__name__} has {size} "
        "embeddings: the tokenizer has tokens that the model does not know. Call "
        "model.resize_token_embeddings(len(tokenizer)) and give that model, or use the model's own tokenizer"
    )
