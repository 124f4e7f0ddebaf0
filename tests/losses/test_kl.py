from __future__ import annotations

import math

import pytest
import torch

from burnish.losses import kl_estimators
from burnish.losses.kl import kl_loss, with_kl_penalty
from burnish.types import RewardTable

EVERY = sorted(kl_estimators)
POLICY = torch.tensor([0.3, -0.2, 1.1, 0.0], dtype=torch.float64)  # logits of a distribution over four tokens
REFERENCE = torch.tensor([-0.5, 0.4, 0.2, 0.9], dtype=torch.float64)


def true_kl(logits: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    logps = logits.log_softmax(0)
    return (logps.exp() * (logps - other.log_softmax(0))).sum()


def gradient(function, logits: torch.Tensor) -> torch.Tensor:
    leaf = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(leaf), leaf)
    return found


def expected_loss_gradient(name: str, *, corrected: bool) -> torch.Tensor:
    """The mean over the policy's own samples of the gradient of the estimate of each token: exact, by enumeration."""
    share = POLICY.softmax(0)

    def mean(logits):
        logps = logits.log_softmax(0)[None]
        ref_logps, old_logps = REFERENCE.log_softmax(0)[None], logps.detach()
        log_ratio = logps - old_logps if corrected else None
        return (share * kl_loss(logps, ref_logps, estimator=kl_estimators[name].function, log_ratio=log_ratio)).sum()

    return gradient(mean, POLICY)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("k1", [-1.0, 2.0]), ("k2", [0.5, 2.0]), ("k3", [math.e - 2, math.exp(-2) + 1]), ("abs", [1.0, 2.0])],
)
def test_values(name, expected):
    """d = -1 and 2: k3 is e^1 - 1 - 1 and e^-2 - 1 + 2."""
    logps, ref_logps = torch.tensor([[-2.0, -1.0]]).double(), torch.tensor([[-1.0, -3.0]]).double()
    assert kl_estimators[name].function(logps, ref_logps).tolist() == [pytest.approx(expected)]


@pytest.mark.parametrize("name", EVERY)
def test_means_over_the_policy(name):
    """k1 and k3 have the KL as their mean, exactly; k2 comes near it; abs is no estimate: it is larger."""
    logps, ref_logps = POLICY.log_softmax(0), REFERENCE.log_softmax(0)
    mean = (logps.exp() * kl_estimators[name].function(logps[None], ref_logps[None])[0]).sum()
    exact = true_kl(POLICY, REFERENCE)
    if name == "abs":
        assert mean > 1.5 * exact
    else:
        assert mean.item() == pytest.approx(exact.item(), rel=0.1 if name == "k2" else 1e-12)


def test_gradients_over_the_policy():
    """What each docstring says of its gradient as a loss, with and without the ratio, in expectation."""
    reverse = gradient(lambda logits: true_kl(logits, REFERENCE), POLICY)
    forward = gradient(lambda logits: true_kl(REFERENCE, logits), POLICY)
    plain = {name: expected_loss_gradient(name, corrected=False) for name in EVERY}
    corrected = {name: expected_loss_gradient(name, corrected=True) for name in EVERY}
    torch.testing.assert_close(plain["k1"], torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(plain["k2"], reverse)
    torch.testing.assert_close(plain["k3"], forward)
    torch.testing.assert_close(corrected["k1"], reverse)
    torch.testing.assert_close(corrected["k3"], reverse)
    assert not torch.allclose(corrected["k2"], reverse, rtol=1e-2)
    assert not torch.allclose(plain["k3"], reverse, rtol=1e-2)


@pytest.mark.parametrize("name", EVERY)
def test_gradcheck(name):
    generator = torch.Generator().manual_seed(0)
    logps, ref_logps, old_logps = -3 * torch.rand(3, 2, 3, generator=generator, dtype=torch.float64)

    def loss(logps):
        function = kl_estimators[name].function
        return kl_loss(logps, ref_logps, estimator=function, log_ratio=logps - old_logps)

    assert torch.autograd.gradcheck(loss, (logps.requires_grad_(),))


def test_ratio_of_a_sequence_weights_each_of_its_tokens():
    logps, ref_logps = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-2.0, -1.0]])
    weighted = kl_loss(logps, ref_logps, log_ratio=torch.tensor([[math.log(2)]]))
    torch.testing.assert_close(weighted, 2 * kl_loss(logps, ref_logps))


def test_an_estimator_of_the_user_is_checked():
    with pytest.raises(ValueError, match=r"returned shape \(\) for log-probs of shape \(1, 2\)"):
        kl_loss(torch.zeros(1, 2), torch.zeros(1, 2), estimator=lambda logps, ref_logps: (logps - ref_logps).mean())


def test_penalty_in_the_reward():
    """0.1 a nat: 1 - 0.1 (2 + 3) = 0.5. What nothing scored stays unscored, and tokens keep what they had."""
    table = RewardTable(
        rewards=torch.tensor([[1.0], [math.nan]]),
        names=("r",),
        weights=torch.ones(1),
        token_rewards=torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]),
    )
    kl = torch.tensor([[2.0, 3.0, 99.0], [1.0, 1.0, 1.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    found = with_kl_penalty(table, kl, mask, coefficient=0.1)
    assert found.names == ("r", "kl")
    assert found.total().tolist() == [pytest.approx(0.5), pytest.approx(math.nan, nan_ok=True)]
    torch.testing.assert_close(found.token_rewards[0], torch.tensor([-0.2, 0.7, 0.0]))
    assert not found.token_rewards.requires_grad
    assert found.token_rewards[0].sum().item() == pytest.approx(found.total()[0].item())


@pytest.mark.parametrize("name", EVERY)
def test_documentation(name):
    entry = kl_estimators[name]
    assert "kl = " in entry.function.__doc__
    assert "gradient" in entry.function.__doc__
    assert "Source:" in entry.function.__doc__
