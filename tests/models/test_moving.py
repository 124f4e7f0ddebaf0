from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from burnish.data.collate import PreferenceCollator
from burnish.models.forward import forward, install_forward
from burnish.models.moving import (
    BemaReference,
    BemaSchedule,
    SyncedReference,
    SyncSchedule,
    check_can_follow,
)
from burnish.runtime.state import Stateful
from burnish.runtime.tree import load_tree, save_tree
from conftest import make_model


def two_parameters(weight: float, bias: float, dtype: torch.dtype = torch.float64) -> nn.Linear:
    """y = weight x + bias."""
    module = nn.Linear(1, 1, dtype=dtype)
    set_parameters(module, weight, bias)
    return module


@torch.no_grad()
def set_parameters(module: nn.Linear, weight: float, bias: float) -> None:
    module.weight.fill_(weight)
    module.bias.fill_(bias)


def values(module: nn.Module) -> list[float]:
    return [float(parameter.detach()) for parameter in module.parameters()]


def synced(module: nn.Module, *, alpha: float = 0.6, steps: int = 512) -> SyncedReference:
    return SyncedReference(module, SyncSchedule(mixup_alpha=alpha, sync_steps=steps), description="a copy")


def bema(module: nn.Module, **options) -> BemaReference:
    return BemaReference(module, BemaSchedule(**options), description="a copy")


# TR-DPO.


def test_soft_update_by_hand():
    """alpha 0.25, every 2 steps. Step 2, policy (8, -4): (0, 4) -> (0 + 8/4, 4 - 8/4) = (2, 2).

    Step 4, policy (10, 6): (2 + 8/4, 2 + 4/4) = (4, 3).
    """
    reference = synced(two_parameters(0, 4), alpha=0.25, steps=2)
    policy = two_parameters(8, -4)
    reference.follow(policy, step=1)
    assert values(reference.model) == [0, 4]
    reference.follow(policy, step=2)
    assert values(reference.model) == [2, 2]
    set_parameters(policy, 10, 6)
    reference.follow(policy, step=3)
    assert values(reference.model) == [2, 2]
    reference.follow(policy, step=4)
    assert values(reference.model) == [4, 3]
    assert values(policy) == [10, 6]


def test_hard_update_is_the_policy():
    """Also where (1 - alpha) ref + alpha policy would round: 0.1 is not a sum of the two."""
    reference = synced(two_parameters(1e9, 3), alpha=1, steps=3)
    reference.follow(two_parameters(0.1, -0.7), step=3)
    assert values(reference.model) == [0.1, -0.7]


def test_a_policy_that_stands_still_changes_no_bit():
    """0.6 x + 0.4 x need not be x; the reference must not drift by rounding."""
    policy = make_model(0)
    reference = synced(copy.deepcopy(policy), steps=1)
    for step in range(1, 6):
        reference.follow(policy, step=step)
    assert all(torch.equal(a, b) for a, b in zip(reference.model.parameters(), policy.parameters(), strict=True))


def test_small_shares_are_not_rounded_away_in_bfloat16():
    """ref 1, policy 2, alpha 1/1024. bfloat16 has 1/128 between 1 and 2: each single move would be rounded to 1.

    After 64 moves ref = 2 - (1 - 1/1024)^64 = 1.0606, in bfloat16 1.0625.
    """
    reference = synced(two_parameters(1, 1, torch.bfloat16), alpha=1 / 1024, steps=1)
    policy = two_parameters(2, 2, torch.bfloat16)
    for step in range(1, 65):
        reference.follow(policy, step=step)
    assert values(reference.model) == [1.0625, 1.0625]
    assert reference.model.weight.dtype == torch.bfloat16


def test_no_second_copy_where_the_dtype_is_wide_enough():
    assert synced(two_parameters(0, 0, torch.float32)).tensors()["wide"] == {}
    assert synced(two_parameters(0, 0, torch.float64)).tensors()["wide"] == {}
    assert synced(two_parameters(0, 0, torch.bfloat16), alpha=1).tensors()["wide"] == {}
    wide = synced(two_parameters(0, 0, torch.float16)).tensors()["wide"]
    assert {name: tensor.dtype for name, tensor in wide.items()} == {"weight": torch.float32, "bias": torch.float32}


def test_moves_are_in_place():
    module = two_parameters(0, 4)
    places = [parameter.data_ptr() for parameter in module.parameters()]
    reference = synced(module, alpha=0.5, steps=1)
    reference.follow(two_parameters(8, -4), step=1)
    assert [parameter.data_ptr() for parameter in reference.model.parameters()] == places
    assert not any(parameter.requires_grad for parameter in reference.model.parameters())


# BEMA.


def test_schedule_by_hand():
    """lag 4, multiplier 1. t = 5: 9 -> b = 9^-0.5 = 1/3, a = 1/9. t = 12: b = 1/4, a = 1/16. Floor 0.3 on b."""
    schedule = BemaSchedule(lag=4, ema_power=0.5, bias_power=1.0)
    assert schedule.ema_share(5) == pytest.approx(1 / 3, abs=1e-15)
    assert schedule.bias_factor(5) == pytest.approx(1 / 9, abs=1e-15)
    assert (schedule.ema_share(12), schedule.bias_factor(12)) == (0.25, 0.0625)
    floored = BemaSchedule(lag=4, ema_power=0.5, min_ema_multiplier=0.3)
    assert floored.ema_share(12) == 0.3
    assert floored.ema_share(5) == pytest.approx(1 / 3, abs=1e-15)


