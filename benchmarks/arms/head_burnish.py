"""Burnish's arm of `head.py`: the tiled head on the answers' positions."""

from __future__ import annotations

from head_measure import run
from torch import Tensor

from burnish.models.head import score_tokens
from burnish.models.introspect import HeadSpec


def score(hidden: Tensor, weight: Tensor, ids: Tensor, is_answer: Tensor) -> tuple[Tensor, Tensor]:
    scored = is_answer[:, 1:]
    states = hidden[:, :-1][scored]  # (R, H)
    found = score_tokens(states, weight, None, ids[:, 1:][scored], spec=HeadSpec(), needs=frozenset({"entropy"}))
    return found["logps"], found["entropy"]


if __name__ == "__main__":
    run(library="burnish", score=score)
