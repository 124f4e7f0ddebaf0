"""Reward losses: `PairScores` -> the loss of each pair or of each row, lower is better.

Facts of a row, which the rooms ask for instead of its name:
- `per`: the unit it is averaged over: `pair`; `prompt` for sums over the pairs of a prompt; `row`.
- `needs`: what the rows must carry: `score`.
Notation: s = score, w = chosen, l = rejected, m = margin, e = label_smoothing, σ = sigmoid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from burnish.losses.graded import ranked
from burnish.losses.preference import smoothed_logistic
from burnish.registry import Table
from burnish.types import Term

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from burnish.types import PairScores

reward_losses: Table[..., Tensor] = Table("reward loss", per="pair", needs=frozenset[str]())
reward_loss = reward_losses.register


@reward_loss("bradley_terry", paper="2203.02155")
def bradley_terry(scores: PairScores, *, label_smoothing: float = 0.0) -> Float[Tensor, "M"]:
    """Maximum likelihood of the preferences: chosen wins with probability σ(s_w - s_l - m).

    loss = -(1 - e) log σ(s_w - s_l - m) - e log σ(-(s_w - s_l - m)),   m = margin, 0 without one

    e is the probability that a label is wrong. A tie is there in both orders, with half the weight and the margin's
    sign turned in the second: the cross-entropy with a probability of one half.

    Source: Bradley & Terry (1952); for language models InstructGPT (2203.02155) eq. 1; the margin: Llama 2
    (2307.09288) eq. 2.

    >>> import torch
    >>> from burnish.types import PairScores
    >>> even = PairScores(scores=torch.zeros(2), pairs=torch.tensor([[0, 1]]))
    >>> round(bradley_terry(even).item(), 4)
    0.6931
    """
    lead = scores.difference if scores.margin is None else scores.difference - scores.margin
    return smoothed_logistic(lead, label_smoothing)


@reward_loss("plackett_luce", paper="2305.18290", per="prompt")
def plackett_luce(scores: PairScores) -> Float[Tensor, "M"]:
    """The likelihood of the whole ranking of a prompt's K answers: the best is drawn first, then the best of the rest.

    loss = sum over ranks k of log(1 + sum over answers j below k of exp(s_j - s_k))

    A pair holds its share of the part of its better row: part / number of pairs of that row. Answers of the same grade
    are not compared. With K = 2 it is bradley_terry without margin and smoothing.

    Source: Plackett (1975), Luce (1959); for preferences over K answers DPO (2305.18290) appendix A.3, eq. 18.
    """
    return ranked(scores.difference, scores.pairs[:, 0])


@reward_loss("regression", paper="2410.01257", per="row", needs=frozenset({"score"}))
def regression(scores: PairScores) -> Float[Tensor, "N"]:
    """Squared distance from the score that the row carries.

    loss = (s - target)²

    Source: HelpSteer2-Preference (2410.01257), its regression reward models, for one attribute.
    """
    return (scores.scores - scores.required_targets) ** 2


def centering(scores: PairScores, *, coefficient: float | None) -> tuple[Term, ...]:
    """Scores are only known up to a constant for each prompt; this holds them near 0. Nothing without a coefficient.

    loss = coefficient x mean over pairs of (s_w + s_l)²

    Source: Eisenstein et al. (2312.09244) eq. 2.
    """
    if coefficient is None:
        return ()
    losses = (scores.chosen + scores.rejected) ** 2  # (M,)
    return (Term(name="center_rewards", losses=losses, per="pair", coefficient=coefficient),)
