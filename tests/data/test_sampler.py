import pytest
import torch
from accelerate import skip_first_batches
from datasets import Dataset

from burnish.data.collate import PreferenceCollator
from burnish.data.sampler import FILLER, BatchLoader, RankBatchSampler, RowDataset


def samplers(num_rows, world, **settings):
    return [RankBatchSampler(num_rows, num_replicas=world, rank=rank, **settings) for rank in range(world)]


def prepared(num_rows=7):
    return Dataset.from_list(
        [
            {
                "row_id": i,
                "prompt_input_ids": [1, i],
                "chosen_input_ids": [i] * (i % 3 + 1),
                "chosen_loss_mask": [True] * (i % 3 + 1),
                "rejected_input_ids": [9],
                "rejected_loss_mask": [True],
            }
            for i in range(num_rows)
        ]
    )


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("num_rows", [1, 5, 12, 17])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_row_once_and_the_same_length_on_every_rank(world, num_rows, batch_size, drop_last):
    if drop_last and num_rows < world * batch_size:
        with pytest.raises(ValueError, match="drop_last"):
            RankBatchSampler(num_rows, batch_size=batch_size, num_replicas=world, drop_last=True)
        return
    ranks = samplers(num_rows, world, batch_size=batch_size, drop_last=drop_last)
    batches = [list(sampler) for sampler in ranks]
    assert {len(b) for b in batches} == {len(ranks[0])}
    rows = [row for rank in batches for batch in rank for row in batch if row != FILLER]
    assert len(rows) == len(set(rows)) == num_rows - ranks[0].num_dropped
    assert all(batch == [FILLER] or FILLER not in batch for rank in batches for batch in rank)
    assert all(len(batch) == batch_size for rank in batches for batch in rank[:-1])


def test_short_last_round_worked_out_by_hand():
    first, second = samplers(5, 2, batch_size=2, shuffle=False)
    assert list(first) == [[0, 1], [4]]
    assert list(second) == [[2, 3], [FILLER]]


def test_the_rows_of_a_step_depend_only_on_the_product():
    """24 rows of which a step takes 8: batch size * ranks * accumulation."""
    steps = []
    for batch_size, world, accumulation in [(8, 1, 1), (1, 1, 8), (2, 2, 2), (1, 4, 2), (2, 4, 1), (4, 1, 2)]:
        batches = [list(sampler) for sampler in samplers(24, world, batch_size=batch_size, seed=3)]
        steps.append(
            [
                {row for rank in batches for batch in rank[s * accumulation : (s + 1) * accumulation] for row in batch}
                for s in range(3)
            ]
        )
    assert all(step == steps[0] for step in steps)
    assert set.union(*steps[0]) == set(range(24))


def test_order_depends_on_seed_and_epoch():
    sampler = RankBatchSampler(20, batch_size=4)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(RankBatchSampler(20, batch_size=4, seed=1)) not in (first, list(sampler))


@pytest.mark.parametrize(
    "settings", [{"num_rows": 0}, {"batch_size": 0}, {"rank": 2, "num_replicas": 2}, {"num_replicas": 0}]
)
def test_sampler_refuses_values(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RankBatchSampler(**{"num_rows": 4, "batch_size": 2, **settings})


def test_row_dataset_and_filler():
    rows = RowDataset(prepared())
    assert len(rows) == 7
    assert rows[2]["row_id"] == 2
    assert [row["row_id"] for row in rows.__getitems__([3, 1])] == [3, 1]
    assert "is_filler" not in rows[2]
    assert rows[FILLER]["is_filler"] is True
    assert rows[FILLER]["row_id"] == 0


def test_loader_yields_parcels_and_a_filler():
    loaders = [BatchLoader(prepared(5), s, PreferenceCollator(0)) for s in samplers(5, 2, batch_size=2, shuffle=False)]
    batches = [list(loader) for loader in loaders]
    assert [len(loader) for loader in loaders] == [2, 2]
    assert [batch.row_id.tolist() for batch in batches[0]] == [[0, 0, 1, 1], [4, 4]]
    assert [batch.is_filler for batch in batches[1]] == [False, True]


def test_loader_follows_set_epoch_and_leaves_the_global_generator_alone():
    sampler = RankBatchSampler(7, batch_size=2)
    loader = BatchLoader(prepared(), sampler, PreferenceCollator(0))
    before = torch.get_rng_state()
    first = [batch.row_id.tolist() for batch in loader]
    loader.set_epoch(1)
    assert [batch.row_id.tolist() for batch in loader] != first
    assert torch.equal(torch.get_rng_state(), before)


def test_loader_after_skipping_batches():
    sampler = RankBatchSampler(7, batch_size=2)
    loader = BatchLoader(prepared(), sampler, PreferenceCollator(0))
    loader.set_epoch(2)
    whole = [batch.row_id.tolist() for batch in loader]
    skipped = skip_first_batches(loader, 1)
    assert len(skipped) == 3
    assert [batch.row_id.tolist() for batch in skipped] == whole[1:]


def test_loader_refuses_a_sampler_of_another_length():
    with pytest.raises(ValueError, match="deals 5 rows"):
        BatchLoader(prepared(7), RankBatchSampler(5, batch_size=1), PreferenceCollator(0))
