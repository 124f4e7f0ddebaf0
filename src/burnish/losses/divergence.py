"""f-divergences: the log-ratio r of policy to reference -> the score f'(exp r) that takes its place in D.

DPO with a penalty other than the reverse KL (f-DPO) compares f'(t), t = π / ref, instead of log t. What depends on the
prompt alone still cancels in a difference of two scores, and nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

from burnish.registry import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor

    from burnish.types import PairLogps

LARGEST_EXPONENT = 80.0  # exp of it is a float32

divergences: Table[..., Tensor] = Table("divergence")
divergence = divergences.register


@divergence("reverse_kl", paper="2305.18290")
def reverse_kl(logratio: Float[Tensor, "M"]) -> Float[Tensor, "M"]:
    """DPO's own: KL(policy || reference).

    score = r

    Source: DPO (2305.18290).
    """
    return logratio


@divergence("forward_kl", paper="2309.16240")
def forward_kl(logratio: Float[Tensor, "M"]) -> Float[Tensor, "M"]:
    """KL(reference || policy): mass must stay where the reference has it.

    score = 1 - exp(-r)

    Source: f-DPO (2309.16240) table 1, up to a constant.
    """
    return -torch.expm1((-logratio).clamp(max=LARGEST_EXPONENT))


@divergence("js_divergence", paper="2309.16240")
def js_divergence(logratio: Float[Tensor, "M"]) -> Float[Tensor, "M"]:
    """Jensen-Shannon divergence; the score is at most log 2.

    score = log 2 + log σ(r)

    Source: f-DPO (2309.16240) table 1.
    """
    return math.log(2) + logsigmoid(logratio)


@divergence("alpha_divergence", paper="2309.16240")
def alpha_divergence(logratio: Float[Tensor, "M"], *, f_alpha_divergence_coef: float) -> Float[Tensor, "M"]:
    """The alpha-divergences between forward KL (a = 0) and reverse KL (a = 1).

    score = (exp((a - 1) r) - 1) / (a - 1)

    a is `f_alpha_divergence_coef` as in TRL 1.16. The paper's (and TRL 0.25's) alpha is 1 - a; at 0.5 they agree.

    Source: f-DPO (2309.16240) table 1.
    """
    exponent = f_alpha_divergence_coef - 1
    if abs(exponent) < 1e-6:
        return logratio
    return torch.expm1((exponent * logratio).clamp(max=LARGEST_EXPONENT)) / exponent


def with_scores(pair: PairLogps, score: Callable[[Tensor], Tensor]) -> PairLogps:
    """The pair with scores in place of log-ratios: `chosen` is the score, and `ref_chosen` 0."""
    zero = torch.zeros_like(pair.ref_chosen)
    chosen, rejected = score(pair.chosen_logratio), score(pair.rejected_logratio)  # (M,), (M,)
    return replace(pair, chosen=chosen, rejected=rejected, ref_chosen=zero, ref_rejected=zero)
