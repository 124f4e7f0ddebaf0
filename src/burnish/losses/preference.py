"""Preference losses: `PairLogps` -> (M,), the loss of each pair, lower is better. Those of the log-ratio difference.

Facts of a row, which the rooms ask for instead of its name:
- `per`: the unit it is averaged over: `pair`; `chosen_token` for sums over the tokens of the chosen row; `prompt` for
  sums over the pairs of a prompt.
- `reference`: how it reads the reference: as a `difference` (through logratio_diff alone, so that what depends on the
  prompt cancels), as `ratios` of single rows, or not at all (`none`).
- `needs`: what the forward has to compute for it beyond log-probs: `divergence`.
- `couples_rows`: the loss of a pair depends on the other pairs of the step.
- `follows`: hyper-parameters that are running means of a metric.
- `reward`: what is shown as its implicit reward: beta times the `sum` over tokens, or the `mean` per token.
Notation: b = beta, e = label_smoothing, r = log-ratio to the reference, D = logratio_diff = r_w - r_l, σ = sigmoid,
l = log-prob per token, |y| = trained tokens, w = chosen, l = rejected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

from burnish.registry import Table

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from burnish.types import PairLogps


@dataclass(frozen=True)
class Follows:
    """A hyper-parameter that is the running mean of a metric over past steps; 0 before the first.

    Attributes:
        metric: its name; one that begins with `_` is followed and not shown.
        momentum: weight of the past in an exponential moving average, or None for the mean over all past steps.
    """

    metric: str
    momentum: float | None = None


preference_losses: Table[..., Tensor] = Table(
    "preference loss",
    per="pair",
    reference="ratios",
    needs=frozenset[str](),
    couples_rows=False,
    follows={},
    reward="sum",
)
preference_loss = preference_losses.register


def smoothed_logistic(logits: Float[Tensor, "M"], label_smoothing: float) -> Float[Tensor, "M"]:
    """-(1 - e) log σ(logits) - e log σ(-logits)."""
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


@preference_loss("sigmoid", paper="2305.18290", reference="difference")
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
    return smoothed_logistic(beta * pair.logratio_diff, label_smoothing)


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


@preference_loss("hinge", paper="2305.10425", reference="difference")
def hinge(pair: PairLogps, *, beta: float) -> Float[Tensor, "M"]:
    """SLiC's margin loss on the log-ratio difference.

    loss = max(0, 1 - b D)

    Source: SLiC-HF eq. 2; on log-ratios: RSO (2309.06657) eq. 11.
    """
    return torch.relu(1 - beta * pair.logratio_diff)


@preference_loss("sigmoid_norm", paper="2411.15124")
def sigmoid_norm(pair: PairLogps, *, beta: float) -> Float[Tensor, "M"]:
    """Length-normalised DPO: the log-ratios count per token.

    loss = -log σ(b (r_w / |y_w| - r_l / |y_l|))

    Per-token numbers are small: Tülu 3 uses b = 5.

    Source: Tülu 3 (2411.15124) eq. 6.
    """
    chosen = pair.chosen_logratio / pair.chosen_length.clamp(min=1)  # (M,)
    rejected = pair.rejected_logratio / pair.rejected_length.clamp(min=1)  # (M,)
    return -logsigmoid(beta * (chosen - rejected))


@preference_loss("robust", paper="2403.00409", reference="difference")
def robust(pair: PairLogps, *, beta: float, label_smoothing: float) -> Float[Tensor, "M"]:
    """Robust DPO: unbiased for the clean loss when labels are flipped with probability e.

    loss = (-(1 - e) log σ(b D) + e log σ(-b D)) / (1 - 2 e)

    Its values may be negative; with e = 0 it is the sigmoid loss.

    Source: robust DPO (2403.00409) eq. 12.
    """
    logits = beta * pair.logratio_diff  # (M,)
    clean = -(1 - label_smoothing) * logsigmoid(logits)
    return (clean + label_smoothing * logsigmoid(-logits)) / (1 - 2 * label_smoothing)


@preference_loss("exo_pair", paper="2402.00856", reference="difference")
def exo_pair(pair: PairLogps, *, beta: float, label_smoothing: float) -> Float[Tensor, "M"]:
    """EXO for pairs: the reverse KL from the policy's preference to the smoothed label.

    loss = σ(b D) [log σ(b D) - log(1 - e)] + σ(-b D) [log σ(-b D) - log e]

    Raises:
        ValueError: label_smoothing is 0, where the reverse KL is infinite.

    Source: EXO (2402.00856) eq. 16.
    """
    if label_smoothing <= 0:
        raise ValueError(
            f"label_smoothing={label_smoothing!r}: the loss exo_pair is infinite without smoothing; "
            "set label_smoothing=1e-3, the paper's value, or any other above 0"
        )
    logits = beta * pair.logratio_diff  # (M,)
    log_chosen, log_rejected = logsigmoid(logits), logsigmoid(-logits)
    chosen = log_chosen.exp() * (log_chosen - math.log1p(-label_smoothing))
    return chosen + log_rejected.exp() * (log_rejected - math.log(label_smoothing))


@preference_loss("discopop", paper="2406.08414", reference="difference")
def discopop(pair: PairLogps, *, beta: float, discopop_tau: float) -> Float[Tensor, "M"]:
    """DiscoPOP, the loss that a language model found: logistic and exponential, mixed by the margin itself.

    loss = (1 - m) (-log σ(b D)) + m exp(-b D),   m = σ(b D / tau)

    exp(-b D) is weighted by m, so that their product stays finite where D is very negative; it is computed in
    logarithms.

    Source: DiscoPOP (2406.08414) eq. 5, log-ratio modulated loss.
    """
    logits = beta * pair.logratio_diff  # (M,)
    share = torch.sigmoid(logits / discopop_tau)
    exponential = (logsigmoid(logits / discopop_tau) - logits).exp()
    return (1 - share) * -logsigmoid(logits) + exponential


@preference_loss("tdpo1", paper="2404.11999", needs=frozenset({"divergence"}))
def tdpo1(pair: PairLogps, *, beta: float) -> Float[Tensor, "M"]:
    """Token-level DPO, first form: the margin is corrected by how far the policy drifted along each answer.

    loss = -log σ(b D - b (K_l - K_w)),   K = sum over tokens of KL(reference || policy)

    Source: TDPO (2404.11999) eq. 14.
    """
    chosen_kl, rejected_kl = pair.required_kl
    return -logsigmoid(beta * (pair.logratio_diff - (rejected_kl - chosen_kl)))


@preference_loss("tdpo", paper="2404.11999", needs=frozenset({"divergence"}))
def tdpo(pair: PairLogps, *, beta: float, tdpo_alpha: float = 0.5) -> Float[Tensor, "M"]:
    """Token-level DPO, second form (TDPO2): no gradient through the drift along the chosen answer.

    loss = -log σ(b D - alpha b (K_l - stop_gradient(K_w))),   K = sum over tokens of KL(reference || policy)

    Source: TDPO (2404.11999) eq. 17.
    """
    chosen_kl, rejected_kl = pair.required_kl
    drift = rejected_kl - chosen_kl.detach()  # (M,)
    return -logsigmoid(beta * (pair.logratio_diff - tdpo_alpha * drift))
