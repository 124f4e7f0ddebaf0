from __future__ import annotations

import gc

import torch

from burnish.generation.cache import Room
from burnish.generation.decode import left_padded, next_logits, prefill
from burnish.generation.shared import Groups, PromptPool, SharedRows

CPU = torch.device("cpu")


def groups_of(prompt_of: list[int], lengths: list[int]) -> Groups:
    return Groups.of(prompt_of, lengths, CPU, torch.float32)


def test_rows_in_the_order_of_their_prompts_stay_as_they_are():
    groups = groups_of([0, 0, 1, 1, 2, 2], [5, 5, 5])
    assert (groups.shape, groups.rows, groups.places) == ((3, 2), None, None)
    assert (groups.num_tokens, groups.hidden) == (5, None)


def test_groups_of_different_sizes():
    """Prompt 0 has rows 1 and 3, prompt 1 has row 0, prompt 2 has rows 2, 4 and 5; empty places repeat a row."""
    groups = groups_of([1, 0, 2, 0, 2, 2], [2, 4, 3])
    assert groups.shape == (3, 3)
    assert groups.rows.tolist() == [1, 3, 1, 0, 0, 0, 2, 4, 5]
    assert groups.places.tolist() == [3, 0, 6, 1, 7, 8]
    assert groups.rows[groups.places].tolist() == list(range(6))
    assert groups.hidden.isinf().squeeze().tolist() == [[False, False, True, True], [False] * 4, [False] * 3 + [True]]


def run(model, prompts: list[list[int]]):
    return prefill(model, *left_padded([torch.tensor(prompt) for prompt in prompts], 0))


@torch.no_grad()
def test_a_prompt_is_in_the_pool_once(model):
    pool, first, second = PromptPool(4), run(model, [[5, 6, 7], [8, 9]]), run(model, [[5, 6, 7, 8]])
    assert [pool.place_of(first, 1), pool.place_of(first, 0), pool.place_of(first, 1)] == [0, 1, 0]
    assert pool.place_of(second, 0) == 2
    assert pool.lengths == [2, 3, 4]
    keys, values = pool.layers[1]
    assert keys.shape == values.shape == (4, 2, 4, 8)
    torch.testing.assert_close(keys[0, :, :2], first.cache.layers[1].keys[1, :, 1:])
    torch.testing.assert_close(values[2], second.cache.layers[1].values[0])
    last = keys[2].clone()
    assert pool.keep([0, 2]) == {0: 0, 2: 1}
    assert pool.lengths == [2, 4]
    assert torch.equal(keys[1], last)
    assert [pool.place_of(second, 0), pool.place_of(first, 0)] == [1, 2]
    del first
    gc.collect()
    assert pool.place_of(run(model, [[1, 2], [3, 4]]), 1) == 3  # whatever the memory of a prompt is used for next


@torch.no_grad()
def test_prompts_are_read_from_the_pool(model):
    """Rows hold no prompt: another one in the pool changes every row of it, and no other."""
    prompts = run(model, [[5, 6, 7], [8, 9, 10]])
    room = Room(num_rows=4, longest_prompt=3, rows_per_prompt=2, max_new_tokens=5, refills=False)
    cache, other = SharedRows(model.config, room), SharedRows(model.config, room)
    cache.admit(prompts, [0, 0, 1, 1])
    assert cache.layers[0].keys.shape == (4, 2, 5, 8)
    before = next_logits(model, torch.tensor([20, 20, 20, 20]), cache)
    torch.testing.assert_close(before[0], before[1])
    for keys, _ in cache.pool.layers:
        keys[0] += 1
    after = next_logits(model, torch.tensor([20, 20, 20, 20]), cache)
    other.admit(prompts, [1, 1])
    for _ in range(2):
        expected = next_logits(model, torch.tensor([20, 20]), other)
    torch.testing.assert_close(after[2:], expected)
    assert not torch.allclose(after[0], after[2], atol=1e-2)


@torch.no_grad()
def test_the_models_own_attention_is_back_afterwards(model):
    own = model.config._attn_implementation
    cache = SharedRows(
        model.config, Room(num_rows=1, longest_prompt=2, rows_per_prompt=1, max_new_tokens=2, refills=False)
    )
    cache.admit(run(model, [[5, 6]]), [0])
    next_logits(model, torch.tensor([7]), cache)
    assert model.config._attn_implementation == own
