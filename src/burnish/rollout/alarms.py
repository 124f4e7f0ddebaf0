"""Rounds that teach nothing, or something else than was meant: what is wrong, what it means, what to change."""

from __future__ import annotations

from collections.abc import Mapping

NEARLY_ALL, MOST, LONG_ENOUGH = 0.9, 0.5, 20  # short answers are alike without anything being wrong


def alarms(numbers: Mapping[str, float], *, learns_from_rewards: bool = True) -> dict[str, str]:
    """The alarms of a round by their code, of `round_statistics`.

    Args:
        numbers: of the round.
        learns_from_rewards: whether rounds whose rewards say nothing teach nothing.

    >>> list(alarms({"frac_unscored": 1.0}))
    ['no_rewards']
    """
    found: dict[str, str] = {}
    if learns_from_rewards and numbers.get("frac_unscored", 0.0) == 1:
        found["no_rewards"] = (
            "no reward function scored any answer of this round (all returned None), so nothing is learned from it: "
            "look at the conditions under which they return None, and at the columns that they read"
        )
    elif learns_from_rewards and numbers.get("frac_reward_zero_std", 0.0) == 1:
        found["no_signal"] = _no_signal(numbers.get("reward", 0.0))
    if numbers.get("completions/clipped_ratio", 0.0) >= NEARLY_ALL:
        found["truncated"] = (
            f"{numbers['completions/clipped_ratio']:.0%} of the answers of this round were cut at "
            "max_completion_length: raise it, or reward short answers; a model that never ends its answers has the "
            "wrong chat template or end-of-sequence token"
        )
    is_long = numbers.get("completions/mean_length", 0.0) >= LONG_ENOUGH
    if is_long and numbers.get("completions/duplicate_ratio", 0.0) >= MOST:
        found["near_greedy"] = (
            f"{numbers['completions/duplicate_ratio']:.0%} of the answers of this round equal another "
            "one of their group: sampling is nearly greedy, or the policy collapsed. Raise temperature, look at "
            "top_k, top_p and min_p, lower the learning rate, or set beta or entropy_coef"
        )
    return found


def _no_signal(reward: float) -> str:
    return (
        f"in every group of this round all answers have the same reward (mean {reward:g}), so nothing is learned from "
        "it. If none is right: take easier prompts, raise num_generations, or reward parts of an answer. If all are "
        "right: take harder prompts. dynamic_sampling=True replaces such groups"
    )
