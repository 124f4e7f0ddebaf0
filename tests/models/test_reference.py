from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from burnish.data.collate import PreferenceCollator
from burnish.models.forward import forward, install_forward
from burnish.models.reference import FromColumns, NoReference, frozen_copy, given_model
from conftest import make_model


def make_batch(**numbers):
    row = {
        "row_id": 4,
        "prompt_input_ids": [11, 12],
        "chosen_input_ids": [13, 14],
        "chosen_loss_mask": [True, True],
        "rejected_input_ids": [15],
        "rejected_loss_mask": [True],
    }
    return PreferenceCollator(0)([{**row, **numbers}])


@pytest.fixture
def policy():
    model = make_model()
    install_forward(model)
    return model


def test_frozen_copy_is_the_policy_as_it_was(policy):
    batch = make_batch()
    reference = frozen_copy(policy.train())
    at_first = forward(policy, batch).sequence_sum().detach()
    assert torch.equal(reference.logps(batch), at_first)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    assert torch.equal(reference.logps(batch), at_first)
    assert not torch.allclose(forward(policy, batch).sequence_sum(), at_first)


def test_frozen_copy_is_frozen_and_the_policy_is_not(policy):
    reference = frozen_copy(policy.train())
    assert not reference.model.training
    assert not any(parameter.requires_grad for parameter in reference.model.parameters())
    assert policy.training
    assert all(parameter.requires_grad for parameter in policy.parameters())
    assert not reference.logps(make_batch()).requires_grad
    assert "copy of the policy" in reference.description


def test_frozen_copy_shares_no_memory(policy):
    reference = frozen_copy(policy)
    mine = {parameter.data_ptr() for parameter in policy.parameters()}
    assert mine.isdisjoint(parameter.data_ptr() for parameter in reference.model.parameters())


def test_given_model(policy):
    other = make_model(seed=1)
    reference = given_model(other)
    batch = make_batch()
    assert reference.model is other
    assert not any(parameter.requires_grad for parameter in other.parameters())
    assert reference.description == "the given ref_model, LlamaForCausalLM"
    assert not torch.allclose(reference.logps(batch), forward(policy, batch).sequence_sum())


def test_score_is_per_token_and_the_call_is_its_sum(policy):
    reference, batch = frozen_copy(policy), make_batch()
    stats = reference.score(batch)
    assert stats.logps.shape == (2, 2)
    assert torch.equal(reference.logps(batch), stats.logps.sum(1))


def test_from_columns():
    batch = make_batch(ref_chosen_logps=-1.5, ref_rejected_logps=-2.5)
    assert FromColumns().logps(batch).tolist() == [-1.5, -2.5]


def test_from_columns_names_the_rows_that_have_none():
    with pytest.raises(ValueError, match=r"rows \[4\] have no ref_chosen_logps and ref_rejected_logps"):
        FromColumns().logps(replace(make_batch(), ref_logps=None))


def test_columns_per_token_know_their_sums():
    tokens = torch.tensor([[-1.0, -0.5], [-2.0, 0.0]])
    reference, batch = FromColumns(knows_tokens=True), replace(make_batch(), ref_token_logps=tokens)
    assert reference.logps(batch).tolist() == [-1.5, -2.0]
    assert torch.equal(reference.token_logps(batch), tokens)


def test_what_columns_do_not_know_is_refused():
    batch = make_batch(ref_chosen_logps=-1.5, ref_rejected_logps=-2.5)
    with pytest.raises(ValueError, match=r"rows \[4\] have the reference's log-probs as sums.*ref_chosen_token_logps"):
        FromColumns().token_logps(batch)
    with pytest.raises(ValueError, match="needs its model, and this one is: columns ref_chosen_logps"):
        FromColumns().teacher(batch)
    with pytest.raises(ValueError, match="needs one: reference_free=True"):
        NoReference("reference_free=True").teacher(batch)


def test_no_reference_is_0_everywhere():
    reference, batch = NoReference("reference_free=True"), make_batch()
    assert reference.logps(batch).tolist() == [0.0, 0.0]
    assert reference.token_logps(batch).shape == batch.completion_ids.shape
    assert not reference.token_logps(batch).any()


def test_which_references_can_answer(policy):
    for reference in (frozen_copy(policy), given_model(policy)):
        with reference.answering() as model:
            assert model is reference.model
    for reference in (FromColumns(), NoReference("why")):
        with reference.answering() as model:
            assert model is None
