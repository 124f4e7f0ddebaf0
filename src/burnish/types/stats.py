"""What a forward says of a batch: per token, and per pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenStats:
    """What one forward says about each completion token, aligned with `TokenBatch.completion_ids`.

    Attributes:
        logps: (N, T) log-prob in nats of each trained token, ≤ 0; exactly 0 outside `mask`.
        mask: (N, T) the batch's `loss_mask`.
        entropy: (N, T) entropy of the next-token distribution in nats, ≥ 0, or None if not asked for.
        hidden: (N, T+1, H) the state before each token, and after the last, or None if not asked for.
        extra: what a loss or metric asked for by name, (N, T) each: `top1` (1 where the token is the most
            likely one), `mean_logit`, `sum_p2` (sum of squared probabilities), `divergence` (KL(teacher || model)
            of the next-token distributions in nats, with gradient). Beside a critic also its `values` (N, T+1), before
            each token and after the last, and `supervised_logps` of the rows of a `MixedBatch`, both with gradient.
        aux_loss: () the load-balancing loss of a mixture-of-experts model, or None.

    Example: a completion of two tokens with probabilities 0.5 and 0.25, padded to three:
        logps [[-0.693, -1.386, 0.0]], mask [[True, True, False]], sequence_sum() [-2.079].
    """

    logps: Float[Tensor, "N T"]
    mask: Bool[Tensor, "N T"]
    entropy: Float[Tensor, "N T"] | None = None
    hidden: Float[Tensor, "N T1 H"] | None = None
    extra: Mapping[str, Float[Tensor, "N T"]] = field(default_factory=dict[str, Tensor])
    aux_loss: Float[Tensor, ""] | None = None

    @property
    def lengths(self) -> Float[Tensor, "N"]:
        """Trained tokens of each row."""
        return self.mask.sum(1).to(self.logps.dtype)

    @property
    def required_entropy(self) -> Float[Tensor, "N T"]:
        """`entropy`, for rooms that asked for it."""
        if self.entropy is None:
            raise ValueError('entropy was not computed: call forward(model, batch, needs=("entropy",))')
        return self.entropy

    def sequence_sum(self) -> Float[Tensor, "N"]:
        """Summed log-prob of each row in nats."""
        return self.logps.sum(1)

    def sequence_mean(self) -> Float[Tensor, "N"]:
        """Log-prob per trained token of each row in nats."""
        return self.logps.sum(1) / self.lengths.clamp(min=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class PairLogps:
    """Log-probs of pairs: all that a preference loss sees.

    Attributes:
        chosen, rejected: (M,) the policy's summed log-probs in nats.
        ref_chosen, ref_rejected: (M,) the reference's, without gradient; 0 where there is no reference.
        chosen_length, rejected_length: (M,) trained tokens.
        chosen_row: (M,) the parcel's row that is chosen: pairs that share it are one answer against several. -1: not
            known, as in a step of several parcels.
        margin: (M,) how much better the data says that the chosen row is, or None.
        chosen_kl, rejected_kl: (M,) summed KL(reference || policy) of the next-token distributions along each row, in
            nats, ≥ 0, with gradient, or None.
        weight: (M,) multiplies every loss of the pair, without gradient, or None for 1.

    Example: chosen -10, ref_chosen -12, rejected -20, ref_rejected -21: chosen_logratio 2,
        rejected_logratio 1, logratio_diff 1.
    """

    chosen: Float[Tensor, "M"]
    rejected: Float[Tensor, "M"]
    ref_chosen: Float[Tensor, "M"]
    ref_rejected: Float[Tensor, "M"]
    chosen_length: Float[Tensor, "M"]
    rejected_length: Float[Tensor, "M"]
    chosen_row: Int[Tensor, "M"] | None = None
    margin: Float[Tensor, "M"] | None = None
    chosen_kl: Float[Tensor, "M"] | None = None
    rejected_kl: Float[Tensor, "M"] | None = None
    weight: Float[Tensor, "M"] | None = None

    @property
    def chosen_logratio(self) -> Float[Tensor, "M"]:
        """log policy(chosen) - log reference(chosen)."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_logratio(self) -> Float[Tensor, "M"]:
        """log policy(rejected) - log reference(rejected)."""
        return self.rejected - self.ref_rejected

    @property
    def logratio_diff(self) -> Float[Tensor, "M"]:
        """chosen_logratio - rejected_logratio: the quantity that DPO pushes up."""
        return self.chosen_logratio - self.rejected_logratio

    @property
    def chosen_mean(self) -> Float[Tensor, "M"]:
        """The policy's log-prob per token of the chosen row."""
        return self.chosen / self.chosen_length.clamp(min=1)

    @property
    def rejected_mean(self) -> Float[Tensor, "M"]:
        """The policy's log-prob per token of the rejected row."""
        return self.rejected / self.rejected_length.clamp(min=1)

    @property
    def required_margin(self) -> Float[Tensor, "M"]:
        """`margin`, for losses that need it."""
        if self.margin is None:
            raise ValueError(
                "the loss needs to know how much better the chosen answer is, and the rows do not say: add a column "
                "margin, or score_chosen and score_rejected, or scores to rows of several completions"
            )
        return self.margin

    @property
    def required_kl(self) -> tuple[Float[Tensor, "M"], Float[Tensor, "M"]]:
        """`chosen_kl` and `rejected_kl`, for losses that state `needs={"divergence"}`."""
        if self.chosen_kl is None or self.rejected_kl is None:
            raise ValueError('the divergence from the reference was not computed: state needs={"divergence"}')
        return self.chosen_kl, self.rejected_kl


