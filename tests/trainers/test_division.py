from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from burnish.data.collate import PreferenceCollator
from burnish.trainers.division import divide, step_counts, term_means, unit_rows, weighted_sum
from burnish.types import PreferenceBatch, Term, TokenBatch


def make_batch(sizes: list[tuple[int, int]], **numbers: list[float]) -> PreferenceBatch:
    """Pairs whose answers have these trained tokens; each prompt has two tokens, row ids count from 10."""
    rows = [
        {
            "row_id": 10 + index,
            "prompt_input_ids": [5, 6],
            "chosen_input_ids": [7] * chosen,
            "chosen_loss_mask": [True] * chosen,
            "rejected_input_ids": [8] * rejected,
            "rejected_loss_mask": [True] * rejected,
            **{name: values[index] for name, values in numbers.items()},
        }
        for index, (chosen, rejected) in enumerate(sizes)
    ]
    return PreferenceCollator(0)(rows)


def pair_term(*losses: float, per: str = "pair", name: str = "a", coefficient: float = 1.0) -> Term:
    return Term(name=name, losses=torch.tensor(losses, requires_grad=True), per=per, coefficient=coefficient)


def test_counts_of_a_step():
    """Pairs 2 + 1; tokens (2 + 1) + (3 + 1) + (1 + 4); chosen 2 + 3 + 1; inputs add 2 prompt tokens a row."""
    parcels = [make_batch([(2, 1), (3, 1)]), make_batch([(1, 4)])]
    counts = {name: float(count) for name, count in step_counts(parcels, "cpu").items()}
    assert counts == {"pair": 3, "chosen_token": 6, "prompt": 3, "row": 6, "token": 12, "input_token": 24}


def test_other_vectors_are_summed_on_the_same_trip():
    sums = step_counts([make_batch([(2, 1)])], "cpu", also={"rewards/margins": torch.tensor([4.0, 2.0])})
    assert sums["rewards/margins"].tolist() == [4.0, 2.0]
    assert float(sums["pair"]) == 1


def test_a_filler_adds_nothing_to_the_counts():
    parcels = [make_batch([(2, 1)]), replace(make_batch([(5, 5)]), is_filler=True)]
    assert step_counts(parcels, "cpu") == step_counts(parcels[:1], "cpu")


def test_one_division():
    """Losses 1, 3 of two parcels with one and two pairs: (1 + 3 + 5) / 3 however they are split."""
    parcels = [make_batch([(2, 1)]), make_batch([(1, 1), (1, 1)])]
    counts = step_counts(parcels, "cpu")
    shares = [divide([pair_term(1.0)], parcels[0], counts), divide([pair_term(3.0, 5.0)], parcels[1], counts)]
    assert [share.item() for share in shares] == [1 / 3, 8 / 3]


def test_terms_of_two_units():
    """2 pairs and 5 chosen tokens: (1 + 3) / 2 + 0.5 x (10 + 20) / 5 = 5."""
    batch = make_batch([(2, 1), (3, 1)])
    terms = [pair_term(1.0, 3.0), pair_term(10.0, 20.0, per="chosen_token", coefficient=0.5)]
    assert divide(terms, batch, step_counts([batch], "cpu")).item() == 5.0


def test_pair_weights():
    """Weights 3 and 1: (3 x 1 + 1 x 5) / 4 = 2."""
    batch = make_batch([(1, 1), (1, 1)], weight=[3.0, 1.0])
    assert divide([pair_term(1.0, 5.0)], batch, step_counts([batch], "cpu")).item() == 2.0


def test_token_term():
    """Row weights 1, 0.5 over (2, 1) trained tokens, all losses 4: (4 + 4 + 2) / 2.5 = 4; padding is not read."""
    batch = make_batch([(2, 1)])
    batch = replace(batch, columns={"weight": torch.tensor([1.0, 0.5])})
    losses = torch.tensor([[4.0, 4.0], [4.0, math.nan]])
    assert divide([Term(name="t", losses=losses, per="token")], batch, step_counts([batch], "cpu")).item() == 4.0


