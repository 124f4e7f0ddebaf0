from __future__ import annotations

import json

import torch

from burnish.runtime.guard import StepGuard
from burnish.runtime.state import Counter, Stateful


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