@dataclass(frozen=True, kw_only=True, eq=False)
class PairScores:
    """Scores of answers, and which of them are pairs: all that a reward loss sees.

    Attributes:
        scores: (N,) what the model says of each row, with gradient.
        pairs: (M, 2) indices of the preferred and the other row; a tie is there in both orders.
        margin: (M,) how much better the first row of each pair is, or None.
        targets: (N,) the scores that the rows carry, or None.

    Example: scores [2.0, 0.5], pairs [[0, 1]]: chosen [2.0], rejected [0.5], difference [1.5].
    """

    scores: Float[Tensor, "N"]
    pairs: Int[Tensor, "M 2"]
    margin: Float[Tensor, "M"] | None = None
    targets: Float[Tensor, "N"] | None = None

    @property
    def chosen(self) -> Float[Tensor, "M"]:
        """The score of the preferred row of each pair."""
        return self.scores[self.pairs[:, 0]]

    @property
    def rejected(self) -> Float[Tensor, "M"]:
        """The score of the other row of each pair."""
        return self.scores[self.pairs[:, 1]]

    @property
    def difference(self) -> Float[Tensor, "M"]:
        """chosen - rejected: the log-odds that the first row is preferred."""
        return self.chosen - self.rejected

    @property
    def required_targets(self) -> Float[Tensor, "N"]:
        """`targets`, for losses that state `needs={"score"}`."""
        if self.targets is None:
            raise ValueError(
                "the loss is about the scores that rows carry, and these have none: add score_chosen and "
                "score_rejected, or scores to rows of several completions"
            )
        return self.targets


@dataclass(frozen=True, kw_only=True, eq=False)
class JudgedLogps:
    """Log-probs of answers that were each judged by itself: all that an unpaired loss sees.

    Attributes:
        logps: (N,) the policy's summed log-probs in nats, with gradient.
        ref_logps: (N,) the reference's, without.
        is_desirable: (N,) how each was judged.
        kl: (N,) the step's reference point in nats, ≥ 0, the same for each row, without gradient; None where no loss
            needs it.

    Example: logps [-10.0], ref_logps [-12.0], is_desirable [True], kl [0.5]: logratio [2.0], 1.5 above the point.
    """

    logps: Float[Tensor, "N"]
    ref_logps: Float[Tensor, "N"]
    is_desirable: Bool[Tensor, "N"]
    kl: Float[Tensor, "N"] | None = None

    @property
    def logratio(self) -> Float[Tensor, "N"]:
        """log policy - log reference of each answer."""
        return self.logps - self.ref_logps

    @property
    def required_kl(self) -> Float[Tensor, "N"]:
        """`kl`, for losses that state `needs={"kl"}`."""
        if self.kl is None:
            raise ValueError('the reference point of the step was not computed: state needs={"kl"}')
        return self.kl
