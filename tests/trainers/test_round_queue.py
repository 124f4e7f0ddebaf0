"""The queue of a round: what is taken when, and the same again after a resume."""

from __future__ import annotations

import pytest
import torch

from burnish.runtime.tree import load_tree, save_tree
from burnish.trainers.round_queue import RoundQueue
from burnish.types import RolloutBatch


def parcel(number: int) -> RolloutBatch:
    """Two answers to one prompt; views of a larger tensor, as a round's parcels are."""
    whole = torch.arange(600).view(100, 6) + number
    mask = torch.tensor([[True, True, False], [True, True, True]])
    return RolloutBatch(
        prompt_ids=whole[:1, :2],
        prompt_mask=torch.ones(1, 2, dtype=torch.bool),
        completion_ids=whole[:2, :3],
        completion_mask=mask,
        loss_mask=mask,
        prompt_index=torch.tensor([0, 0]),
        row_id=torch.tensor([number, number]),
        columns={"truncated": torch.tensor([0.0, 1.0])},
        advantages=torch.tensor([[1.0], [-1.0]]),
        old_logps=-whole[:2, :3].double() / 7,
        temperature=0.7,
    )


def numbers(step: list[RolloutBatch]) -> list[int]:
    return [int(micro_batch.row_id[0]) for micro_batch in step]


def filled(*, iterations: int = 2) -> RoundQueue:
    """A round of three steps of two micro-batches."""
    queue = RoundQueue()
    queue.fill([[parcel(2 * step), parcel(2 * step + 1)] for step in range(3)], iterations=iterations)
    return queue


def test_a_new_queue_is_empty():
    queue = RoundQueue()
    assert queue.is_empty
    assert queue.round_index == 0


def test_steps_are_taken_in_order_as_often_as_there_are_passes():
    queue = filled()
    taken, first_passes = [], []
    while not queue.is_empty:
        first_passes.append(queue.is_first_pass)
        taken.append(numbers(queue.take()))
    assert taken == [[0, 1], [2, 3], [4, 5]] * 2
    assert first_passes == [True] * 3 + [False] * 3


def test_rounds_are_counted():
    queue = filled(iterations=1)
    assert queue.round_index == 1
    queue.fill([[parcel(0)]], iterations=1)
    assert queue.round_index == 2
    assert numbers(queue.take()) == [0]
    assert queue.is_empty


@pytest.mark.parametrize("position", range(7))
def test_it_continues_from_every_position(tmp_path, position):
    """Through the files of a checkpoint: what is left of the round is the same, bit for bit."""
    queue = filled()
    for _ in range(position):
        queue.take()
    save_tree(tmp_path, "queue", queue.state_dict())
    other = RoundQueue()
    other.load_state_dict(load_tree(tmp_path, "queue"))
    assert (other.round_index, other.is_empty) == (1, position == 6)
    while not queue.is_empty:
        assert other.is_first_pass == queue.is_first_pass
        for mine, theirs in zip(other.take(), queue.take(), strict=True):
            assert_equal(mine, theirs)
    assert other.is_empty


def assert_equal(mine: RolloutBatch, theirs: RolloutBatch) -> None:
    for name, value in vars(theirs).items():
        if isinstance(value, torch.Tensor):
            assert mine[name].dtype == value.dtype, name
            assert torch.equal(mine[name], value), name
        elif name != "columns":
            assert mine[name] == value, name
    assert mine.columns.keys() == theirs.columns.keys()
    assert all(torch.equal(mine.columns[name], theirs.columns[name]) for name in mine.columns)


def test_a_finished_round_is_not_saved():
    queue = filled(iterations=1)
    for _ in range(3):
        queue.take()
    assert queue.state_dict()["steps"] == []
    other = RoundQueue()
    other.load_state_dict(queue.state_dict())
    assert other.is_empty
    assert other.round_index == 1


def test_what_is_saved_is_a_copy_of_the_parcels_own_size():
    """The parcels are views of a round; neither is the round saved with each, nor can it change what was saved."""
    queue = filled()
    state = queue.state_dict()
    saved = state["steps"][0][0]["completion_ids"]
    taken = queue.take()[0].completion_ids
    before = saved.clone()
    taken.fill_(0)
    assert torch.equal(saved, before)
    assert saved.untyped_storage().nbytes() == saved.numel() * saved.element_size()