def test_bema_by_hand():
    """lag 0, multiplier 2, ema_power 1, bias_power 2, every 2 steps: b(2) = 1/4, a(2) = 1/16; b(4) = 1/8, a(4) = 1/64.

    Start (8, -8). Step 2, policy (16, -8): ema 8 + 8/4 = 10 and -8; ref 10 + 8/16 = 10.5 and -8.
    Step 4, policy (32, 0): ema 10 + 22/8 = 12.75 and -8 + 8/8 = -7; ref 12.75 + 24/64 = 13.125, -7 + 8/64 = -6.875.
    """
    reference = bema(two_parameters(8, -8), update_freq=2, ema_power=1, bias_power=2, lag=0, multiplier=2)
    policy = two_parameters(16, -8)
    reference.follow(policy, step=1)
    assert values(reference.model) == [8, -8]
    reference.follow(policy, step=2)
    assert values(reference.model) == [10.5, -8]
    set_parameters(policy, 32, 0)
    reference.follow(policy, step=3)
    assert values(reference.model) == [10.5, -8]
    reference.follow(policy, step=4)
    assert values(reference.model) == [13.125, -6.875]


def test_burn_in_by_hand():
    """update_after 2, every 12: the policy of step 2, (8, 0), is the start and the average; the reference stays.

    Step 14 = 2 + 12, lag 2: (2 + 14) -> b = 16^-0.5 = 1/4, a = 1/16. Policy (16, 16): ema 8 + 8/4 = 10 and 16/4 = 4;
    ref 10 + 8/16 = 10.5 and 4 + 16/16 = 5.
    """
    reference = bema(two_parameters(1, 1), update_freq=12, update_after=2, lag=2, ema_power=0.5, bias_power=1)
    policy = two_parameters(8, 0)
    reference.follow(policy, step=1)
    reference.follow(policy, step=2)
    assert values(reference.model) == [1, 1]
    set_parameters(policy, 16, 16)
    for step in range(3, 14):
        reference.follow(policy, step=step)
    assert values(reference.model) == [1, 1]
    reference.follow(policy, step=14)
    assert values(reference.model) == [10.5, 5]


def test_no_average_and_no_decay_of_the_correction():
    """Both powers 0: b = a = 1, so ema is the policy and ref = policy + (policy - start): 5 + 4 = 9, 2 + 2 = 4."""
    reference = bema(two_parameters(1, 0), update_freq=1, ema_power=0, bias_power=0)
    reference.follow(two_parameters(5, 2), step=1)
    assert values(reference.model) == [9, 4]


def test_bema_averages_in_float32():
    """ref 1, policy 2, b = 1/1024 at each step: as above, 64 moves come to 1.0606, and bfloat16 alone would stay at 1.

    bias_power 50 makes the correction 0.
    """
    options = {"update_freq": 1, "lag": 1024, "multiplier": 0, "ema_power": 1, "bias_power": 50}
    reference = bema(two_parameters(1, 1, torch.bfloat16), **options)
    policy = two_parameters(2, 2, torch.bfloat16)
    for step in range(1, 65):
        reference.follow(policy, step=step)
    assert values(reference.model) == [1.0625, 1.0625]
    groups = reference.tensors()
    assert groups["average"]["weight"].dtype == torch.float32
    assert groups["start"]["weight"].dtype == torch.bfloat16


# Both.


def make_synced() -> SyncedReference:
    return synced(two_parameters(0, 4, torch.bfloat16), alpha=0.3, steps=2)


def make_bema() -> BemaReference:
    return bema(two_parameters(0, 4, torch.bfloat16), update_freq=2, update_after=1, lag=3)


def path_of(step: int) -> nn.Linear:
    return two_parameters(0.37 * step, 4 - 0.11 * step * step, torch.bfloat16)


@pytest.mark.parametrize("make", [make_synced, make_bema])
@pytest.mark.parametrize("stop", range(7))
def test_state_continues_bit_for_bit(tmp_path, make, stop):
    """Through the checkpoint's own format, at every step."""
    whole, first, second = make(), make(), make()
    for step in range(1, 8):
        whole.follow(path_of(step), step=step)
    for step in range(1, stop + 1):
        first.follow(path_of(step), step=step)
    assert isinstance(first, Stateful)
    save_tree(tmp_path, "state", {"reference": first.state_dict()})
    second.load_state_dict(load_tree(tmp_path, "state")["reference"])
    for step in range(stop + 1, 8):
        second.follow(path_of(step), step=step)
    for group, tensors in whole.tensors().items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second.tensors()[group][name]), (group, name)
    assert whole.tensors()["weights"]["weight"] != make().tensors()["weights"]["weight"]


