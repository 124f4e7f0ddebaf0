from __future__ import annotations

import math

import pytest
import torch

from burnish.importance import check_correction, importance_corrections
from burnish.losses import policy_losses
from burnish.metrics import EXPLANATIONS, Estimate, shown
from burnish.types import Mean

EVERY = sorted(importance_corrections)
RATIOS = [[0.5, 1.0, 4.0, 9.0], [2.0, 2.0, 9.0, 9.0]]
MASK = torch.tensor([[True, True, True, False], [True, True, False, False]])  # products 2 and 4


def correct(name, ratios=RATIOS, mask=MASK, **bounds):
    gap = torch.tensor(ratios, dtype=torch.float64).log()
    sampler_logps = torch.full_like(gap, -2.0)
    return importance_corrections[name].function(sampler_logps + gap, sampler_logps, mask, **bounds)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_truncate", [[0.8, 1.0, 3.0, 1.0], [2.0, 2.0, 1.0, 1.0]]),
        ("token_mask", [[0.0, 1.0, 0.0, 1.0], [2.0, 2.0, 1.0, 1.0]]),
        ("sequence_truncate", [[2.0, 2.0, 2.0, 1.0], [3.0, 3.0, 1.0, 1.0]]),
        ("sequence_mask", [[2.0, 2.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]]),
    ],
)
def test_values(name, expected):
    """Tokens 0.5, 1, 4 and 2, 2 in [0.8, 3]; as answers 2 and 4. Untrained tokens are in no product and have 1."""
    weights = correct(name, clip_max=3.0, clip_min=0.8).weights
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("loss", sorted(policy_losses))
def test_a_correction_of_whole_answers_does_not_go_with_a_loss_that_multiplies_it_up(name, loss):
    inside = policy_losses[loss].facts["correction"] == "inside"
    if not (inside and name.startswith("sequence")):
        check_correction(importance_corrections[name], policy_losses[loss])
        return
    with pytest.raises(ValueError, match=rf"'{name}' gives each token .* '{loss}' .* choose token_.* or token_"):
        check_correction(importance_corrections[name], policy_losses[loss])


def test_vespo_is_such_a_loss():
    assert [name for name in policy_losses if policy_losses[name].facts["correction"] == "inside"] == ["vespo"]


@pytest.mark.parametrize("name", EVERY)
def test_no_mismatch_is_no_correction(name):
    found = correct(name, [[1.0] * 4] * 2)
    assert (found.weights == 1).all()
    assert all((values == (key.endswith("ratio/mean"))).all() for key, values in found.metrics.items())


@pytest.mark.parametrize("name", EVERY)
def test_without_bounds_it_is_the_ratio(name):
    found = correct(name, clip_max=None).weights
    expected = torch.tensor(RATIOS) if name.startswith("token") else torch.tensor([[2.0], [4.0]]).expand(2, 4)
    torch.testing.assert_close(found[MASK], expected[MASK].double())


def test_what_is_counted():
    """token_mask at 3 drops one of five tokens; token_truncate cuts it; sequence_mask drops one of two answers."""
    masked, cut, dropped = (correct(name).metrics for name in ("token_mask", "token_truncate", "sequence_mask"))
    assert masked["sampling/dropped"][MASK].mean().item() == pytest.approx(0.2)
    assert masked["sampling/truncated"][MASK].sum() == 0
    assert cut["sampling/truncated"][MASK].mean().item() == pytest.approx(0.2)
    assert cut["sampling/dropped"][MASK].sum() == 0
    assert dropped["sampling/dropped"].tolist() == [[0.0], [1.0]]
    gaps = [math.log(2), 0.0, math.log(4), math.log(2), math.log(2)]
    assert cut["sampling/sampling_logp_difference/mean"][MASK].tolist() == pytest.approx(gaps)
    assert cut["sampling/sampling_logp_difference/row_max"][:, 0].tolist() == pytest.approx([math.log(4), math.log(2)])


@pytest.mark.parametrize("name", EVERY)
def test_log_probs_that_the_engine_did_not_give(name):
    """NaN is a weight of 1 and no gap, and is counted."""
    old_logps = torch.tensor([[-1.0, -2.0]])
    found = importance_corrections[name].function(old_logps, torch.tensor([[math.nan, -2.0]]), torch.ones(1, 2).bool())
    assert found.weights.tolist() == [[1.0, 1.0]]
    assert found.metrics["sampling/unscored"].tolist() == [[1.0, 0.0]]
    assert found.metrics["sampling/sampling_logp_difference/mean"].tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("name", EVERY)
