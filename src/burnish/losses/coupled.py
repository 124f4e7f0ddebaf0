"""Preference losses of a whole step: the loss of a pair depends on the others. Notation as in `preference`.

The operands are the pairs of the optimizer step on all ranks; the trainer takes care of that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

from burnish.losses.preference import Follows, preference_loss, smoothed_logistic

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from burnish.types import PairLogps


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
    return smoothed_logistic(beta * (policy - reference), label_smoothing)


@preference_loss("aot_unpaired", paper="2406.05882", couples_rows=True)
def aot_unpaired(pair: PairLogps, *, beta: float, label_smoothing: float) -> Float[Tensor, "M"]:
    """AOT for answers that are no pairs: chosen log-ratios dominate rejected ones in distribution.

    d = sort(r_w) - sort(r_l)
    loss = -(1 - e) log σ(b d) - e log σ(-b d),   e = label_smoothing

    Sorted over the step like `aot`, whose paired form keeps each prompt's two answers together. TRL 0.25 calls this
    loss aot_pair.

    Source: AOT (2406.05882) eq. 6 (unpaired), logistic violation.
    """
    chosen = torch.sort(pair.chosen_logratio).values  # (M,)
    rejected = torch.sort(pair.rejected_logratio).values  # (M,)
    return smoothed_logistic(beta * (chosen - rejected), label_smoothing)


@preference_loss(
    "beta_dpo",
    paper="2407.08639",
    reference="difference",
    couples_rows=True,
    follows={"usual_margin": Follows("rewards/margins", momentum=0.9)},
)
def beta_dpo(
    pair: PairLogps, *, beta: float, usual_margin: Tensor | float, beta_dpo_alpha: float = 0.6
) -> Float[Tensor, "M"]:
    """β-DPO: b grows with how clearly the step's pairs are told apart already, against what is usual.

    loss = -log σ(b' D),   b' = b max(0.01, 1 + alpha (mean over the step of b D - usual_margin))

    usual_margin is the moving average of the mean of b D over past steps, with momentum 0.9. b' has no gradient, and
    a floor, since a negative one would turn preferences around. The paper's filter of outliers is not part of it.

    Source: β-DPO (2407.08639) eq. 6 and 8 (batch-level calibration).
    """
    excess = (beta * pair.logratio_diff).detach().mean() - usual_margin
    scale = (1 + beta_dpo_alpha * excess).clamp(min=0.01)
    return -logsigmoid(beta * scale * pair.logratio_diff)
