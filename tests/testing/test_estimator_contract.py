"""The contract of KL estimators: those of the table keep every law, and one that breaks one is caught by its name."""

from __future__ import annotations

import random

import pytest
import torch

from burnish.losses import kl_estimators
from burnish.losses.kl import k1, k2, k3
from burnish.testing import ContractError, assert_kl_estimator_contract


@pytest.mark.parametrize("name", sorted(kl_estimators))
def test_estimators_keep_the_laws(name):
    assert_kl_estimator_contract(kl_estimators[name].function)


def test_what_the_rows_of_the_table_claim():
    claims = {name: {fact for fact, holds in kl_estimators[name].facts.items() if holds} for name in kl_estimators}
    assert claims == {
        "k1": {"unbiased"},
        "k2": {"never_negative"},
        "k3": {"unbiased", "never_negative"},
        "abs": {"never_negative"},
    }


def test_an_estimator_of_the_user_claims_what_it_is_said_to():
    def huber(logps, ref_logps):
        return torch.nn.functional.huber_loss(logps, ref_logps, reduction="none")

    assert_kl_estimator_contract(huber, never_negative=True)
    with pytest.raises(ContractError, match="the KL estimator huber breaks the law 'unbiased'"):
        assert_kl_estimator_contract(huber, unbiased=True)
    assert_kl_estimator_contract(k1, unbiased=False)


def summed(logps, ref_logps):
    return (logps - ref_logps).sum(1)


def as_float(logps, ref_logps):
    return float((logps - ref_logps).sum())


def halved(logps, ref_logps):
    return k2(logps.float(), ref_logps.float())


def in_place(logps, ref_logps):
    return k2(logps, ref_logps.mul_(2))


def noisy(logps, ref_logps):
    return k2(logps, ref_logps) * random.random()


def centred(logps, ref_logps):
    return k2(logps, ref_logps) - 1e-3 * k2(logps, ref_logps).mean()


def by_place(logps, ref_logps):
    return k2(logps, ref_logps) * torch.arange(1, logps.shape[1] + 1)


def never_none(logps, ref_logps):
    return k2(logps, ref_logps) + 0.1


def turned(logps, ref_logps):
    return ref_logps - logps


def detached(logps, ref_logps):
    return k3(logps.detach(), ref_logps)


def half_detached(logps, ref_logps):
    return k3(logps, ref_logps) * (1 + (logps - ref_logps).detach() ** 2)


def unbounded(logps, ref_logps):
    difference = ref_logps - logps
    return torch.exp(difference) - 1 - difference


@pytest.mark.parametrize(
    ("estimator", "law", "words"),
    [
        (summed, "a number a token", r"shape \(1,\) for \(1, 2\)"),
        (as_float, "a number a token", "float, not a tensor"),
        (halved, "a number a token", r"torch\.float32 for torch\.float64"),
        (in_place, "no operand is changed", "ref_logps in place"),
        (noisy, "no operand is changed", "two calls on the same tokens"),
        (centred, "each token by itself", "beside the others"),
        (by_place, "each token by itself", "token 1 of row 0"),
        (never_none, "no drift, no KL", r"it is \[\[0\.1"),
        (turned, "direction of the gradient", "Is a sign turned"),
        (detached, "direction of the gradient", "something detached"),
        (half_detached, "gradient of the value", "Jacobian mismatch"),
        (unbounded, "finite at extremes", "bound the exponent"),
    ],
)
def test_an_estimator_that_breaks_a_law_is_caught(estimator, law, words):
    with pytest.raises(
        ContractError, match=f"(?s)the KL estimator {estimator.__name__} breaks the law '{law}'.*{words}"
    ):
        assert_kl_estimator_contract(estimator)


@pytest.mark.parametrize(
    ("estimator", "claim", "words"),
    [(k2, "unbiased", "where the KL is"), (k1, "never_negative", "it claims never_negative, and is")],
)
def test_a_claim_that_does_not_hold_is_caught(estimator, claim, words):
    law = claim.replace("_", " ")
    with pytest.raises(ContractError, match=f"(?s)the law '{law}': .*{words}.*ref_logps"):
        assert_kl_estimator_contract(estimator, **{claim: True})


def test_an_estimator_that_the_ratio_takes_out_of_bounds_is_caught():
    """exp(80) is a float32, and exp(80) exp(40) is none."""

    def wide(logps, ref_logps):
        difference = ref_logps - logps
        return torch.expm1(difference.clamp(max=80.0)) - difference

    with pytest.raises(
        ContractError, match=r"multiplied by the ratio of policy to old policy is inf in torch\.float32"
    ):
        assert_kl_estimator_contract(wide)
