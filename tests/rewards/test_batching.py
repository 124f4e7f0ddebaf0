"""Groups and batches of a classifier's rows: every row once, under the budget, with the beginning that they share."""

from __future__ import annotations

import random

import pytest
import torch

from burnish.rewards.batching import NUM_TOKENS, Group, batches, groups_of, token_batch


def make_rows(seed: int = 0, num_prompts: int = 7) -> tuple[list[list[int]], list[str | None]]:
    """Rows of 1 to 40 tokens, one to four of a prompt, shuffled; every fifth stands alone."""
    draw = random.Random(seed)
    rows, prompts = [], []
    for prompt in range(num_prompts):
        beginning = [draw.randrange(1, 9) for _ in range(draw.randrange(1, 30))]
        for _ in range(draw.randrange(1, 5)):
            rows.append(beginning + [draw.randrange(1, 9) for _ in range(draw.randrange(10))])
            prompts.append(str(prompt))
    order = draw.sample(range(len(rows)), len(rows))
    return [rows[i] for i in order], [None if i % 5 == 0 else prompts[i] for i in order]


@pytest.mark.parametrize(
    ("rows", "groups"),
    [
        ([[5, 6, 7], [5, 6, 8, 9]], [Group((0, 1), 2, (1, 2))]),
        ([[5, 6], [5, 6]], [Group((0, 1), 1, (1, 1))]),  # equal rows: each keeps a token of its own
        ([[5, 6, 7], [5, 6]], [Group((0, 1), 1, (2, 1))]),  # one is the beginning of the other
        ([[5], [5, 6]], [Group((0, 1), 1, (0, 1))]),  # a row of one token has none of its own
        ([[5, 6], [7, 8]], [Group((0,), 1, (1,)), Group((1,), 1, (1,))]),  # nothing in common
    ],
)
def test_what_two_rows_of_a_prompt_share(rows, groups):
    assert groups_of(rows, ["a", "a"]) == groups


def test_rows_of_other_prompts_and_rows_that_stand_alone_share_nothing():
    rows = [[5, 6, 7], [5, 6, 8], [5, 6, 9], [5, 6, 7]]
    assert [group.rows for group in groups_of(rows, ["a", "b", "a", None])] == [(0, 2), (1,), (3,)]


@pytest.mark.parametrize("layout", NUM_TOKENS)
@pytest.mark.parametrize("max_tokens", [1, 20, 60, 10_000])
def test_batches_hold_every_row_once_under_the_budget(layout, max_tokens):
    rows, prompts = make_rows()
    found = batches(groups_of(rows, prompts), max_tokens, layout=layout)
    assert sorted(row for batch in found for group in batch for row in group.rows) == list(range(len(rows)))
    for batch in found:
        size = sum(len(group.rows) for group in batch)
        assert NUM_TOKENS[layout](batch) <= max_tokens or size == 1
    assert len(found) == (1 if max_tokens == 10_000 else len(found))


def test_a_group_is_cut_only_where_it_does_not_fit():
    """Four answers of 3 tokens to 10: 22 together, and 16 for two of them."""
    group = Group((0, 1, 2, 3), 10, (3, 3, 3, 3))
    other = Group((4,), 5, (1,))
    assert batches([group, other], 28, layout="tree") == [[other, group]]
    assert [batch[0].rows for batch in batches([group], 21, layout="tree")] == [(0, 1, 2), (3,)]
    assert [batch[0].rows for batch in batches([group], 16, layout="tree")] == [(0, 1), (2, 3)]


def test_tokens_of_each_layout():
    """Prompts of 10 and 4 with answers of 3 and 1, and of 2: without padding 20; 2 x 10 + 3 x 3; 3 x 13."""
    batch = [Group((0, 1), 10, (3, 1)), Group((2,), 4, (2,))]
    assert {name: count(batch) for name, count in NUM_TOKENS.items()} == {"tree": 20, "cache": 29, "rows": 39}


def test_a_parcel_holds_the_rows():
    rows, prompts = make_rows(1)
    groups = groups_of(rows, prompts)
    batch = token_batch(rows, groups, pad_token_id=0)
    for place, row in enumerate(batch.row_id.tolist()):
        prompt = batch.prompt_index[place]
        own = batch.completion_ids[place][batch.completion_mask[place]]
        whole = torch.cat([batch.prompt_ids[prompt][batch.prompt_mask[prompt]], own])
        assert whole.tolist() == rows[row]
    assert batch.completion_mask.any(1).tolist() == [len(rows[row]) > 1 for row in batch.row_id.tolist()]
