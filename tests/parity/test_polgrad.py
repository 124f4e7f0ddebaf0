"""The pure core against polgrad, the reference semantics of policy-gradient losses: every algorithm that it knows.

Where the two mean different things, and what is compared therefore:
- polgrad's `cispo` caps the ratio at 1 + eps_high, Burnish's (as TRL's) at epsilon_high itself.
- polgrad refuses groups of one answer; Burnish gives them the advantage 0.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import polgrad
import pytest
import torch
from polgrad.aggregate import Aggregation, aggregate
from polgrad.kl import KLEstimator, kl_estimate, kl_in_reward
from polgrad.losses import ClipConfig

from burnish.advantages import advantages, compute_advantages
from burnish.gae import gae, whiten
from burnish.importance import importance_corrections
from burnish.losses import aggregations, kl_estimators, policy_losses, reduce_tokens
from burnish.losses.kl import kl_loss, with_kl_penalty
from burnish.losses.policy import apply_policy_loss
from burnish.losses.value import value_loss
from burnish.types import PolicyTokens, RewardTable

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
EXACT = {"rtol": 1e-12, "atol": 1e-12}
BUDGET, GROUPS = 12, [3, 0, 3, 0, 8, 8, 8, 3]
ROWS = {  # of an algorithm there: our policy loss, and our advantage
    "ppo": ("ppo", None),
    "grpo": ("grpo", "group"),
    "dr_grpo": ("dr_grpo", "group"),
    "dapo": ("dapo", "group"),
    "gspo": ("gspo", "group"),
    "gspo_token": ("gspo_token", "group"),
    "cispo": ("cispo", "group"),
    "rloo": ("reinforce", "rloo"),
    "reinforce_pp": ("grpo", "reinforce_pp"),
    "grpo_tis": ("grpo", "group"),
}
EVERY = sorted(ROWS)


def streams(seed=0, size=8, length=7):
    """Log-probs of policy, old policy, reference and engine; the mask of right-padded answers; rewards."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logps = -normal(size, length).abs() - 0.05
    lengths = torch.randint(1, length + 1, (size, 1), generator=generator)
    mask = torch.arange(length) < lengths
    others = {name: logps + 0.3 * normal(size, length) for name in ("old", "ref", "sampler")}
    return {"logps": logps, **others, "mask": mask, "rewards": normal(size), "advantages": normal(size)}


def config_of(name: str):
    loss = polgrad.get_algorithm(name).loss
    return replace(loss, norm_len=BUDGET) if loss.aggregation is Aggregation.TOKEN_SUM_NORM else loss


def ours(name: str, s: dict, logps: torch.Tensor) -> torch.Tensor:
    """The whole loss of an algorithm in one step: policy loss, sampler correction, KL, one division."""
    config = config_of(name)
    options = {}
    if config.clip is not None:
        high = config.clip.eps_high
        options = (
            {"epsilon_high": 1 + high} if name == "cispo" else {"epsilon": config.clip.eps_low, "epsilon_high": high}
        )
    weights = None
    if config.is_correction is not None:
        correct = importance_corrections[f"{config.is_correction.level}_truncate"].function
        weights = correct(s["old"], s["sampler"], s["mask"], clip_max=config.is_correction.cap).weights
    entry = policy_losses[ROWS[name][0]]
    tokens = PolicyTokens(
        logps=logps,
        old_logps=s["old"],
        advantages=s["advantages"][:, None],
        mask=s["mask"],
        importance_weights=weights,
    )
    losses = apply_policy_loss(replace(entry, function=partial(entry.function, **options)), tokens).losses
    if config.kl is not None:
        losses = losses + config.kl.coef * kl_loss(
            logps, s["ref"], estimator=kl_estimators[config.kl.kind.value].function
        )
    aggregation = config.aggregation.value
    if name != "reinforce_pp":
        assert aggregation == entry.facts["aggregation"]
    reduced, per = reduce_tokens(losses, s["mask"], aggregation=aggregation, max_completion_length=BUDGET)
    return reduced.sum() / (s["mask"].sum() if per == "token" else len(logps))


