"""Controllers: coefficients that follow a measured quantity. Frozen within a step, moved once after it, in checkpoints.

`update` takes the mean over the whole step on all ranks, so that every rank moves alike.
"""

from __future__ import annotations

import math
from typing import Any


class AdaptiveEntropy:
    """The coefficient of the entropy bonus: raised while the entropy is at or below its target, else lowered.

        after a step of mean entropy H:   c = min(c + delta, largest) if H <= target, else max(c - delta, smallest)
        the next step's coefficient:      c if H <= target, else 0

    Before the first step the coefficient is 0: nothing has been measured.

    Args:
        initial: c at the start.
        smallest: c is never below it.
        largest: c is never above it.
        delta: how far a step moves c.
        target: entropy in nats, mean over trained tokens.

    Raises:
        ValueError: the bounds are the wrong way round, or `initial` lies outside, or `delta` is negative.

    Source: Skywork-OR1 (2505.22312), adaptive entropy control.
    """

    def __init__(self, *, initial: float, smallest: float, largest: float, delta: float, target: float) -> None:
        if not smallest <= initial <= largest or delta < 0:
            raise ValueError(
                f"the entropy coefficient starts at {initial!r}, moves by {delta!r} and stays in "
                f"[{smallest!r}, {largest!r}]: the start has to lie in the interval, and the move to be 0 or more"
            )
        self.smallest, self.largest, self.delta, self.target = smallest, largest, delta, target
        self.value = initial
        self.last_entropy = math.inf

    @property
    def coefficient(self) -> float:
        """Of the running step."""
        return self.value if self.last_entropy <= self.target else 0.0

    def update(self, entropy: float) -> None:
        """Move by a step's mean entropy; one that is not finite changes nothing."""
        if not math.isfinite(entropy):
            return
        moved = self.value + self.delta if entropy <= self.target else self.value - self.delta
        self.value = min(max(moved, self.smallest), self.largest)
        self.last_entropy = entropy

    def state_dict(self) -> dict[str, Any]:
        """c, and the last entropy, None before the first step."""
        return {"value": self.value, "last_entropy": self.last_entropy if math.isfinite(self.last_entropy) else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.value = state["value"]
        self.last_entropy = math.inf if state["last_entropy"] is None else state["last_entropy"]


class AdaptiveKL:
    """The coefficient of a KL penalty: raised while the KL is above its target, lowered while it is below.

        coefficient *= 1 + clamp(KL / target - 1, -0.2, 0.2) x min(answers / horizon, 1)

    Args:
        initial: the coefficient at the start.
        target: KL of an answer in nats.
        horizon: answers over which an error of a fifth or more moves the coefficient by a fifth.

    Raises:
        ValueError: an argument is not above 0.

    Source: RLHF (1909.08593) section 2.2.
    """

    def __init__(self, *, initial: float, target: float, horizon: float) -> None:
        if min(initial, target, horizon) <= 0:
            raise ValueError(
                f"an adaptive KL coefficient has initial={initial!r}, target={target!r} and horizon={horizon!r}: "
                "all three have to be above 0"
            )
        self.target, self.horizon = target, horizon
        self.coefficient = initial

    def update(self, kl: float, num_answers: float) -> None:
        """Move by the mean KL of a round's answers; one that is not finite changes nothing."""
        if math.isfinite(kl):
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + error * min(num_answers / self.horizon, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """The coefficient."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.coefficient = state["coefficient"]


class RunningScale:
    """Mean and standard deviation of the scores of all answers so far, the running round's included.

        scale: s / std,   normalize: (s - mean) / std;   std is unbiased, and 1 while all scores are equal

    Every rank moves alike: `update` takes the sums over all ranks. A round is scaled after it was counted, so that the
    first one is on the scale of the others.

    Source: reward scaling of PPO's implementations, Engstrom et al. (2005.12729) section 3, for scores of answers.
    """

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0.0, 0.0, 0.0

    def update(self, count: float, total: float, squares: float) -> None:
        """Count a round: its number of scores, their sum, and the sum of their squares."""
        self.count += count
        self.total += total
        self.squares += squares

    @property
    def mean(self) -> float:
        """Of all scores; 0 before the first."""
        return self.total / self.count if self.count else 0.0

    @property
    def std(self) -> float:
        """Of all scores; 1 of scores that do not differ."""
        if self.count < 2:
            return 1.0
        variance = (self.squares - self.count * self.mean**2) / (self.count - 1)
        return math.sqrt(variance) if variance > 1e-12 * self.squares / self.count else 1.0

    def state_dict(self) -> dict[str, Any]:
        """The three sums."""
        return {"count": self.count, "total": self.total, "squares": self.squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.count, self.total, self.squares = state["count"], state["total"], state["squares"]
