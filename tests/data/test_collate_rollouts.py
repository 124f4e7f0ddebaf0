"""Completions of a round -> one parcel."""

from __future__ import annotations

import torch

from burnish.data.collate import rollout_batch
from burnish.types import Completion


def completion(tokens: list[int], **changed) -> Completion:
    settings = {
        "prompt_ids": torch.tensor([5]),
        "token_ids": torch.tensor(tokens, dtype=torch.int64),
        "logps": torch.full((len(tokens),), -1.0),
        "kept_mass": torch.ones(len(tokens)),
        "loss_mask": torch.ones(len(tokens), dtype=torch.bool),
    }
    return Completion(**{**settings, **changed})


PROMPTS = [torch.tensor([5, 6, 7]), torch.tensor([8])]


def batch_of(completions, **settings):
    return rollout_batch(PROMPTS, completions, row_ids=[30, 10], pad_token_id=0, **settings)


def test_prompts_are_padded_on_the_left_and_answers_on_the_right():
    batch = batch_of([completion([9, 2]), completion([2]), completion([9, 9, 2]), completion([])], temperature=0.7)
    assert batch.prompt_ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch.prompt_mask.tolist() == [[True, True, True], [False, False, True]]
    assert batch.completion_ids.tolist() == [[9, 2, 0], [2, 0, 0], [9, 9, 2], [0, 0, 0]]
    assert batch.completion_mask.sum(1).tolist() == [2, 1, 3, 0]
    assert torch.equal(batch.loss_mask, batch.completion_mask)
    assert batch.prompt_index.tolist() == [0, 0, 1, 1]
    assert batch.row_id.tolist() == [30, 30, 10, 10]
    assert batch.columns["sample"].tolist() == [0, 1, 0, 1]
    assert batch.advantages.tolist() == [[0.0]] * 4
    assert (batch.temperature, batch.turn_index, batch.old_logps) == (0.7, None, None)


def test_an_answer_that_is_the_padding_token_is_there():
    batch = batch_of([completion([0, 2]), completion([0])] * 2)
    assert batch.completion_mask.tolist() == [[True, True], [True, False]] * 2


def test_empty_answers_alone_have_one_column():
    batch = batch_of([completion([])] * 2)
    assert batch.completion_ids.shape == (2, 1)
    assert not batch.completion_mask.any()


def test_the_samplers_log_probs_are_those_before_the_filters():
    """Drawn at log 1/2 of what kept 1/4 of the mass: log 1/8 under the softmax."""
    filtered = completion([9, 2], logps=torch.tensor([0.5, 1.0]).log(), kept_mass=torch.tensor([0.25, 0.5]))
    batch = batch_of([filtered, completion([2])])
    torch.testing.assert_close(
        batch.sampler_logps,
        torch.tensor([[1 / 8, 1 / 2], [0.0, 0.0]]).log().nan_to_num(neginf=0) + torch.tensor([[0.0, 0.0], [-1.0, 0.0]]),
    )


def test_cut_answers_are_masked_if_asked_for():
    completions = [completion([9, 2]), completion([9, 9], finish_reason="length")]
    plain, masked = batch_of(completions), batch_of(completions, mask_truncated=True)
    assert plain.loss_mask.tolist() == [[True, True], [True, True]]
    assert masked.loss_mask.tolist() == [[True, True], [False, False]]
    assert torch.equal(masked.completion_mask, plain.completion_mask)
    assert masked.columns["truncated"].tolist() == plain.columns["truncated"].tolist() == [0.0, 1.0]


def test_a_stop_string_ends_an_answer_by_itself():
    batch = batch_of([completion([9], finish_reason="stop_string"), completion([9])], mask_truncated=True)
    assert batch.loss_mask.all()


def test_tokens_of_tools_are_not_trained_and_turns_are_kept():
    """One answer has two turns around a tool's token, the other none: its only turn is 0."""
    talk = completion([9, 7, 2], turns=torch.tensor([0, 0, 1]), loss_mask=torch.tensor([True, False, True]))
    batch = batch_of([talk, completion([2])])
    assert batch.turn_index.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert batch.loss_mask.tolist() == [[True, False, True], [True, False, False]]
