"""The parcels of a round."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from burnish.types import PolicyTokens, RewardTable, RolloutBatch

NAN = math.nan


def table(rewards, *, tokens=None, extra=None, weights=(1.0, 0.2)) -> RewardTable:
    return RewardTable(
        rewards=torch.tensor(rewards),
        names=("first", "second"),
        weights=torch.tensor(weights),
        token_rewards=None if tokens is None else torch.tensor(tokens),
        extra=extra or {},
    )


def test_totals_are_weighted_sums_over_what_was_scored():
    """1 + 0.2 x 0.5; 0 alone; nothing; 0.2 x 3 alone."""
    found = table([[1.0, 0.5], [0.0, NAN], [NAN, NAN], [NAN, 3.0]])
    torch.testing.assert_close(found.total(), torch.tensor([1.1, 0.0, NAN, 0.6]), equal_nan=True)
    assert found.scored.tolist() == [[True, True], [True, False], [False, False], [False, True]]


def test_taking_rows_of_a_table():
    found = table([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], tokens=[[1.0], [2.0], [3.0]], extra={"seen": ["a", "b", "c"]})
    taken = found.take(torch.tensor([2, 0]))
    assert taken.rewards.tolist() == [[5.0, 6.0], [1.0, 2.0]]
    assert taken.token_rewards.tolist() == [[3.0], [1.0]]
    assert taken.extra == {"seen": ["c", "a"]}
    assert found.rewards.shape == (3, 2)


def test_joining_tables_of_different_widths():
    """Rewards of tokens are 0 where a table is shorter or has none; columns that one of them lacks are None."""
    first = table([[1.0, NAN]], tokens=[[1.0, 2.0, 3.0]], extra={"a": ["x"]})
    second = table([[2.0, 0.0], [3.0, 0.0]], tokens=[[4.0], [5.0]], extra={"b": [1, 2]})
    joined = first.joined(second)
    torch.testing.assert_close(joined.rewards, torch.tensor([[1.0, NAN], [2.0, 0.0], [3.0, 0.0]]), equal_nan=True)
    assert joined.token_rewards.tolist() == [[1.0, 2.0, 3.0], [4.0, 0.0, 0.0], [5.0, 0.0, 0.0]]
    assert joined.extra == {"a": ["x", None, None], "b": [None, 1, 2]}
    assert second.joined(replace(first, token_rewards=None)).token_rewards.tolist() == [[4.0], [5.0], [0.0]]
    assert table([[0.0, 0.0]]).joined(table([[0.0, 0.0]])).token_rewards is None


def batch() -> RolloutBatch:
    """Three prompts of 1, 3 and 2 tokens; answers of 2, 1, 4, 3 and 0 tokens, two of prompt 0 and 1 each."""
    prompt_mask = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1]]).bool()
    lengths = torch.tensor([2, 1, 4, 3, 0])
    mask = torch.arange(4) < lengths[:, None]
    numbers = torch.arange(20.0).view(5, 4)
    return RolloutBatch(
        prompt_ids=torch.arange(1, 10).view(3, 3) * prompt_mask,
        prompt_mask=prompt_mask,
        completion_ids=torch.arange(20).view(5, 4) * mask,
        completion_mask=mask,
        loss_mask=mask,
        prompt_index=torch.tensor([0, 0, 1, 1, 2]),
        row_id=torch.tensor([30, 30, 10, 10, 20]),
        columns={"truncated": torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])},
        extra=({"image": "a"}, {"image": "b"}, {"image": "c"}),
        advantages=torch.arange(5.0)[:, None],
        old_logps=-numbers,
        sampler_logps=-numbers - 1,
        bootstrap_value=torch.arange(5.0)[:, None] + 7,
        temperature=0.5,
    )


def test_taking_rows_keeps_their_prompts_alone_and_cuts_the_padding():
    taken = batch().take(torch.tensor([1, 0, 4]))
    assert taken.prompt_ids.tolist() == [[0, 3], [8, 9]]  # of prompts 0 and 2; two tokens are the longest
    assert taken.prompt_mask.tolist() == [[False, True], [True, True]]
    assert taken.prompt_index.tolist() == [0, 0, 1]
    assert taken.completion_ids.tolist() == [[4, 0], [0, 1], [0, 0]]
    assert taken.completion_mask.tolist() == [[True, False], [True, True], [False, False]]
    assert taken.row_id.tolist() == [30, 30, 20]
    assert taken.columns["truncated"].tolist() == [1.0, 0.0, 0.0]
    assert taken.extra == ({"image": "a"}, {"image": "c"})
    assert taken.advantages.tolist() == [[1.0], [0.0], [4.0]]
    assert taken.old_logps.tolist() == [[-4.0, -5.0], [0.0, -1.0], [-16.0, -17.0]]
    assert taken.bootstrap_value.tolist() == [[8.0], [7.0], [11.0]]
    assert (taken.temperature, taken.ref_logps) == (0.5, None)


def test_every_field_of_rows_is_taken():
    """A new field with one entry a row would be left whole by `take` unless it is listed."""
    whole = batch()
    full = replace(whole, **{name: whole.old_logps for name in RolloutBatch.row_fields if whole[name] is None})
    taken = full.take(torch.tensor([2]))
    for name in vars(taken):
        value = taken[name]
        if isinstance(value, torch.Tensor) and not name.startswith("prompt_"):
            assert len(value) == 1, name
    assert all(name in vars(taken) for name in RolloutBatch.row_fields)


def test_advantages_of_tokens_are_cut_like_tokens():
    whole = batch()
    taken = replace(whole, advantages=whole.old_logps).take(torch.tensor([1]))
    assert taken.advantages.tolist() == [[-4.0]]


def test_a_row_without_tokens_has_a_column():
    taken = batch().take(torch.tensor([4]))
    assert taken.completion_ids.shape == (1, 1)
    assert not taken.completion_mask.any()


def test_taking_all_rows_changes_nothing():
    whole = batch()
    taken = whole.take(torch.arange(5))
    for name in vars(whole):
        value = whole[name]
        assert (
            torch.equal(value, taken[name])
            if isinstance(value, torch.Tensor)
            else name == "columns" or value == taken[name]
        )
    assert torch.equal(whole.columns["truncated"], taken.columns["truncated"])


def test_a_row_without_a_trained_token_is_in_no_average():
    weights = batch().unit_weights("row")
    assert weights.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]
    counts = batch().counts()
    assert (float(counts["row"]), float(counts["token"])) == (4.0, 10.0)


def test_a_ratio_that_was_not_chosen_is_asked_for():
    ones = torch.ones(1, 2)
    tokens = PolicyTokens(logps=-ones, old_logps=-ones, advantages=ones[:, :1], mask=ones > 0)
    with pytest.raises(ValueError, match=r"call with_ratio\(tokens, level\) first"):
        _ = tokens.required_log_ratio
