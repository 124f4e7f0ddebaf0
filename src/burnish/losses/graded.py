"""Preference losses for rows that say more than which answer is better. Notation as in `preference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

from burnish.losses.preference import preference_loss

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from burnish.types import PairLogps


@preference_loss("odpo", paper="2402.10571", reference="difference")
def odpo(pair: PairLogps, *, beta: float, odpo_alpha: float = 1.0) -> Float[Tensor, "M"]:
    """DPO with an offset: the better the chosen answer is, the clearer the policy must tell the two apart.

    loss = -log σ(b D - alpha log(score_w - score_l))

    The difference of scores, or the column `margin`, must be above 0.

    Raises:
        ValueError: rows without scores or margin, or with a margin that is not above 0.

    Source: ODPO (2402.10571) eq. 9 with f = log.
    """
    margin = pair.required_margin
    if bool((margin <= 0).any()):
        raise ValueError(
            f"the loss odpo takes the logarithm of the margin, and the smallest is {float(margin.min())}: "
            "remove rows whose chosen answer is not scored higher, or use margin_dpo"
        )
    return -logsigmoid(beta * pair.logratio_diff - odpo_alpha * margin.log())


@preference_loss("margin_dpo", paper="2307.09288", reference="difference")
def margin_dpo(pair: PairLogps, *, beta: float) -> Float[Tensor, "M"]:
    """DPO with a margin: chosen must lead by what the row says.

    loss = -log σ(b D - m),   m = the column margin, else score_w - score_l

    Raises:
        ValueError: rows without scores or margin.

    Source: the margin of Llama 2's ranking loss (2307.09288) eq. 2, on DPO's implicit reward.
    """
    return -logsigmoid(beta * pair.logratio_diff - pair.required_margin)


@preference_loss("plackett_luce", paper="2305.18290", reference="difference", per="prompt")
def plackett_luce(pair: PairLogps, *, beta: float) -> Float[Tensor, "M"]:
    """Listwise DPO: the likelihood of the whole ranking of K answers; with one chosen row it is softmax-DPO.

    loss = sum over ranks k of log(1 + sum over answers j below k of exp(-b D_kj))

    A pair holds its share of the part of its chosen row: part / number of pairs of that row. The sum over a prompt's
    pairs is the paper's loss of the prompt; with K = 2 it is the sigmoid loss.

    Source: DPO (2305.18290) appendix A.3, eq. 20; one chosen against several: S-DPO (2406.09215) eq. 10.
    """
    return ranked(beta * pair.logratio_diff, pair.chosen_row)


def ranked(differences: Float[Tensor, "M"], rows: Int[Tensor, "M"] | None) -> Float[Tensor, "M"]:
    """The Plackett-Luce likelihood of rankings, spread over their pairs.

    loss of a row = log(1 + sum over its pairs of exp(-difference)), a pair's share of it: / number of its pairs

    Args:
        differences: how far the first row of each pair leads.
        rows: (M,) the first row of each pair; those that share it are one part. None: each pair is one.
    """
    logits = -differences  # (M,)
    rows = torch.arange(len(logits), device=logits.device) if rows is None else rows
    group = torch.searchsorted(rows.sort().values, rows.contiguous())  # (M,) the same number for the same row
    zeros = logits.new_zeros(len(logits))
    largest = zeros.scatter_reduce(0, group, logits.detach(), "amax")  # of 0 and the group's logits
    summed = (-largest).exp().index_add(0, group, (logits - largest[group]).exp())
    num_pairs = zeros.index_add(0, group, torch.ones_like(logits))
    return (largest + summed.log())[group] / num_pairs[group]
