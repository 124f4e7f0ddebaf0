"""Preference losses that read the log-ratio of each answer by itself. Notation as in `preference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

from burnish.losses.preference import Follows, preference_loss

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from burnish.types import PairLogps


@preference_loss("nca_pair", paper="2402.05369")
def nca_pair(pair: PairLogps, *, beta: float) -> Float[Tensor, "M"]:
    """NCA for pairs: noise contrastive alignment, which also keeps the chosen answer's likelihood from falling.

    loss = -log σ(b r_w) - ½ log σ(-b r_w) - ½ log σ(-b r_l)

    Source: NCA (2402.05369) eq. 8 with K = 2.
    """
    chosen, rejected = beta * pair.chosen_logratio, beta * pair.rejected_logratio
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


@preference_loss("bco_pair", paper="2404.04656", follows={"delta": Follows("_rewards")})
def bco_pair(pair: PairLogps, *, beta: float, delta: Tensor | float) -> Float[Tensor, "M"]:
    """BCO: a binary classifier whose logit is the reward, shifted by the mean reward.

    loss = -log σ(b r_w - delta) - log σ(-(b r_l - delta))

    delta is the mean of the rewards of both answers over all past steps, 0 in the first; it is frozen within a step.

    Source: BCO (2404.04656) eq. 8 and section 4.1 (reward shift).
    """
    chosen, rejected = beta * pair.chosen_logratio, beta * pair.rejected_logratio
    return -logsigmoid(chosen - delta) - logsigmoid(-(rejected - delta))


@preference_loss("sppo_hard", paper="2405.00675")
def sppo_hard(pair: PairLogps, *, beta: float) -> Float[Tensor, "M"]:
    """SPPO with hard labels: regression of each log-ratio onto the outcome of self-play.

    loss = (r_w - 1 / (2 b))² + (r_l + 1 / (2 b))²

    Source: SPPO (2405.00675) eq. 4.7 with win probabilities 1 and 0; `beta` is 1 / eta.
    """
    target = 1 / (2 * beta)
    return (pair.chosen_logratio - target) ** 2 + (pair.rejected_logratio + target) ** 2


@preference_loss("apo_zero", paper="2408.06266")
def apo_zero(pair: PairLogps, *, beta: float) -> Float[Tensor, "M"]:
    """APO-zero: chosen answers that are better than the model's own: likelier; rejected ones: less likely.

    loss = 1 - σ(b r_w) + σ(b r_l)

    Source: APO (2408.06266) eq. 7.
    """
    return torch.sigmoid(-beta * pair.chosen_logratio) + torch.sigmoid(beta * pair.rejected_logratio)


@preference_loss("apo_down", paper="2408.06266")
def apo_down(pair: PairLogps, *, beta: float) -> Float[Tensor, "M"]:
    """APO-down: chosen answers that are worse than the model's own: both less likely, the rejected one more so.

    loss = σ(b r_w) + 1 - σ(b D)

    Source: APO (2408.06266) eq. 8.
    """
    return torch.sigmoid(beta * pair.chosen_logratio) + torch.sigmoid(-beta * pair.logratio_diff)


@preference_loss("dpop", paper="2402.13228")
def dpop(pair: PairLogps, *, beta: float, dpop_lambda: float = 50.0) -> Float[Tensor, "M"]:
    """DPO-Positive: a chosen answer that becomes less likely than under the reference costs extra.

    loss = -log σ(b (D - lambda max(0, -r_w)))

    Source: Smaug (2402.13228) eq. 3; lambda = 50 as in its experiments.
    """
    penalty = dpop_lambda * torch.relu(-pair.chosen_logratio)  # (M,)
    return -logsigmoid(beta * (pair.logratio_diff - penalty))


@preference_loss("cal_dpo", paper="2412.14516")
def cal_dpo(pair: PairLogps, *, beta: float) -> Float[Tensor, "M"]:
    """Cal-DPO: DPO whose log-ratios are calibrated to the scale of the reward.

    loss = -log σ(b D) + (r_w - 1 / (2 b))² + (r_l + 1 / (2 b))²

    Source: Cal-DPO (2412.14516) section 4, with DPO's b in the first part.
    """
    target = 1 / (2 * beta)
    calibration = (pair.chosen_logratio - target) ** 2 + (pair.rejected_logratio + target) ** 2
    return -logsigmoid(beta * pair.logratio_diff) + calibration
