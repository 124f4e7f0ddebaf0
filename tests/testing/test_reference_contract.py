"""The contract of references: the library's keep every law, and one that breaks one is caught by its name."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from burnish.models.adapter_reference import adapter_reference
from burnish.models.forward import forward
from burnish.models.moving import BemaReference, BemaSchedule, SyncedReference, SyncSchedule
from burnish.models.reference import FromColumns, FrozenModel, NoReference, frozen_copy
from burnish.testing import ContractError, assert_reference_contract
from burnish.testing.reference_laws import LAWS
from burnish.testing.tiny import dropping_model


def adapted(seed, dtype):
    """With an adapter that is not 0."""
    torch.manual_seed(seed)
    return get_peft_model(dropping_model(seed, dtype), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))


def synced(policy):
    schedule = SyncSchedule(mixup_alpha=0.5, sync_steps=2)
    return SyncedReference(copy.deepcopy(policy), schedule, description="a copy")


def bema(policy):
    schedule = BemaSchedule(update_after=1, update_freq=2)
    return BemaReference(copy.deepcopy(policy), schedule, description="a copy")


@pytest.mark.gallery  # in the fast suite frozen_copy keeps them, as the example of assert_reference_contract
@pytest.mark.parametrize(
    "make_reference",
    [frozen_copy, bema, synced, lambda policy: NoReference("none"), lambda policy: FromColumns()],
    ids=["frozen_copy", "bema", "synced", "none", "columns"],
)
def test_references_keep_the_laws(make_reference):
    assert_reference_contract(make_reference)


@pytest.mark.parametrize("is_new", [pytest.param(True, marks=pytest.mark.gallery), False])
def test_references_inside_an_adapted_policy_keep_the_laws(is_new):
    """The policy with its adapter off, or a copy of the adapter."""
    assert_reference_contract(lambda policy: adapter_reference(policy, adapter=None, is_new=is_new), make_model=adapted)


class Copied(FrozenModel):
    """A frozen copy, of which a test breaks one thing."""

    def __init__(self, policy):
        super().__init__(copy.deepcopy(policy), description="a copy")
        self.policy = policy


class Trained(Copied):
    def score(self, batch, *, needs=(), temperature=1.0):
        self.model.requires_grad_(True)
        return forward(self.model, batch, needs=needs, temperature=temperature)


class Short(Copied):
    def token_logps(self, batch):
        return super().token_logps(batch)[:, :-1]


class MeanOfTokens(Copied):
    def logps(self, batch):
        return super().logps(batch) / batch.loss_mask.sum(1)


class Clipping(Copied):
    def token_logps(self, batch):
        batch.prompt_ids.clamp_(max=3)
        return super().token_logps(batch)


class ReadsPadding(Copied):
    def logps(self, batch):
        return super().logps(batch) - 1e-3 * batch.completion_ids.sum(1)

    knows_tokens = False


class ReadsPlace(Copied):
    def logps(self, batch):
        return super().logps(batch) - torch.arange(len(batch))

    knows_tokens = False


class ReadsOthers(Copied):
    def logps(self, batch):
        return super().logps(batch) - 1e-3 * len(batch)

    knows_tokens = False


class Penalised(Copied):
    """Half a nat is taken off each token."""

    def score(self, batch, *, needs=(), temperature=1.0):
        stats = super().score(batch, needs=needs, temperature=temperature)
        return type(stats)(logps=stats.logps - 0.5 * batch.loss_mask, mask=stats.mask)


class Untempered(Copied):
    def score(self, batch, *, needs=(), temperature=1.0):
        return super().score(batch, needs=needs)


class Softened(Copied):
    """At twice the temperature, and its teacher is not."""

    def score(self, batch, *, needs=(), temperature=1.0):
        return super().score(batch, needs=needs, temperature=2 * temperature)


class Evaluating(Copied):
    def score(self, batch, *, needs=(), temperature=1.0):
        self.policy.eval()
        return super().score(batch, needs=needs, temperature=temperature)


class Sharing(Copied):
    """Its head is the policy's."""

    def __init__(self, policy):
        super().__init__(policy)
        self.model.lm_head.weight.data = policy.lm_head.weight.detach()


