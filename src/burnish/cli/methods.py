"""The methods that a run file can name, and where their classes are; imported only when they are needed."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from burnish.trainers.dpo import DPOConfig, DPOTrainer


@dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Attributes:
        module: where the two classes are.
        config, trainer: their names.
        reads_preferences: its rows are preferences, as `burnish.data.check` reads them.
    """

    module: str
    config: str
    trainer: str
    reads_preferences: bool = False


METHODS = {"dpo": Method("burnish.trainers.dpo", "DPOConfig", "DPOTrainer", reads_preferences=True)}


def load(method: Method) -> tuple[type[DPOConfig], type[DPOTrainer]]:
    """Configuration and trainer of a method; imports torch."""
    module = importlib.import_module(method.module)
    return vars(module)[method.config], vars(module)[method.trainer]
