"""Reward functions, classifiers and options -> a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from burnish.rewards import Scorer

if TYPE_CHECKING:
    from burnish.trainers.rollout_options import RewardOptions


def make_scorer(reward_funcs: Any, processing_classes: Any, options: RewardOptions) -> Scorer:
    """The scorer of a trainer.

    Raises:
        ValueError: no function, an unknown name, or options that do not fit.
    """
    if reward_funcs is None or (isinstance(reward_funcs, Sequence) and not reward_funcs):
        raise ValueError("reward_funcs is empty: give a function, the name of a built-in one, or a list of them")
    return Scorer(
        reward_funcs,
        processing_classes=processing_classes,
        weights=options.reward_weights,
        options=options.reward_options,
        isolation=options.reward_isolation,
        timeout=options.reward_timeout,
        retries=options.reward_retries,
        on_error=options.on_reward_error,
    )
