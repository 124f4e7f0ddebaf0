"""Every parcel that crosses a wall between rooms, with its shapes and one worked example each.

Legend for the whole library: **P** prompts, **N** completions (rows), **G** completions per prompt, **M** pairs,
**L** prompt tokens, **T** completion tokens, **F** reward functions, **V** vocabulary, **H** hidden size.

A batch is a set of prompts and the completions that point at them: a preference pair is one prompt with two
completions, a group is one prompt with G. No parcel is ever changed; a room returns a new one.
"""

from burnish.types.batch import PAIR_UNITS, Parcel, PreferenceBatch, TokenBatch, wide
from burnish.types.loss import LossOutput, Mean, Term
from burnish.types.rollout import Answers, Completion, MixedBatch, PolicyTokens, RewardTable, RolloutBatch, TokenLoss
from burnish.types.stats import JudgedLogps, PairLogps, PairScores, TokenStats

__all__ = [
    "PAIR_UNITS",
    "Answers",
    "Completion",
    "JudgedLogps",
    "LossOutput",
    "Mean",
    "MixedBatch",
    "PairLogps",
    "PairScores",
    "Parcel",
    "PolicyTokens",
    "PreferenceBatch",
    "RewardTable",
    "RolloutBatch",
    "Term",
    "TokenBatch",
    "TokenLoss",
    "TokenStats",
    "wide",
]
