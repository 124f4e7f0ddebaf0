"""What a round was like, in numbers: lengths, rewards, groups without signal, solve rates, duplicates.

All means are over the answers or groups of all ranks; the smallest and the largest are of the round.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from burnish.rollout.collect import Round
from burnish.rollout.whole import WholeRound, is_solved
from burnish.runtime.distributed import gather_rows, sum_over_ranks

if TYPE_CHECKING:
    from jaxtyping import Float

# Upper ends of the solve rates of a group; the first and the last hold exactly 0 and 1.
SOLVE_RATES = ("0", "0-25", "25-50", "50-75", "75-100", "100")


def round_statistics(found: Round, *, solved_reward: float) -> dict[str, float]:
    """The metrics of a round, the same on every rank.

    Args:
        found: this rank's round.
        solved_reward: an answer is right if its total is at least this.
    """
    batch, groups, whole = found.batch, found.groups, found.whole
    duplicates = torch.tensor(_is_duplicate(groups.answer_ids(), groups.num_samples), dtype=torch.float64)
    rows = torch.stack(
        [
            batch.completion_mask.sum(1).double(),
            batch.columns["truncated"].double(),
            ((batch.advantages != 0) & batch.loss_mask).any(1).double(),
            duplicates.to(batch.advantages.device),
        ],
        dim=1,
    )  # (N, 4)
    lengths, truncated, carries, duplicate = gather_rows(rows)[0].unbind(1)  # (S,) each
    num_groups = int(whole.prompt_index.max()) + 1
    counts = torch.tensor([found.num_replaced, found.num_surplus], dtype=torch.float64, device=lengths.device)
    num_replaced, num_surplus = sum_over_ranks(counts).tolist()
    return {
        **_lengths(lengths, truncated),
        **_rewards(whole, num_groups),
        **solve_statistics(whole.returned.total().view(num_groups, -1), solved_reward=solved_reward),
        "frac_rows_with_gradient": float(carries.mean()),
        **({"completions/duplicate_ratio": float(duplicate.mean())} if groups.num_samples > 1 else {}),
        "dynamic_sampling/replaced_groups": num_replaced,
        "dynamic_sampling/surplus_groups": num_surplus,
    }


def solve_statistics(totals: Float[Tensor, "P G"], *, solved_reward: float) -> dict[str, float]:
    """The histogram of solve rates over groups, and pass@k.

        pass@k = mean over prompts of 1 - C(G - c, k) / C(G, k),   c right answers of G

    Source: unbiased pass@k, 2107.03374 eq. 1.

    >>> solve_statistics(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), solved_reward=1.0)["pass@2"]
    0.5
    """
    solved = is_solved(totals, solved_reward)  # (P, G); NaN is not solved
    size, right = totals.shape[1], solved.sum(1)  # (P,)
    rates = right.double() / size
    bins = torch.bucketize(rates, torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 1e-9], dtype=torch.float64).to(rates.device))
    histogram = {f"solve_rate/{name}": float((bins == index).double().mean()) for index, name in enumerate(SOLVE_RATES)}
    passes = {f"pass@{k}": float(pass_at_k(right, size, k).mean()) for k in powers_of_two(size)}
    return {"solve_rate": float(solved.double().mean()), **histogram, **passes}


def pass_at_k(right: Tensor, size: int, k: int) -> Float[Tensor, "P"]:
    """The probability that k of `size` answers, drawn without replacement, hold a right one."""
    wrong = size - right.double()  # (P,)
    steps = torch.arange(k, dtype=torch.float64, device=right.device)
    misses = ((wrong[:, None] - steps) / (size - steps)).clamp(min=0).prod(1)
    return 1 - misses


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, … up to `largest`."""
    return [2**exponent for exponent in range(largest.bit_length()) if 2**exponent <= largest]


def _is_duplicate(answers: Sequence[tuple[int, ...]], num_samples: int) -> list[bool]:
    """Whether another answer of the same group has the same tokens."""
    flags: list[bool] = []
    for start in range(0, len(answers), num_samples):
        group = answers[start : start + num_samples]
        counts = Counter(group)
        flags += [counts[answer] > 1 for answer in group]
    return flags


def _lengths(lengths: Tensor, truncated: Tensor) -> dict[str, float]:
    ended = lengths[truncated == 0]
    found = {
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/clipped_ratio": truncated.mean(),
    }
    if len(ended):
        found |= {
            "completions/mean_terminated_length": ended.mean(),
            "completions/min_terminated_length": ended.min(),
            "completions/max_terminated_length": ended.max(),
        }
    return {name: float(value) for name, value in found.items()}


def _rewards(whole: WholeRound, num_groups: int) -> dict[str, float]:
    table, total = whole.rewards, whole.returned.total()
    known = total[~total.isnan()]
    spread = total.view(num_groups, -1)
    highest, lowest = spread.nan_to_num(-torch.inf).amax(1), spread.nan_to_num(torch.inf).amin(1)
    found = {
        "reward": _mean(known),
        "reward_std": _std(known),
        "frac_unscored": float(total.isnan().double().mean()),
    }
    if spread.shape[1] > 1:  # an answer alone differs from none
        found["frac_reward_zero_std"] = float((highest <= lowest).double().mean())
    for index, name in enumerate(table.names):
        values = table.rewards[:, index]
        values = values[~values.isnan()]
        found |= {f"rewards/{name}/mean": _mean(values), f"rewards/{name}/std": _std(values)}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if len(values) else float("nan")


def _std(values: Tensor) -> float:
    return float(values.double().std()) if len(values) > 1 else float("nan")