def value_and_gradient(function, logps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = logps.clone().requires_grad_()
    value = function(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def test_every_algorithm_is_compared():
    assert set(ROWS) == set(polgrad.ALGORITHMS)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", EVERY)
def test_loss_and_gradient(name, seed):
    s = streams(seed)

    def theirs(logps):
        return polgrad.policy_loss(
            config_of(name), logprobs=logps, old_logprobs=s["old"], advantages=s["advantages"],
            response_mask=s["mask"], ref_logprobs=s["ref"], rollout_logprobs=s["sampler"],
        ).loss  # fmt: skip

    expected, slope = value_and_gradient(theirs, s["logps"])
    found, own_slope = value_and_gradient(partial(ours, name, s), s["logps"])
    torch.testing.assert_close(found, expected, **EXACT)
    torch.testing.assert_close(own_slope, slope, **EXACT)
    assert slope.abs().max() > 1e-4


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo_token"])
def test_what_is_clipped(name):
    s = streams(1, size=30)
    config = config_of(name)
    result = polgrad.policy_loss(
        replace(config, kl=None), logprobs=s["logps"], old_logprobs=s["old"], advantages=s["advantages"],
        response_mask=s["mask"],
    )  # fmt: skip
    entry = policy_losses[name]
    options = {"epsilon": config.clip.eps_low, "epsilon_high": config.clip.eps_high}
    tokens = PolicyTokens(logps=s["logps"], old_logps=s["old"], advantages=s["advantages"][:, None], mask=s["mask"])
    metrics = apply_policy_loss(replace(entry, function=partial(entry.function, **options)), tokens).metrics
    for theirs, mine in ((result.clipped_low, "low"), (result.clipped_high, "high")):
        assert torch.equal(theirs, metrics[f"clip_ratio/{mine}_mean"].bool() & s["mask"])
    assert result.clipped_low.any()
    assert result.clipped_high.any()


def test_dual_clip():
    s = streams(2)
    s["logps"] = s["logps"] + 1.5  # ratios beyond the bound
    config = replace(config_of("dapo"), clip=ClipConfig(eps_low=0.2, eps_high=0.28, ratio_cap=3.0))

    def theirs(logps):
        return polgrad.policy_loss(
            config, logprobs=logps, old_logprobs=s["old"], advantages=s["advantages"], response_mask=s["mask"]
        ).loss

    def mine(logps):
        tokens = PolicyTokens(logps=logps, old_logps=s["old"], advantages=s["advantages"][:, None], mask=s["mask"])
        entry = policy_losses["dual_clip"]
        losses = apply_policy_loss(replace(entry, function=partial(entry.function, epsilon_high=0.28)), tokens).losses
        return losses[s["mask"]].mean()

    for found, expected in zip(
        value_and_gradient(mine, s["logps"]), value_and_gradient(theirs, s["logps"]), strict=True
    ):
        torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("name", [name for name in EVERY if ROWS[name][1]])
def test_advantage(name):
    """Of the total reward; where the KL is in the reward, of the reward minus the summed penalty."""
    s, spec = streams(3), polgrad.get_algorithm(name)
    table = RewardTable(rewards=s["rewards"][:, None], names=("r",), weights=torch.ones(1).double())
    rewards, groups = s["rewards"], torch.tensor(GROUPS)
    if spec.kl_reward is not None:
        kind, coefficient = spec.kl_reward.kind, spec.kl_reward.coef
        zeros = torch.zeros_like(s["old"])
        rewards = rewards + kl_in_reward(zeros, s["old"], s["ref"], kind, coefficient, response_mask=s["mask"]).sum(1)
        kl = kl_estimators[kind.value].function(s["old"], s["ref"])
        table = with_kl_penalty(table, kl, s["mask"], coefficient=coefficient)
    torch.testing.assert_close(table.total(), rewards, **CLOSE)
    expected = {
        "grpo": lambda: polgrad.grpo_advantages(rewards, groups, spec.advantage_config),
        "rloo": lambda: polgrad.rloo_advantages(rewards, groups),
        "reinforce_pp": lambda: polgrad.reinforce_pp_advantages(rewards, config=spec.advantage_config),
    }[spec.advantage]()
    entry = advantages[ROWS[name][1]]
    if name == "dr_grpo":
        entry = replace(entry, function=partial(entry.function, scale_rewards="none"))
    found = compute_advantages(entry, table, groups, s["mask"])[:, 0]
    torch.testing.assert_close(found, expected, **CLOSE)


def test_reinforce_pp_with_the_baseline_of_the_group():
    s, groups = streams(4), torch.tensor(GROUPS)
    config = polgrad.get_algorithm("reinforce_pp").advantage_config
    table = RewardTable(rewards=s["rewards"][:, None], names=("r",), weights=torch.ones(1).double())
    found = compute_advantages(advantages["reinforce_pp_baseline"], table, groups, s["mask"])[:, 0]
    torch.testing.assert_close(found, polgrad.reinforce_pp_advantages(s["rewards"], groups, config=config), **CLOSE)


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0)])
def test_gae_and_whitening(gamma, lam):
    s = streams(5)
    theirs = polgrad.gae(s["ref"], s["old"], config=polgrad.GAEConfig(gamma=gamma, lam=lam), response_mask=s["mask"])
    found = gae(s["old"], s["ref"], s["mask"], gamma=gamma, lam=lam)
    for mine, expected in zip(found, theirs, strict=True):
        torch.testing.assert_close(mine, expected, **EXACT)
    for shift in (True, False):
        expected = polgrad.whiten(theirs[0], s["mask"], shift_mean=shift)
        torch.testing.assert_close(whiten(found[0], s["mask"], shift_mean=shift), expected, **EXACT)


