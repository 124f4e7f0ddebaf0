"""Policy losses, weights and advantages of TRL 1.16, frozen by make_trl_policy.py. TRL is not needed here.

Where the two libraries mean different things, and what is compared therefore:
- TRL averages the means of micro-batches, Burnish divides once by the count in the step: one batch is one step here.
- `luspo` is a sequence ratio in Burnish; in TRL that takes importance_sampling_level="sequence".
- `cispo_clip_ratio` counts every capped weight in Burnish, and those of good tokens alone in TRL.
- TRL keeps the log-probs of the engine, the weights of rewards and sapo's temperatures in float32: what is made of them
  agrees to that.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from trl_policy_setup import (
    ADVANTAGES,
    COMMON,
    MAX_COMPLETION_LENGTH,
    OPTIONS,
    REWARD_WEIGHTS,
    REWARDS,
    G,
    N,
    make_tensors,
)

from burnish.advantages import advantages, compute_advantages
from burnish.importance import importance_corrections
from burnish.losses import policy_losses, reduce_tokens
from burnish.losses.auxiliary import entropy_bonus
from burnish.losses.kl import kl_loss
from burnish.losses.policy import apply_policy_loss, with_ratio
from burnish.losses.selection import entropy_threshold, off_policy_mask, top_entropy_mask
from burnish.types import PolicyTokens, RewardTable

FROZEN = json.loads((Path(__file__).parent / "trl_policy_1_16.json").read_text())
TENSORS = make_tensors()
MASK = TENSORS["mask"]
OURS = {"gmpo": "gmpo", "gspo": "gspo"}  # the row of a case, where it is not its loss_type


def entry_of(case: str):
    entry = policy_losses[OURS.get(case, OPTIONS[case].get("loss_type"))]
    options = {**COMMON, **OPTIONS[case]}
    read = {name: options[name] for name in entry.hyper_parameters if name in options}
    return replace(entry, function=partial(entry.function, **read))


def weights_of(case: str) -> torch.Tensor | None:
    options = OPTIONS[case]
    if "vllm_importance_sampling_mode" not in options:
        return None
    correct = importance_corrections[options["vllm_importance_sampling_mode"]].function
    bounds = {f"clip_{end}": options.get(f"vllm_importance_sampling_clip_{end}") for end in ("max", "min")}
    return correct(TENSORS["old"], TENSORS["sampler"], MASK, **bounds).weights


def kept(case: str, tokens: PolicyTokens) -> torch.Tensor | None:
    options = OPTIONS[case]
    if "top_entropy_quantile" in options:
        threshold = entropy_threshold(TENSORS["entropy"][MASK], top_entropy_quantile=options["top_entropy_quantile"])
        return top_entropy_mask(TENSORS["entropy"], MASK, threshold)
    if "off_policy_mask_threshold" in options:
        threshold = options["off_policy_mask_threshold"]
        return off_policy_mask(
            tokens.advantages, tokens.logps, TENSORS["old"], MASK, off_policy_mask_threshold=threshold
        )
    return None


def step(case: str, logps: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of the step and what is logged of it."""
    options, entry = OPTIONS[case], entry_of(case)
    tokens = PolicyTokens(
        logps=logps,
        old_logps=TENSORS["old"],
        advantages=TENSORS["advantages"][:, None],
        mask=MASK,
        importance_weights=weights_of(case),
    )
    level = options.get("importance_sampling_level")
    result = apply_policy_loss(entry, tokens, importance_sampling_level=level, keep=kept(case, tokens))
    losses = result.losses
    if "beta" in options:
        log_ratio = with_ratio(tokens, level or "token").log_ratio if options["use_bias_correction_kl"] else None
        losses = losses + options["beta"] * kl_loss(logps, TENSORS["ref"], log_ratio=log_ratio)
    aggregation = entry.facts["aggregation"]
    reduced, per = reduce_tokens(losses, MASK, aggregation=aggregation, max_completion_length=MAX_COMPLETION_LENGTH)
    total = reduced.sum() / (MASK.sum() if per == "token" else N)
    if "entropy_coef" in options:
        term = entropy_bonus(TENSORS["entropy"], coefficient=options["entropy_coef"])
        total = total + term.coefficient * term.losses[MASK].mean()
    means = {k: float(v[MASK].mean() if v.shape == MASK.shape else v.mean()) for k, v in result.metrics.items()}
    return total, means


def test_the_file_says_what_it_came_from():
    assert FROZEN["versions"]["trl"] == "1.16.0"
    assert set(FROZEN["losses"]) == set(OPTIONS)
    assert set(FROZEN["advantages"]) == set(ADVANTAGES)


@pytest.mark.parametrize("case", OPTIONS)
def test_loss_and_gradient(case):
    logps = TENSORS["logps"].clone().requires_grad_()
    total, _ = step(case, logps)
    total.backward()
    close = 1e-9 if weights_of(case) is None and case != "sapo" else 1e-6
    assert total.item() == pytest.approx(FROZEN["losses"][case]["loss"], rel=close)
    expected = torch.tensor(FROZEN["losses"][case]["gradient"], dtype=torch.float64)
    torch.testing.assert_close(logps.grad, expected, rtol=close, atol=close)


@pytest.mark.parametrize("case", [case for case in OPTIONS if OPTIONS[case].get("loss_type") != "cispo"])
def test_what_is_logged(case):
    _, means = step(case, TENSORS["logps"])
    theirs = FROZEN["losses"][case]["metrics"]
    assert set(means) <= set(theirs)
    assert means == pytest.approx({name: theirs[name] for name in means}, rel=1e-6)
    assert bool(means) is (case != "sapo")


@pytest.mark.parametrize("case", [case for case in OPTIONS if "vllm_importance_sampling_mode" in OPTIONS[case]])
def test_importance_weights(case):
    expected = torch.tensor(FROZEN["losses"][case]["weights"], dtype=torch.float64).expand(MASK.shape)
    torch.testing.assert_close(weights_of(case)[MASK], expected[MASK], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", ADVANTAGES)
def test_advantages(case):
    rows = [[math.nan if value is None else value for value in row] for row in REWARDS]
    table = RewardTable(
        rewards=torch.tensor(rows, dtype=torch.float64), names=("a", "b"), weights=torch.tensor(REWARD_WEIGHTS).double()
    )
    options = ADVANTAGES[case]
    entry = advantages["gdpo" if "multi_objective_aggregation" in options else "group"]
    read = {name: value for name, value in options.items() if name in entry.hyper_parameters}
    entry = replace(entry, function=partial(entry.function, **read))
    found = compute_advantages(entry, table, torch.arange(N) // G, MASK)[:, 0]
    assert found.tolist() == pytest.approx(FROZEN["advantages"][case], rel=1e-6, abs=1e-6)


def test_the_numbers_tell_the_cases_apart():
    """A comparison at a ratio of 1, within every bound, would hold for any of them; bnpo alone is dapo at its options."""
    losses = {case: round(frozen["loss"], 9) for case, frozen in FROZEN["losses"].items()}
    assert len(set(losses.values())) == len(losses)
    for case in ("grpo", "dapo", "gspo", "gmpo"):
        metrics = FROZEN["losses"][case]["metrics"]
        assert min(metrics["clip_ratio/low_mean"], metrics["clip_ratio/high_mean"]) > 0, case
    for case, frozen in FROZEN["losses"].items():
        weights = torch.tensor(frozen.get("weights", [0.5, 0.0]))
        assert ((weights != 1) & (weights < 1.2)).any(), case