def test_weight_zero_is_never_read():
    """Neither in the value nor in the gradient."""
    batch = make_batch([(1, 1), (1, 1)], weight=[1.0, 0.0])
    term = pair_term(2.0, math.nan)
    total = weighted_sum(term, batch)
    assert total.item() == 2.0
    assert torch.autograd.grad(total, term.losses)[0].tolist() == [1.0, 0.0]


def test_a_step_of_weight_zero_is_zero_and_not_nan():
    batch = make_batch([(1, 1)], weight=[0.0])
    assert divide([pair_term(7.0)], batch, step_counts([batch], "cpu")).item() == 0.0


def test_a_filler_gives_a_zero_that_reaches_its_inputs():
    """Zero even where its losses are not finite, and with a graph, so that every rank runs the same backward."""
    batch = replace(make_batch([(1, 1)]), is_filler=True)
    term = pair_term(math.inf)
    total = weighted_sum(term, batch)
    assert total.item() == 0.0
    assert torch.autograd.grad(total, term.losses)[0].tolist() == [0.0]


@pytest.mark.parametrize("losses", [torch.tensor(3.0), torch.zeros(1), torch.zeros(2, 2)], ids=["sum", "mean", "token"])
def test_a_reduced_loss_is_refused(losses):
    batch = make_batch([(2, 1), (3, 1)])
    shape = tuple(losses.shape)
    with pytest.raises(ValueError, match=r"term 'a' is per pair, so its losses must have shape \(2,\), got") as raised:
        weighted_sum(Term(name="a", losses=losses, per="pair"), batch)
    assert str(shape) in str(raised.value)
    assert "not a sum or a mean" in str(raised.value)


def test_an_unknown_unit_is_refused():
    with pytest.raises(ValueError, match=r"has no unit 'batch'; it has: pair, chosen_token, prompt, row, token"):
        weighted_sum(pair_term(1.0, per="batch"), make_batch([(1, 1)]))


def test_term_means():
    """A mean over the term's own unit: (1 + 3) / 2 a pair, and 30 over 5 chosen tokens; coefficients do not enter."""
    batch = make_batch([(2, 1), (3, 1)])
    terms = [pair_term(1.0, 3.0), pair_term(10.0, 20.0, per="chosen_token", name="b", coefficient=0.5)]
    means = term_means(terms, batch)
    assert {name: float(mean.total / mean.weight) for name, mean in means.items()} == {"loss/a": 2.0, "loss/b": 6.0}
    assert not means["loss/a"].total.requires_grad


def test_unit_rows_of_pairs():
    batch = make_batch([(2, 1), (3, 1)])
    for per in ("pair", "chosen_token"):
        rows, losses = unit_rows(pair_term(1.0, 3.0, per=per), batch)
        assert (rows.tolist(), losses.tolist()) == ([10, 11], [1.0, 3.0])


def test_unit_rows_of_rows_and_tokens():
    batch = make_batch([(2, 1)])
    rows, _ = unit_rows(pair_term(1.0, 2.0, per="row"), batch)
    assert rows.tolist() == [10, 10]
    losses = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    rows, watched = unit_rows(Term(name="t", losses=losses, per="token"), batch)
    assert (rows.tolist(), watched.tolist()) == ([10, 10, 10], [1.0, 2.0, 3.0])


def test_a_parcel_without_pairs_is_divided_alike():
    """Any TokenBatch: rows of losses 2 and 4 are averaged to 3."""
    pairs = make_batch([(2, 1)])
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "loss_mask", "prompt_index", "row_id")
    batch = TokenBatch(**{name: pairs[name] for name in names})
    term = Term(name="t", losses=torch.tensor([2.0, 4.0]), per="row")
    assert divide([term], batch, step_counts([batch], "cpu")).item() == 3.0
