"""Whether the longest prompt and the longest answer fit into the positions that a model was made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

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
