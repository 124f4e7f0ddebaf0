"""The numbers of a report, as pure functions: what is shown before and after training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from burnish.intervals import normal, shown_interval, wilson


class Estimated(Protocol):
    """A mean over `weight` units with its standard error, such as `burnish.metrics.Estimate`."""

    @property
    def mean(self) -> float:
        """The mean."""
        ...

    @property
    def weight(self) -> float:
        """How many units it is over."""
        ...

    @property
    def standard_error(self) -> float:
        """The standard error of the mean."""
        ...


@dataclass(frozen=True)
class Row:
    """A line of the table: what was measured, in how many units, before and after, and how it changed."""

    label: str
    weight: float
    before: str
    after: str
    change: str = ""

    @property
    def is_headline(self) -> bool:
        """The share of right answers, or of pairs that are told apart, or the reward: what the run is for."""
        return self.label.endswith(("_rewards/accuracies", "_accuracy", "_reward"))


def compare(before: Mapping[str, Estimated], after: Mapping[str, Estimated]) -> list[Row]:
    """Held-out loss, accuracy, margin, win rate and calibration of every evaluated data set, before and after.

    Args:
        before: estimates by prefixed name, such as `eval_rewards/margins`; may be empty.
        after: the same.
    """
    known = {**before, **after}
    names = [name for name in known if _measure(name)]
    shares = {name for name in names if _measure(name) in SHARES or _is_of_pairs(name, known)}
    return [
        Row(
            name,
            _weight(before.get(name), after.get(name)),
            _cell(before.get(name), is_share=name in shares),
            _cell(after.get(name), is_share=name in shares),
            _change(before.get(name), after.get(name), in_deviations=_measure(name) == "reward"),
        )
        for name in names
    ]


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs that a reward model is sure of to so many percent: how many, and how often it is right, also as a bar."""

    sure: str
    weight: float
    right: str
    bar: str


def reliability_bins(estimates: Mapping[str, Estimated]) -> dict[str, list[ReliabilityBin]]:
    """The reliability of every evaluated data set, by its prefix; calibrated, a bar is as long as the model is sure.

    >>> from types import SimpleNamespace
    >>> [bin] = reliability_bins({"eval_reliability/90-100": SimpleNamespace(mean=0.75, weight=8.0)})["eval"]
    >>> bin.sure, bin.right, bin.bar
    ('90-100', '0.750 [0.409, 0.929]', '███████████████')
    """
    found: dict[str, list[ReliabilityBin]] = {}
    for name, estimate in sorted(estimates.items()):
        prefix, is_bin, sure = name.partition(RELIABILITY)
        if is_bin:
            right = shown_interval(estimate.mean, wilson(estimate.mean, estimate.weight))
            bar = "█" * round(BAR_CELLS * estimate.mean)
            found.setdefault(prefix, []).append(ReliabilityBin(sure, estimate.weight, right, bar))
    return found


def held_out_sizes(rows: Sequence[Row]) -> str:
    """How many pairs, prompts or, if nothing else is counted, tokens each evaluated data set has.

    >>> held_out_sizes([Row("eval_a_rewards/accuracies", 80.0, "", ""), Row("eval_b_mean_token_accuracy", 9.0, "", "")])
    'eval_a 80 pairs, eval_b 9 tokens'
    """
    sizes: dict[str, str] = {}
    for ending, unit in COUNTED.items():
        for row in rows:
            if max((known for known in COUNTED if row.label.endswith(known)), key=len, default="") == ending:
                sizes.setdefault(row.label.removesuffix(ending), f"{row.weight:g} {unit}")
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


def duration(seconds: float) -> str:
    """Seconds for a person.

    >>> duration(8.4), duration(173), duration(7300)
    ('8 s', '2 min 53 s', '2 h 01 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


MEASURES = (
    "loss", "rewards/accuracies", "rewards/margins", "win_rate", "reward", "accuracy", "accuracy_greedy", "margin",
    "calibration_error", "objective/kl", "val/explained_variance",
)  # fmt: skip
NO_MEASURES = ("_min_reward", "_mean_reward", "_max_reward")  # of a reward model, whose scores have no zero
SHARES = ("rewards/accuracies", "win_rate", "accuracy_greedy")
COUNTED = {
    "_rewards/accuracies": "pairs", "_margin": "pairs", "_accuracy": "prompts", "_accuracy_greedy": "prompts",
    "_mean_token_accuracy": "tokens",
}  # fmt: skip
RELIABILITY, BAR_CELLS = "_reliability/", 20


def _measure(name: str) -> str | None:
    if name.endswith(NO_MEASURES):
        return None
    family = "pass@" if "_pass@" in name else "maj@" if "_maj@" in name else None
    return family or next((measure for measure in MEASURES if name.endswith(f"_{measure}")), None)


def _weight(before: Estimated | None, after: Estimated | None) -> float:
    known = after or before
    return math.nan if known is None else known.weight


def _is_of_pairs(name: str, known: Mapping[str, Estimated]) -> bool:
    """The accuracy of a reward model, whose pairs are right or wrong; that of a policy is of groups of answers."""
    return name.endswith("_accuracy") and f"{name.removesuffix('_accuracy')}_margin" in known


def _cell(estimate: Estimated | None, *, is_share: bool) -> str:
    if estimate is None:
        return "not measured"
    if is_share:
        return shown_interval(estimate.mean, wilson(estimate.mean, estimate.weight))
    return shown_interval(estimate.mean, normal(estimate.mean, estimate.standard_error))


def _change(before: Estimated | None, after: Estimated | None, *, in_deviations: bool) -> str:
    """The difference, with the interval of two independent measurements: on the same rows it is narrower.

    A reward has no unit of its own: it is also told in standard deviations of what a prompt earned before.
    """
    if before is None or after is None:
        return ""
    difference = after.mean - before.mean
    shown = shown_interval(difference, normal(difference, math.hypot(before.standard_error, after.standard_error)))
    deviation = before.standard_error * math.sqrt(before.weight)
    is_known = in_deviations and math.isfinite(deviation) and deviation > 0
    return f"{shown}, {difference / deviation:.2f} standard deviations of a prompt's before" if is_known else shown
