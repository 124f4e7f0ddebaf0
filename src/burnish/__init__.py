"""Burnish aligns language models: exact, light and readable. Public names are imported when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.losses.preference import preference_loss
    from burnish.models.forward import forward
    from burnish.trainers.base import PolicyTrainer
    from burnish.trainers.config import PolicyConfig, arg
    from burnish.trainers.dpo import DPOConfig, DPOTrainer
    from burnish.types import LossOutput, Mean, PairLogps, PreferenceBatch, Term, TokenBatch, TokenStats

__version__ = "0.1.0"

_HOME = {
    "DPOConfig": "burnish.trainers.dpo",
    "DPOTrainer": "burnish.trainers.dpo",
    "LossOutput": "burnish.types",
    "Mean": "burnish.types",
    "PairLogps": "burnish.types",
    "PolicyConfig": "burnish.trainers.config",
    "PolicyTrainer": "burnish.trainers.base",
    "PreferenceBatch": "burnish.types",
    "Term": "burnish.types",
    "TokenBatch": "burnish.types",
    "TokenStats": "burnish.types",
    "arg": "burnish.trainers.config",
    "forward": "burnish.models.forward",
    "preference_loss": "burnish.losses.preference",
}

__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "LossOutput",
    "Mean",
    "PairLogps",
    "PolicyConfig",
    "PolicyTrainer",
    "PreferenceBatch",
    "Term",
    "TokenBatch",
    "TokenStats",
    "arg",
    "forward",
    "preference_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'burnish' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