def test_padding_content(name):
    other = [[0.5, 1.0, 4.0, 1e30], [2.0, 2.0, 1e-30, 3.0]]
    first, second = correct(name), correct(name, other)
    assert torch.equal(first.weights, second.weights)
    for key, values in first.metrics.items():
        compared = MASK if values.shape == MASK.shape else torch.ones(2, 1).bool()
        assert torch.equal(values[compared], second.metrics[key][compared])


@pytest.mark.parametrize("name", EVERY)
def test_finite_at_extremes_and_without_gradient(name):
    old_logps = torch.tensor([[0.0, -1e4], [-1e4, 0.0]], requires_grad=True)
    sampler_logps = torch.tensor([[-1e4, -1e4], [0.0, 0.0]])
    found = importance_corrections[name].function(old_logps, sampler_logps, torch.ones(2, 2).bool(), clip_max=None)
    assert found.weights.isfinite().all()
    assert not found.weights.requires_grad
    assert found.metrics["sampling/dropped"].sum() >= 1  # exp(-1e4) is 0 in any bounds


@pytest.mark.parametrize("bounds", [{"clip_max": 0.5}, {"clip_min": 2.0}, {"clip_min": -1.0}])
@pytest.mark.parametrize("name", EVERY)
def test_bounds_hold_one(name, bounds):
    message = "has to hold 1, the weight of a token that sampler and policy agree on: 0 <= clip_min <= 1 <= clip_max"
    with pytest.raises(ValueError, match=message):
        correct(name, **bounds)


def test_effective_sample_size():
    """(sum of w)² / (n sum of w²): weights 1, 1, 2, 0 are worth 16 / (4 x 6) of four answers."""
    mean = Mean.of(torch.tensor([1.0, 1.0, 2.0, 0.0]))
    estimate = Estimate.of(mean.total.item(), mean.weight.item(), mean.squares.item())
    found = shown({"sampling/importance_sampling_ratio/mean": estimate})
    assert found["sampling/effective_sample_size"].mean == pytest.approx(16 / 24)
    nothing = Estimate.of(0.0, 4.0, 0.0)
    assert shown({"sampling/importance_sampling_ratio/mean": nothing})["sampling/effective_sample_size"].mean == 0


@pytest.mark.parametrize("name", EVERY)
def test_level(name):
    """`sequence`: all tokens of an answer have one weight."""
    weights = correct(name, clip_max=None).weights[0, :3]
    assert bool((weights == weights[0]).all()) is (importance_corrections[name].facts["level"] == "sequence")


@pytest.mark.parametrize("name", EVERY)
def test_metrics_are_explained(name):
    assert set(correct(name).metrics) <= set(EXPLANATIONS)
    assert "weight = " in importance_corrections[name].function.__doc__


@pytest.mark.parametrize(("name", "of_four"), [("token_truncate", 3.0), ("token_mask", 0.0)])
def test_weights_are_kept_up_to_3_by_default(name, of_four):
    assert correct(name).weights[0, :3].tolist() == pytest.approx([0.5, 1.0, of_four])


def test_whole_answers_are_kept_up_to_3_by_default():
    """As answers the rows are 2 and 4."""
    assert correct("sequence_truncate").weights[:, 0].tolist() == pytest.approx([2.0, 3.0])
    assert correct("sequence_mask").weights[:, 0].tolist() == pytest.approx([2.0, 0.0])
    assert correct("sequence_mask", [[0.5, 1.0, 7.0, 1.0], [2.0, 1.25, 1.0, 1.0]]).weights[:, 0].tolist() == [0.0, 2.5]


@pytest.mark.parametrize("name", EVERY)
def test_a_weight_that_is_a_bound_is_kept(name):
    """1 may be both of them."""
    assert correct(name, [[1.0] * 4] * 2, clip_max=1.0, clip_min=1.0).weights.eq(1).all()


def test_what_is_dropped_is_not_truncated():
    cut = correct("token_truncate", clip_max=3.0, clip_min=0.8).metrics
    assert cut["sampling/truncated"][0].tolist() == [1, 0, 1, 0]  # 0.5 is raised to 0.8; the last one is untrained
    dropped = correct("token_mask", clip_max=3.0, clip_min=0.8).metrics
    assert dropped["sampling/truncated"].sum() == 0
    assert dropped["sampling/dropped"][0].tolist() == [1, 0, 1, 0]