class Itself(FrozenModel):
    def __init__(self, policy):
        super().__init__(policy, description="the policy")


class Nameless(Copied):
    def fingerprint(self):
        return "frozen"


class Random(Copied):
    def fingerprint(self):
        return str(id(self))


class Pulling(Copied):
    @torch.no_grad()
    def follow(self, policy, *, step):
        for weight, own in zip(policy.parameters(), self.model.parameters(), strict=True):
            weight.lerp_(own, 0.1)


class Forgetful(Copied):
    """It moves, and is in no checkpoint."""

    @torch.no_grad()
    def follow(self, policy, *, step):
        for own, weight in zip(self.model.parameters(), policy.parameters(), strict=True):
            own.lerp_(weight, 0.5)


class HalfForgetful(Copied):
    """The average that it moves by is not in its checkpoint."""

    def __init__(self, policy):
        super().__init__(policy)
        self.average = policy.lm_head.weight.detach().clone()
        self.began_with = super().fingerprint()

    @torch.no_grad()
    def follow(self, policy, *, step):
        self.average.lerp_(policy.lm_head.weight, 0.5)
        self.model.lm_head.weight.copy_(self.average)

    def fingerprint(self):
        return self.began_with

    def state_dict(self):
        return {"weights": dict(self.model.named_parameters())}

    def load_state_dict(self, state):
        for name, weight in self.model.named_parameters():
            weight.copy_(state["weights"][name])


BROKEN = [
    (Trained, "a log-prob a token", "has a gradient: the reference is not trained"),
    (Short, "a log-prob a token", r"token_logps has shape \(2, 3\); allowed: \(2, 4\)"),
    (MeanOfTokens, "a log-prob a token", "and token_logps sum up to"),
    (Clipping, "the same again", "it changed prompt_ids of the parcel in place"),
    (ReadsPadding, "padding", "with other ids in the padding"),
    (ReadsPlace, "order of rows", "with the rows in reverse order"),
    (ReadsOthers, "split into micro-batches", "row 0: .* alone"),
    (Penalised, "a distribution over the vocabulary", r"sum up to 0\.6065"),
    (Untempered, "temperature", "at temperature 2"),
    (Softened, "teacher", "of its teacher's head"),
    (Evaluating, "the policy is left alone", r"asking it changes its mode \(train or eval\) of the policy"),
    (Itself, "the policy is left alone", "making it changes which of them are trained and its mode"),
    (Sharing, "independent of the policy", "Does it share weights"),
    (Nameless, "fingerprint", "have the same fingerprint 'frozen'"),
    (Random, "fingerprint", "two fingerprints: no run could be resumed"),
    (Pulling, "following changes the reference alone", "following the policy changes its weights of it"),
    (Forgetful, "exact resume", "has no state_dict and load_state_dict"),
    (HalfForgetful, "exact resume", r"after 4 steps at once .* belongs in state_dict\(\)"),
]


@pytest.mark.gallery
@pytest.mark.parametrize(("broken", "law", "words"), BROKEN, ids=lambda v: v.__name__ if isinstance(v, type) else "")
def test_a_reference_that_breaks_a_law_is_caught(broken, law, words):
    others = [other.name for other in LAWS if other.name != law]
    message = rf"(?s)the reference {broken.__name__} breaks the law '{law}'.*{words}.*prompt_ids \("
    with pytest.raises(ContractError, match=message):
        assert_reference_contract(broken, without=others)


def test_every_law_is_broken_by_some_reference():
    assert {law for _, law, _ in BROKEN} == {law.name for law in LAWS}


def test_the_first_law_is_told_of_the_smallest_case():
    with pytest.raises(ContractError, match=r"(?s)breaks the law 'padding'.*completion_ids \(2, 4\)") as caught:
        assert_reference_contract(ReadsPadding)
    assert len(str(caught.value).splitlines()) <= 16
