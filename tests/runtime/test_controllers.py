from __future__ import annotations

import json
import math

import pytest

from burnish.runtime.controllers import AdaptiveEntropy, AdaptiveKL, RunningScale
from burnish.runtime.state import Stateful


def make_entropy(**more) -> AdaptiveEntropy:
    return AdaptiveEntropy(**{"initial": 0.0, "smallest": 0.0, "largest": 0.01, "delta": 0.005, "target": 0.2, **more})


def test_entropy_rises_while_it_is_low():
    """0 before the first step; then 0.005 a step up to the bound while H <= 0.2."""
    controller = make_entropy()
    used = []
    for entropy in (0.2, 0.1, 0.1, 0.1):
        used.append(controller.coefficient)
        controller.update(entropy)
    assert used == pytest.approx([0.0, 0.005, 0.01, 0.01])


def test_entropy_above_its_target_has_no_bonus_and_a_falling_coefficient():
    controller = make_entropy(initial=0.01)
    controller.update(0.5)
    assert (controller.coefficient, controller.value) == (0.0, pytest.approx(0.005))
    controller.update(0.1)
    assert controller.coefficient == pytest.approx(0.01)


def test_entropy_stays_above_its_smallest():
    controller = make_entropy(initial=0.004, smallest=0.002)
    controller.update(1.0)
    assert controller.value == 0.002


@pytest.mark.parametrize("measured", [math.nan, math.inf])
def test_a_step_that_is_not_finite_moves_nothing(measured):
    entropy, kl = make_entropy(), AdaptiveKL(initial=0.2, target=6.0, horizon=10_000)
    entropy.update(0.1)
    before = entropy.state_dict(), kl.state_dict()
    entropy.update(measured)
    kl.update(measured, 10)
    assert (entropy.state_dict(), kl.state_dict()) == before


@pytest.mark.parametrize("wrong", [{"initial": 0.02}, {"smallest": 0.02, "initial": 0.0}, {"delta": -1.0}])
def test_entropy_bounds(wrong):
    with pytest.raises(ValueError, match="the entropy coefficient starts at"):
        make_entropy(**wrong)


def test_kl_by_hand():
    """Target 6, horizon 1000: KL 6.6 with 100 answers is 0.2 (1 + 0.1 x 0.1); KL 60 counts as a fifth too much."""
    controller = AdaptiveKL(initial=0.2, target=6.0, horizon=1000)
    controller.update(6.6, 100)
    assert controller.coefficient == pytest.approx(0.2 * 1.01)
    controller.update(60.0, 100)
    assert controller.coefficient == pytest.approx(0.2 * 1.01 * 1.02)
    controller.update(0.0, 1e9)
    assert controller.coefficient == pytest.approx(0.2 * 1.01 * 1.02 * 0.8)


def test_kl_arguments():
    with pytest.raises(ValueError, match=r"target=0\.0"):
        AdaptiveKL(initial=0.1, target=0.0, horizon=1000)


@pytest.mark.parametrize("steps", [0, 2])
def test_continuation(steps):
    """What was saved, as JSON, goes on as if it had not stopped."""
    for make in (make_entropy, lambda: AdaptiveKL(initial=0.2, target=0.15, horizon=100)):
        running = make()
        for _ in range(steps):
            running.update(*((0.1,) if isinstance(running, AdaptiveEntropy) else (0.1, 10)))
        resumed = make()
        resumed.load_state_dict(json.loads(json.dumps(running.state_dict())))
        for controller in (running, resumed):
            controller.update(*((0.3,) if isinstance(controller, AdaptiveEntropy) else (0.3, 10)))
        assert isinstance(running, Stateful)
        assert vars(resumed) == vars(running)


def test_scale_by_hand():
    """1, 3 and 5 in two rounds: mean 3, unbiased variance 4."""
    scale = RunningScale()
    scale.update(2, 4.0, 10.0)
    assert (scale.mean, scale.std) == (2.0, math.sqrt(2))
    scale.update(1, 5.0, 25.0)
    assert (scale.mean, scale.std) == (3.0, 2.0)
    resumed = RunningScale()
    resumed.load_state_dict(json.loads(json.dumps(scale.state_dict())))
    assert vars(resumed) == vars(scale)
    assert isinstance(scale, Stateful)


@pytest.mark.parametrize("scores", [[], [7.3], [0.1] * 5, [0.0] * 4])
def test_scale_of_scores_that_do_not_differ(scores):
    scale = RunningScale()
    scale.update(len(scores), sum(scores), sum(score**2 for score in scores))
    assert scale.std == 1