@pytest.mark.parametrize("kind", sorted(kl_estimators))
def test_kl(kind):
    s = streams(6)

    def theirs(logps):
        return kl_estimate(logps, s["ref"], KLEstimator(kind), response_mask=s["mask"]).sum()

    def mine(logps):
        return kl_estimators[kind].function(logps, s["ref"])[s["mask"]].sum()

    for found, expected in zip(
        value_and_gradient(mine, s["logps"]), value_and_gradient(theirs, s["logps"]), strict=True
    ):
        torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("name", sorted(aggregations))
def test_aggregation(name):
    s = streams(7)
    expected = aggregate(s["logps"], s["mask"], Aggregation(name), norm_len=BUDGET)
    losses, per = reduce_tokens(s["logps"], s["mask"], aggregation=name, max_completion_length=BUDGET)
    torch.testing.assert_close(losses.sum() / (s["mask"].sum() if per == "token" else len(losses)), expected, **CLOSE)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_importance_weights_of_both_levels(level):
    """Read off a loss that is their sum: ratio 1, advantage -1."""
    s = streams(8)
    correction = polgrad.ISCorrectionConfig(cap=1.3, level=level)
    config = replace(config_of("dapo"), is_correction=correction)
    result = polgrad.policy_loss(
        config, logprobs=s["old"], old_logprobs=s["old"], advantages=-torch.ones(8, dtype=torch.float64),
        response_mask=s["mask"], rollout_logprobs=s["sampler"],
    )  # fmt: skip
    correct = importance_corrections[f"{level}_truncate"].function
    found = correct(s["old"], s["sampler"], s["mask"], clip_max=1.3).weights
    torch.testing.assert_close(found[s["mask"]], result.per_token_objective[s["mask"]], **CLOSE)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_value_loss(clip):
    s = streams(9)

    def theirs(values):
        return polgrad.value_loss(
            values, s["old"], s["ref"], s["mask"], clip_eps=clip, aggregation=Aggregation.TOKEN_MEAN
        ).loss

    def mine(values):
        return value_loss(values, s["old"], s["ref"], cliprange_value=clip).losses[s["mask"]].mean()

    for found, expected in zip(
        value_and_gradient(mine, s["logps"]), value_and_gradient(theirs, s["logps"]), strict=True
    ):
        torch.testing.assert_close(found, expected, **EXACT)
