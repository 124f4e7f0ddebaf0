"""The references that an adapted policy has in itself, and how adapters are switched."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from test_adapters import KINDS, shake
from test_head_layer import HEADS, TIED, make_batch, own_logps

from burnish.models.adapter_reference import (
    COPY,
    AdapterReference,
    adapter_reference,
    base_tensors,
    copy_adapter,
    is_untrained,
    using_adapter,
)
from burnish.models.adapters import adapt, plain_model
from burnish.models.forward import forward, install_forward
from burnish.models.introspect import head_of
from burnish.models.refcache import content_fingerprint, model_fingerprint
from burnish.models.reference import FrozenModel, sampled_fingerprint
from conftest import make_model

LORA = KINDS["LORA"]


def make_policy(config=LORA, *, trained: bool = True):
    policy = adapt(make_model(0, torch.float64), config)
    if trained:
        shake(policy)
    install_forward(plain_model(policy))
    return policy.train()


def flags(model) -> list[bool]:
    return [parameter.requires_grad for parameter in model.parameters()]


def test_a_new_adapter_is_switched_off():
    policy, batch, base = make_policy(), make_batch(), make_model(0, torch.float64)
    reference = adapter_reference(policy, adapter=None, is_new=True)
    assert reference.adapter is None
    assert reference.description == "the policy with its adapter switched off"
    torch.testing.assert_close(reference.token_logps(batch), own_logps(base, batch), rtol=1e-10, atol=1e-10)
    teacher = reference.teacher(batch)
    assert torch.equal(teacher.weight, head_of(base).weight)
    assert not teacher.hidden.requires_grad
    install_forward(base)
    expected = FrozenModel(base, description="").teacher(batch).hidden
    torch.testing.assert_close(teacher.hidden, expected, rtol=1e-12, atol=1e-12)


def test_an_adapter_that_the_policy_came_with_is_copied():
    """The reference stays what the policy was, while the policy is trained."""
    policy, batch = make_policy(), make_batch()
    start = forward(policy, batch).logps.detach()
    names = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    reference = adapter_reference(policy, adapter=None, is_new=False)
    assert reference.adapter == COPY
    assert reference.description == "a copy of adapter 'default', taken at construction"
    shake(policy)
    assert (forward(policy, batch).logps - start).abs().max() > 1e-3
    torch.testing.assert_close(reference.token_logps(batch), start, rtol=1e-12, atol=1e-12)
    assert [name for name, parameter in policy.named_parameters() if parameter.requires_grad] == names
    again = adapter_reference(policy, adapter=None, is_new=False)  # another trainer of the same model
    torch.testing.assert_close(again.token_logps(batch), forward(policy, batch).logps, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings(TIED)
@pytest.mark.parametrize("name", HEADS)
def test_copies_with_every_kind_of_head(name):
    policy, batch = make_policy(HEADS[name]), make_batch()
    start = forward(policy, batch).logps.detach()
    reference = adapter_reference(policy, adapter=None, is_new=False)
    shake(policy)
    torch.testing.assert_close(reference.token_logps(batch), start, rtol=1e-11, atol=1e-11)
    teacher = reference.teacher(batch)
    assert (teacher.weight - head_of(plain_model(policy)).weight).abs().max() > 0 or name == "embedding"


@pytest.mark.filterwarnings(TIED)
def test_an_adapter_that_peft_makes_no_second_one_of():
    """Its configuration no longer names what the adapter has."""
    policy = make_policy(HEADS["copy"])
    policy.peft_config["default"].modules_to_save = None
    with pytest.raises(ValueError, match=r"adapter 'default' cannot be kept as the reference.*lm_head.*give ref_model"):
        adapter_reference(policy, adapter=None, is_new=False)


def test_an_adapter_that_was_given_untrained_needs_no_copy():
    policy = make_policy(trained=False)
    assert is_untrained(policy)
    assert adapter_reference(policy, adapter=None, is_new=False).adapter is None
    assert not is_untrained(make_policy())
    assert not is_untrained(make_policy(LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]), trained=False))


def test_a_named_adapter():
    policy, batch = make_policy(), make_batch()
    copy_adapter(policy, to="start")
    shake(policy)
    with using_adapter(policy, "start"):
        start = own_logps(policy, batch)
    reference = adapter_reference(policy, adapter="start", is_new=False)
    assert reference.description == "adapter 'start' of the policy"
    torch.testing.assert_close(reference.token_logps(batch), start, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match=r"ref_adapter_name='default' is the adapter that is trained.*'start'"):
        adapter_reference(policy, adapter="default", is_new=False)
    with pytest.raises(
        ValueError, match=r"ref_adapter_name='stat' is no adapter of the model; its other adapters: 'start'"
    ):
        adapter_reference(policy, adapter="stat", is_new=False)


@pytest.mark.parametrize("adapter", [None, "start"])
def test_switching_changes_nothing_for_good(adapter):
    """Mode, adapter, what is trained, and the gradient of a forward that began before."""
    policy, batch = make_policy(), make_batch()
    copy_adapter(policy, to="start")
    before = flags(policy)
    forward(policy, batch).logps.sum().backward()
    expected = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    policy.zero_grad()
    logps = forward(policy, batch).logps
    with torch.no_grad(), using_adapter(policy, adapter):
        assert not policy.training
        forward(policy, batch)
    logps.sum().backward()
    found = [p.grad for p in policy.parameters() if p.grad is not None]
    assert len(found) == len(expected) > 0
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert policy.training
    assert policy.active_adapters == ["default"]
    assert flags(policy) == before
    with pytest.raises(ZeroDivisionError), using_adapter(policy, adapter):
        raise ZeroDivisionError
    assert (policy.active_adapters, policy.training, flags(policy)) == (["default"], True, before)


@pytest.mark.filterwarnings(TIED)
@pytest.mark.parametrize("name", [*KINDS, *HEADS])
@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_the_base_is_found_below_every_adapter(name):
    """Under its own names and values, so that its fingerprints are those of the model without an adapter."""
    model = make_policy({**KINDS, **HEADS}[name])
    plain = make_model(0, torch.float64)
    found = dict(base_tensors(model))
    expected = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_fingerprints_are_of_the_reference_alone():
    policy, plain = make_policy(), make_model(0, torch.float64)
    off = AdapterReference(policy, adapter=None, description="")
    assert content_fingerprint(off) == model_fingerprint(plain)
    first = off.fingerprint()
    shake(policy)
    assert AdapterReference(policy, adapter=None, description="").fingerprint() == first
    copy_adapter(policy, to="start")
    start = AdapterReference(policy, adapter="start", description="")
    prints = {content_fingerprint(start), content_fingerprint(off), model_fingerprint(policy)}
    policy.peft_config["start"].lora_alpha += 1  # scales what the weights mean
    prints.add(content_fingerprint(start))
    assert len(prints) == 4
    assert start.fingerprint() != off.fingerprint() != sampled_fingerprint(policy)


def test_a_base_that_is_trained_as_well_is_no_reference():
    policy = adapt(
        make_model(model_type="llama", attention_bias=True), LoraConfig(bias="all", target_modules=["q_proj"])
    )
    with pytest.raises(ValueError, match=r"weights of the base model are trained beside.*q_proj.bias.*bias=\"none\""):
        adapter_reference(policy, adapter=None, is_new=True)
