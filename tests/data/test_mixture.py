"""Several sources as one: what an epoch takes of each, in which order, and what rows that differ become."""

from collections import Counter

import pytest
from datasets import Dataset

from burnish.data.collate import PreferenceCollator
from burnish.data.errors import DataError
from burnish.data.mixture import Mixture, mix
from burnish.data.sampler import FILLER, RankBatchSampler
from burnish.data.tokenize import prepare_preferences
from burnish.data.truncate import TruncationPolicy
from conftest import make_tokenizer


def mixture(sizes, weights=None):
    names = tuple("abcdefgh"[: len(sizes)])
    return Mixture(names=names, sizes=sizes, weights=weights, left_out={}, first_ids=(0,) * len(sizes))


def prepared(num_rows, **columns):
    rows = [{"prompt": f"{i}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(num_rows)]
    dataset = Dataset.from_list([{**row, **{c: v[i] for c, v in columns.items()}} for i, row in enumerate(rows)])
    return prepare_preferences(dataset, make_tokenizer(), truncation=TruncationPolicy())[0]


def test_without_weights_an_epoch_is_the_permutation_of_one_source():
    sampler = RankBatchSampler(8, batch_size=1, seed=4)
    sampler.set_epoch(2)
    assert mixture((5, 3)).order(4, 2) == sampler.order()


@pytest.mark.parametrize(("sizes", "weights"), [((6, 2), (1, 1)), ((5, 7, 3), (0.5, 0.2, 0.3)), ((40, 4), (1, 9))])
def test_shares_of_an_epoch_are_exact_and_no_row_is_ahead_of_another(sizes, weights):
    """Over any number of epochs two rows of a source are taken equally often, give or take one."""
    mixed, taken = mixture(sizes, weights), Counter()
    assert sum(mixed.quotas) == sum(sizes)
    bounds = [0]
    for size in sizes:
        bounds.append(bounds[-1] + size)
    for epoch in range(12):
        order = mixed.order(3, epoch)
        for source, quota in enumerate(mixed.quotas):
            assert sum(bounds[source] <= row < bounds[source + 1] for row in order) == quota
            taken.update(row for row in order if bounds[source] <= row < bounds[source + 1])
            counts = [taken[row] for row in range(bounds[source], bounds[source + 1])]
            assert max(counts) - min(counts) <= 1


def test_order_is_a_function_of_seed_and_epoch():
    mixed = mixture((20, 10), (1, 1))
    assert mixed.order(1, 3) == mixture((20, 10), (1, 1)).order(1, 3)
    assert len({tuple(mixed.order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_sources_are_spread_over_an_epoch():
    order = mixture((500, 500), (3, 1)).order(0, 0)
    for start in range(0, 1000, 200):
        assert 0.6 < sum(row < 500 for row in order[start : start + 200]) / 200 < 0.9


def test_ranks_share_the_order_of_a_mixture():
    mixed = mixture((6, 5), (1, 3))
    ranks = [
        RankBatchSampler(11, batch_size=2, num_replicas=2, rank=rank, seed=7, order=mixed.order) for rank in (0, 1)
    ]
    rounds = zip(*(list(sampler) for sampler in ranks), strict=True)
    dealt = [row for batches in rounds for batch in batches for row in batch if row != FILLER]
    assert dealt == mixed.order(7, 0)


def test_lines_tell_repetitions_and_what_is_left_out():
    """10 rows, half of them of each: 5 of 8, and 2 rows two and a half times."""
    text = "\n".join(mixture((8, 2), (1, 1)).lines())
    assert "an epoch takes 10 rows of 2 sources" in text
    assert "a: 5 of 8 rows, 50.0% of it; the other 3 are left to the next epochs" in text
    assert "b: 2 rows 2.5 times, 50.0% of it: 3 repetitions" in text
    assert "a: 8 rows once, 80.0% of it" in "\n".join(mixture((8, 2)).lines())


def test_rows_get_their_source_and_ids_of_their_own():
    mixed, facts = mix({"a": prepared(3), "b": prepared(2, row_id=[7, 9])})
    assert mixed["source"][:] == [0, 0, 0, 1, 1]
    assert mixed["row_id"][:] == [0, 1, 2, 10, 12]
    assert facts.first_ids == (0, 3)
    assert "numbered from 3" in facts.lines()[2]


def test_columns_that_only_some_sources_have():
    """A weight is 1 and a tie false where a source does not say so; scores are read of all sources or of none."""
    first = prepared(2, weight=[2.0, 0.5], tie=[True, False], score_chosen=[3.0, 2.0], score_rejected=[1.0, 1.0])
    mixed, facts = mix({"a": first, "b": prepared(1, source=[5])})
    assert mixed["weight"][:] == [2.0, 0.5, 1.0]
    assert mixed["tie"][:] == [True, False, False]
    assert mixed["source"][:] == [0, 0, 1]
    assert "score_chosen" not in mixed.column_names
    assert facts.left_out == {"a": ["score_chosen", "score_rejected"], "b": ["source"]}
    assert "not read of a, since not every source has it: score_chosen, score_rejected" in "\n".join(facts.lines())
    batch = PreferenceCollator(0)([mixed[i] for i in range(3)])
    assert batch.weight.tolist() == [1.0, 1.0, 0.5, 1.0]  # the tie is two pairs of half its weight
    assert batch.columns["source"].tolist() == [0, 0, 0, 0, 1, 1]


def test_pairs_and_several_completions_do_not_mix():
    rows = [{"prompt": "Two and two?", "completions": ["4", "5"], "scores": [1.0, 0.0]}]
    kwise = prepare_preferences(Dataset.from_list(rows), make_tokenizer(), truncation=TruncationPolicy())[0]
    with pytest.raises(DataError, match="b: rows of several completions; a: rows of chosen and rejected"):
        mix({"a": prepared(2), "b": kwise})


def test_a_weight_that_gives_no_row_is_refused():
    with pytest.raises(ValueError, match=r"0\.001 for 'b' gives it none of the 5 rows of an epoch"):
        mix({"a": prepared(3), "b": prepared(2)}, [1, 0.001])


def test_fingerprint_is_of_names_weights_and_content():
    same = mixture((3, 2)).fingerprint(["x", "y"])
    assert same == mixture((3, 2)).fingerprint(["x", "y"])
    others = [mixture((3, 2)).fingerprint(["y", "x"]), mixture((3, 2), (1, 1)).fingerprint(["x", "y"])]
    assert same not in others
