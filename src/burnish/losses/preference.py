"""Preference losses: `PairLogps` -> (M,), the loss of each pair, lower is better.

Facts of a row: `per`, the unit it is averaged over (`pair`; `chosen_token` for losses that are sums over the
tokens of the preferred row); `couples_rows`, the loss of a pair depends on the other pairs of the step.
Notation: b = beta, D = logratio_diff, σ = sigmoid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

from burnish.registry import Table

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from burnish.types import PairLogps

preference_losses: Table[..., Tensor] = Table("preference loss", per="pair", couples_rows=False)
preference_loss = preference_losses.register


@preference_loss("sigmoid", paper="2305.18290")
def sigmoid(pair: PairLogps, *, beta: float, label_smoothing: float) -> Float[Tensor, "M"]:
    """DPO: maximum likelihood of the preferences under a Bradley-Terry model.

    loss = -(1 - e) log σ(b D) - e log σ(-b D),   e = label_smoothing

    e is the probability that a label is wrong (conservative DPO). At D = 0 the loss is log 2 whatever b and e.

    Source: DPO eq. 7; label smoothing: Mitchell, "A note on DPO with noisy preferences" (cDPO) eq. 3.

    >>> import math, torch
    >>> from burnish.types import PairLogps
    >>> zero = torch.zeros(1)
    >>> pair = PairLogps(chosen=zero, rejected=zero, ref_chosen=zero, ref_rejected=zero,
    ...                  chosen_length=zero + 1, rejected_length=zero + 1)
    >>> math.isclose(sigmoid(pair, beta=0.1, label_smoothing=0.0).item(), math.log(2), rel_tol=1e-6)
    True
    """
    logits = beta * pair.logratio_diff  # (M,)
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


@preference_loss("ipo", paper="2310.12036")
def ipo(pair: PairLogps, *, beta: float) -> Float[Tensor, "M"]:
    """IPO: regression of the log-ratio difference per token onto a fixed margin.

    loss = (r_w / |y_w| - r_l / |y_l| - 1 / (2 b))²,   r = log-ratio to the reference, |y| = trained tokens

    `beta` is the paper's tau. The paper sums over tokens; the mean per token is the authors' later
    recommendation and what TRL computes.

    Source: IPO eq. 17.
    """
    chosen = pair.chosen_logratio / pair.chosen_length.clamp(min=1)  # (M,)
    rejected = pair.rejected_logratio / pair.rejected_length.clamp(min=1)  # (M,)
    return (chosen - rejected - 1 / (2 * beta)) ** 2


@preference_loss("hinge", paper="2305.10425")
def hinge(pair: PairLogps, *, beta: float) -> Float[Tensor, "M"]:
    """SLiC's margin loss on the log-ratio difference.

    loss = max(0, 1 - b D)

    Source: SLiC-HF eq. 2; on log-ratios: RSO (2309.06657) eq. 11.
    """
    return torch.relu(1 - beta * pair.logratio_diff)


@preference_loss("aot", paper="2406.05882", couples_rows=True)
def aot(pair: PairLogps, *, beta: float, label_smoothing: float) -> Float[Tensor, "M"]:
    """AOT: the policy's log-odds dominate the reference's in distribution, not pair by pair.

    d = sort(log π(y_w) - log π(y_l)) - sort(log ref(y_w) - log ref(y_l))
    loss = -(1 - e) log σ(b d) - e log σ(-b d),   e = label_smoothing

    The sort runs over all pairs of the optimizer step, on all ranks. Position i of the result is the i-th
    quantile, not pair i; with one pair this is the sigmoid loss.

    Source: AOT eq. 5 (paired), logistic violation.
    """
    policy = torch.sort(pair.chosen - pair.rejected).values  # (M,)
    reference = torch.sort(pair.ref_chosen - pair.ref_rejected).values  # (M,)
    logits = beta * (policy - reference)
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


@preference_loss("sft", per="chosen_token", paper="2404.19733")
def sft(pair: PairLogps) -> Float[Tensor, "M"]:
    """Negative log-likelihood of the preferred answer, averaged over its tokens in the whole step.

    loss = -log π(y_w)  (a sum over tokens), divided by the trained tokens of all preferred answers

    Source: the second term of RPO (2404.19733) eq. 1 and of MPO (2411.10442) eq. 4.
    """
    return -pair.chosen
