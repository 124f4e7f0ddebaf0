"""What corrects for the sampler: a name or a function -> a closed function, checked once before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from burnish.importance import ImportanceWeights, check_correction, importance_corrections

if TYPE_CHECKING:
    from burnish.registry import Entry
    from burnish.trainers.policy_options import PolicyLossOptions
    from burnish.types import TokenLoss

BOUNDS = {"clip_max": "importance_sampling_clip_max", "clip_min": "importance_sampling_clip_min"}


def bind_correction(options: PolicyLossOptions, loss: Entry[..., TokenLoss]) -> Callable[..., ImportanceWeights] | None:
    """The correction of `importance_sampling_mode`, with its bounds; None without `importance_sampling_correction`.

    Raises:
        ValueError: an unknown one, bounds that it cannot have or does not read, one that the loss cannot take, or a
            result that is no `ImportanceWeights` of the tokens.
    """
    if not options.importance_sampling_correction:
        return None
    row = importance_corrections.entry(options.importance_sampling_mode)
    read = {name: vars(options)[field] for name, field in BOUNDS.items() if name in row.hyper_parameters}
    for name in BOUNDS.keys() - read.keys():
        _refuse_set(options, BOUNDS[name], name, row.name)
    (entry,) = importance_corrections.bind([options.importance_sampling_mode], options, read)
    check_correction(entry, loss)
    result: Any = entry.function(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2) > 0)
    shape = tuple(result.weights.shape) if isinstance(result, ImportanceWeights) else type(result).__name__
    if shape != (1, 2):
        raise ValueError(
            f"the importance correction {entry.name!r} returned {shape} for log-probs of shape (1, 2): return "
            "ImportanceWeights(weights=..., metrics={}), one weight for each token"
        )
    return entry.function


def _refuse_set(options: PolicyLossOptions, field: str, parameter: str, name: str) -> None:
    default = type(options).__dataclass_fields__[field].default
    if (value := vars(options)[field]) != default:
        raise ValueError(
            f"{field}={value!r} is set, and the importance correction {name!r} has no parameter {parameter}: leave it "
            f"at {default!r}, or give the function a keyword-only {parameter}"
        )
