"""Preference losses that read no reference. Notation as in `preference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

from burnish.losses.preference import preference_loss

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from burnish.types import PairLogps


@preference_loss("sft", paper="2404.19733", per="chosen_token", reference="none")
def sft(pair: PairLogps) -> Float[Tensor, "M"]:
    """Negative log-likelihood of the preferred answer, averaged over its tokens in the whole step.

    loss = -log π(y_w)  (a sum over tokens), divided by the trained tokens of all preferred answers

    Source: the second term of RPO (2404.19733) eq. 1 and of MPO (2411.10442) eq. 4.
    """
    return -pair.chosen


@preference_loss("simpo", paper="2405.14734", reference="none", reward="mean")
def simpo(pair: PairLogps, *, beta: float, simpo_gamma: float = 0.5) -> Float[Tensor, "M"]:
    """SimPO: the reward is the log-prob per token, and chosen must lead by a margin.

    loss = -log σ(b (l_w - l_l) - gamma),   l = log-prob per token

    The paper uses b from 2 to 10 and gamma about half of b.

    Source: SimPO (2405.14734) eq. 6.
    """
    return -logsigmoid(beta * (pair.chosen_mean - pair.rejected_mean) - simpo_gamma)


@preference_loss("cpo", paper="2401.08417", reference="none")
def cpo(pair: PairLogps, *, beta: float, label_smoothing: float, cpo_alpha: float = 1.0) -> Float[Tensor, "M"]:
    """CPO: DPO with a uniform reference, and the chosen answer's likelihood.

    loss = -(1 - e) log σ(b d) - e log σ(-b d) - alpha l_w,   d = log π(y_w) - log π(y_l),   l = log-prob per token

    The paper writes log π(y_w) for the second part; its authors' code takes the mean over tokens, as here.

    Source: CPO (2401.08417) eq. 3 and 5.
    """
    logits = beta * (pair.chosen - pair.rejected)  # (M,)
    logistic = -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)
    return logistic - cpo_alpha * pair.chosen_mean


@preference_loss("orpo", paper="2403.07691", reference="none", reward="mean")
def orpo(pair: PairLogps, *, beta: float) -> Float[Tensor, "M"]:
    """ORPO: the chosen answer's likelihood, and the odds ratio of the two answers.

    loss = -l_w - b log σ(log odds_w - log odds_l),   odds = p / (1 - p),   p = exp(l),   l = log-prob per token

    `beta` is the paper's lambda.

    Source: ORPO (2403.07691) eq. 3, 6 and 7.
    """
    log_odds = _log_odds(pair.chosen_mean) - _log_odds(pair.rejected_mean)  # (M,)
    return -pair.chosen_mean - beta * logsigmoid(log_odds)


@preference_loss("simper", paper="2502.00883", reference="none", reward="mean")
def simper(pair: PairLogps) -> Float[Tensor, "M"]:
    """SimPER: raises the inverse perplexity of the chosen answer, lowers that of the rejected; nothing to tune.

    loss = exp(l_l) - exp(l_w),   l = log-prob per token

    Between -1 and 1, and 0 for answers that are equally likely per token.

    Source: SimPER (2502.00883).
    """
    return pair.rejected_mean.exp() - pair.chosen_mean.exp()


def _log_odds(log_prob: Float[Tensor, "M"]) -> Float[Tensor, "M"]:
    """log(p / (1 - p)) of a log-prob, which is held a step below 0, where the odds are infinite."""
    held = log_prob.clamp(max=-torch.finfo(log_prob.dtype).eps)
    return held - torch.log(-torch.expm1(held))
