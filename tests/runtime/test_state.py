from __future__ import annotations

import json

import pytest
import torch

from burnish.runtime.guard import StepGuard
from burnish.runtime.state import Counter, RunningMeans, Stateful
from burnish.types import Mean


def test_counter_adds_numbers_and_tensors():
    counter = Counter()
    assert counter.value == 0
    counter.add(3)
    counter.add(torch.tensor(4))
    assert counter.value == 7
    assert isinstance(counter.value, int)


def test_counter_counts_past_the_integers_of_float32():
    """2^24 + 1 tokens are not a float32; the total stays an integer tensor."""
    counter = Counter()
    counter.add(torch.tensor(2**24))
    counter.add(torch.tensor(1))
    assert counter.value == 2**24 + 1


def test_counter_continues():
    counter, resumed = Counter(), Counter()
    counter.add(torch.tensor(5))
    resumed.load_state_dict(json.loads(json.dumps(counter.state_dict())))
    resumed.add(2)
    assert (resumed.value, counter.value) == (7, 5)


def test_adding_does_not_read_the_device():
    """On a device that has no values to read (meta), adding works and only reading fails: no hidden sync."""
    counter = Counter()
    counter.add(torch.tensor(1, device="meta"))
    counter.add(2)
    assert counter._total.device.type == "meta"


def test_who_is_stateful():
    assert isinstance(Counter(), Stateful)
    assert isinstance(StepGuard(), Stateful)
    assert not isinstance(object(), Stateful)


def collected(means: RunningMeans, **values: list[float]) -> dict[str, torch.Tensor]:
    """Collect one micro-batch, and return the sums as one rank has them."""
    means.collect({name: Mean.of(torch.tensor(numbers)) for name, numbers in values.items()})
    return means.collected()


def test_a_running_mean_over_all_steps_weights_each_value_alike():
    """Steps of (1, 3) and (8): means 2 after the first, (1 + 3 + 8) / 3 = 4 after the second."""
    means = RunningMeans([("reward", None)])
    assert means.value("reward", None) == 0
    means.update(collected(means, reward=[1.0, 3.0], other=[9.0]))
    assert means.value("reward", None) == 2
    means.update(collected(means, reward=[8.0]))
    assert means.value("reward", None) == 4


def test_an_exponential_mean_starts_at_0():
    """Momentum 0.9: 0.1 x 10 = 1, then 0.9 x 1 + 0.1 x 20 = 2.9; the number of values does not matter."""
    means = RunningMeans([("margin", 0.9)])
    means.update(collected(means, margin=[10.0, 10.0]))
    assert means.value("margin", 0.9).item() == pytest.approx(1.0, abs=1e-12)
    means.update(collected(means, margin=[20.0]))
    assert means.value("margin", 0.9).item() == pytest.approx(2.9, abs=1e-12)


def test_micro_batches_of_a_step_are_one_update():
    means = RunningMeans([("margin", 0.9)])
    collected(means, margin=[4.0])
    means.update(collected(means, margin=[8.0, 12.0]))
    assert means.value("margin", 0.9).item() == pytest.approx(0.8, abs=1e-12)
    assert means.collected()["margin"].tolist() == [0, 0]


@pytest.mark.parametrize("bad", [[float("nan")], [float("inf"), 1.0], []])
def test_a_step_without_numbers_changes_nothing(bad):
    means = RunningMeans([("margin", None)])
    means.update(collected(means, margin=[2.0]))
    means.update(collected(means, margin=bad))
    assert means.value("margin", None) == 2
    means.update(collected(means, margin=[4.0]))
    assert means.value("margin", None) == 3


def test_running_means_continue_where_they_were_saved():
    first, second = (RunningMeans([("margin", None), ("margin", 0.5)]) for _ in range(2))
    first.update(collected(first, margin=[2.0, 4.0]))
    halfway = collected(first, margin=[6.0])
    second.load_state_dict(first.state_dict())
    second.load_collected(halfway)
    for means in (first, second):
        means.update(collected(means, margin=[9.0]))
    for momentum in (None, 0.5):
        assert torch.equal(first.value("margin", momentum), second.value("margin", momentum))
    assert first.value("margin", None).item() == pytest.approx((2 + 4 + 6 + 9) / 4)