@pytest.mark.parametrize("make", [make_synced, make_bema])
def test_fingerprint_is_what_the_run_began_with(make):
    reference = make()
    before = reference.fingerprint()
    for step in range(1, 8):
        reference.follow(path_of(step), step=step)
    assert reference.fingerprint() == before == make().fingerprint()
    assert synced(two_parameters(1, 1)).fingerprint() != before


class Counting(nn.Module):
    """A weight, a tied weight, a buffer of numbers and one of counts."""

    def __init__(self, weight: float, running: float, count: int):
        super().__init__()
        self.inner = nn.Linear(1, 1, bias=False)
        self.outer = nn.Linear(1, 1, bias=False)
        self.outer.weight = self.inner.weight
        nn.init.constant_(self.inner.weight, weight)
        self.register_buffer("running", torch.tensor(running))
        self.register_buffer("count", torch.tensor(count))


@pytest.mark.parametrize(
    "make", [lambda module: synced(module, alpha=0.5, steps=1), lambda module: bema(module, update_freq=1, ema_power=0)]
)
def test_tied_weights_move_once_and_buffers_are_taken(make):
    """Mixed twice, 0 and 8 would come to 6 with alpha 0.5; once it is 4. BEMA without average: 8 + 11^-0.2 * 8."""
    reference = make(Counting(0, 0.5, 3))
    reference.follow(Counting(8, 0.75, 7), step=1)
    expected = {SyncedReference: 4.0, BemaReference: 8 + 11**-0.2 * 8}[type(reference)]
    assert float(reference.model.outer.weight) == pytest.approx(expected, rel=1e-6)
    assert reference.model.outer.weight is reference.model.inner.weight
    assert (float(reference.model.running), int(reference.model.count)) == (0.75, 7)


def test_scores_are_those_of_the_moved_model():
    """After a hard update the reference is the policy, to the last bit."""
    policy, start = make_model(1), make_model(0)
    for model in (policy, start):
        install_forward(model)
    reference = synced(copy.deepcopy(start), alpha=1, steps=1)
    answers = {"chosen_input_ids": [13, 14], "chosen_loss_mask": [1, 1], "rejected_input_ids": [15]}
    row = {"row_id": 0, "prompt_input_ids": [11, 12], **answers, "rejected_loss_mask": [1]}
    batch = PreferenceCollator(0)([row])
    with torch.no_grad():
        assert torch.equal(reference.logps(batch), forward(start, batch).sequence_sum())
        reference.follow(policy, step=1)
        assert torch.equal(reference.logps(batch), forward(policy, batch).sequence_sum())


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup_alpha": 0}, "never move"),
        ({"mixup_alpha": 1.5}, "ref_model_mixup_alpha=1.5; allowed: 0 to 1"),
        ({"mixup_alpha": float("nan")}, "ref_model_mixup_alpha=nan"),
        ({"sync_steps": 0}, "ref_model_sync_steps=0; allowed: whole numbers from 1"),
        ({"sync_steps": 2.5}, "ref_model_sync_steps=2.5"),
    ],
)
def test_bad_sync_schedules(options, message):
    with pytest.raises(ValueError, match=message):
        SyncSchedule(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update_freq": 0}, "update_freq=0; allowed: whole numbers from 1"),
        ({"update_after": -1}, "update_after=-1; allowed: whole numbers from 0"),
        ({"ema_power": -0.5}, "ema_power=-0.5; allowed: 0 or more"),
        ({"bias_power": float("inf")}, "bias_power=inf"),
        ({"lag": "ten"}, "lag='ten'"),
        ({"min_ema_multiplier": 2}, "min_ema_multiplier=2; allowed: 0 to 1"),
        ({"lag": 0, "multiplier": 0.5}, "sum up to less than 1"),
        ({"ema_pwer": 0.5}, "'ema_pwer', did you mean 'ema_power'"),
        ({"ref_model_update_freq": 5}, "'ref_model_update_freq'.*Known: update_freq"),
    ],
)
def test_bad_bema_schedules(options, message):
    with pytest.raises(ValueError, match=message):
        BemaSchedule.of(options)


def test_defaults_are_those_of_trl():
    assert SyncSchedule() == SyncSchedule(mixup_alpha=0.6, sync_steps=512)
    assert BemaSchedule.of({}) == BemaSchedule(
        update_freq=400, ema_power=0.5, bias_power=0.2, lag=10, update_after=0, multiplier=1.0, min_ema_multiplier=0.0
    )


def test_another_architecture_is_refused_by_name():
    policy = make_model(0)
    check_can_follow(make_model(1), policy)
    with pytest.raises(
        ValueError, match=r"'model.layers.0.mlp.down_proj.weight' is \(32, 64\) in ref_model and \(32, 48\)"
    ):
        check_can_follow(make_model(1, intermediate_size=64), policy)
    with pytest.raises(ValueError, match=r"'lm_head.weight' is \(259, 32\) in ref_model and absent in the policy"):
        check_can_follow(make_model(1, tie_word_embeddings=False), policy)


def test_integer_weights_are_refused():
    quantised = nn.Module()
    quantised.packed = nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"'packed' is torch.uint8: quantised"):
        check_can_follow(quantised, copy.deepcopy(quantised))
