from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.types import Completion, LossOutput, Mean, PairLogps, PreferenceBatch, Term, TokenBatch, TokenStats


def example_batch(**changes) -> TokenBatch:
    """The worked example of `TokenBatch`: a prompt of two tokens, completions of two and one."""
    fields = {
        "prompt_ids": torch.tensor([[5, 6]]),
        "prompt_mask": torch.tensor([[True, True]]),
        "completion_ids": torch.tensor([[7, 2], [8, 0]]),
        "completion_mask": torch.tensor([[True, True], [True, False]]),
        "loss_mask": torch.tensor([[True, True], [True, False]]),
        "prompt_index": torch.tensor([0, 0]),
        "row_id": torch.tensor([17, 17]),
    }
    return TokenBatch(**{**fields, **changes})


def example_pairs(**changes) -> PreferenceBatch:
    batch = example_batch()
    fields = {name: batch[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}
    rest = {name: batch[name] for name in ("loss_mask", "prompt_index", "row_id")}
    return PreferenceBatch(**{**fields, **rest, "pairs": torch.tensor([[0, 1]]), **changes})


def counts_of(batch: TokenBatch) -> dict[str, float]:
    return {name: float(count) for name, count in batch.counts().items()}


def test_token_batch_example():
    """Two rows, three trained tokens; the prompt counts once a row: 2 x 2 + 3 = 7 input tokens."""
    batch = example_batch()
    assert len(batch) == 2
    assert int(batch.num_input_tokens) == 7
    assert counts_of(batch) == {"row": 2.0, "token": 3.0}


def test_token_batch_as_the_trainer_reads_it():
    batch = example_batch()
    assert "prompt_ids" in batch
    assert "labels" not in batch
    assert 3 not in batch
    assert batch["row_id"] is batch.row_id


def test_loss_mask_decides_what_is_counted():
    """One token of three is not trained."""
    batch = example_batch(loss_mask=torch.tensor([[False, True], [True, False]]))
    assert counts_of(batch)["token"] == 2.0
    assert int(batch.num_input_tokens) == 7


def test_row_weights():
    """Weights 2 and 0.5: rows weigh 2.5; tokens 2 x 2 + 1 x 0.5 = 4.5."""
    batch = example_batch(columns={"weight": torch.tensor([2.0, 0.5])})
    assert counts_of(batch) == {"row": 2.5, "token": 4.5}
    assert batch.unit_weights("token").tolist() == [[2.0, 2.0], [0.5, 0.0]]


def test_unknown_unit():
    with pytest.raises(ValueError, match=r"TokenBatch has no unit 'pair'; it has: row, token"):
        example_batch().unit_weights("pair")
    with pytest.raises(ValueError, match=r"has no unit 'group'; it has: pair, chosen_token, prompt, row, token"):
        example_pairs().unit_weights("group")


def test_preference_units():
    """One pair; its chosen answer has two trained tokens."""
    assert counts_of(example_pairs()) == {"pair": 1.0, "chosen_token": 2.0, "prompt": 1.0, "row": 2.0, "token": 3.0}


def test_preference_weights():
    """A weight of 3: 3 pairs and 3 x 2 chosen tokens; rows keep their own weight."""
    batch = example_pairs(weight=torch.tensor([3.0]))
    assert counts_of(batch) == {"pair": 3.0, "chosen_token": 6.0, "prompt": 3.0, "row": 2.0, "token": 3.0}


def test_a_row_in_several_pairs():
    """K-wise: both orders of the same two rows are two pairs with 2 + 1 chosen tokens, and still two rows."""
    batch = example_pairs(pairs=torch.tensor([[0, 1], [1, 0]]))
    assert counts_of(batch) == {"pair": 2.0, "chosen_token": 3.0, "prompt": 1.0, "row": 2.0, "token": 3.0}


def answer(*tokens: int, untrained: tuple[int, ...] = (), **changes) -> Completion:
    count = len(tokens)
    trained = torch.tensor([place not in untrained for place in range(count)], dtype=torch.bool)
    numbers = {"logps": torch.zeros(count), "kept_mass": torch.ones(count), "loss_mask": trained}
    ids = {"prompt_ids": torch.tensor([5, 6]), "token_ids": torch.tensor(tokens, dtype=torch.int64)}
    return Completion(**{**numbers, **ids, **changes})


def test_other_answers_in_some_rows():
    """The rejected row gets three tokens, one of them not trained: the parcel grows. The chosen row stays."""
    batch = example_pairs(ref_logps=torch.zeros(2), columns={"truncated": torch.zeros(2)})
    cut = answer(9, 9, 3, untrained=(1,), finish_reason="length")
    found = batch.with_answers(batch.pairs[:, 1], [cut])
    assert found.completion_ids.tolist() == [[7, 2, 0], [9, 9, 3]]
    assert found.completion_mask.tolist() == [[True, True, False], [True, True, True]]
    assert found.loss_mask.tolist() == [[True, True, False], [True, False, True]]
    assert found.columns["truncated"].tolist() == [0.0, 1.0]
    assert (found.pairs.tolist(), found.ref_logps) == ([[0, 1]], None)
    assert batch.completion_ids.tolist() == [[7, 2], [8, 0]]


def test_other_answers_in_all_rows_make_the_parcel_as_wide_as_they_are():
    batch = example_batch(turn_index=torch.tensor([[0, 1], [2, 0]]))
    found = batch.with_answers(torch.tensor([1, 0]), [answer(4), answer()])
    assert found.completion_ids.tolist() == [[0], [4]]
    assert found.completion_mask.tolist() == [[False], [True]]
    assert found.turn_index.tolist() == [[0], [0]]


def test_filler_counts_for_nothing():
    assert set(counts_of(example_pairs(is_filler=True)).values()) == {0.0}


def test_counts_are_exact_where_float32_is_not():
    """2^24 + 1 rows of weight 1 cannot be summed in float32; one row of that weight and one of 1 can in float64."""
    batch = example_batch(columns={"weight": torch.tensor([2.0**24, 1.0])})
    assert counts_of(batch)["row"] == 2.0**24 + 1


def test_to_moves_every_tensor_and_keeps_the_rest():
    batch = example_pairs(
        columns={"score": torch.tensor([1.0, 2.0])},
        extra=({"image": torch.zeros(3), "name": "cat"},),
        coupled={"aot": torch.zeros(1, 3)},
        weight=torch.ones(1),
    )
    moved = batch.to("meta")
    assert isinstance(moved, PreferenceBatch)
    assert moved.completion_ids.device.type == moved.pairs.device.type == moved.weight.device.type == "meta"
    assert moved.columns["score"].device.type == moved.coupled["aot"].device.type == "meta"
    assert moved.extra[0]["image"].device.type == "meta"
    assert moved.extra[0]["name"] == "cat"
    assert moved.margin is None
    assert moved.is_filler is False
    assert batch.completion_ids.device.type == "cpu"


@pytest.mark.parametrize("parcel", [example_batch(), example_pairs()], ids=["TokenBatch", "PreferenceBatch"])
def test_parcels_are_frozen(parcel):
    with pytest.raises(FrozenInstanceError):
        parcel.row_id = torch.zeros(2)


def test_token_stats_example():
    """Probabilities 0.5 and 0.25: log 0.5 + log 0.25 = -3 log 2, and half of that per token."""
    stats = TokenStats(
        logps=torch.tensor([[math.log(0.5), math.log(0.25), 0.0]]), mask=torch.tensor([[True, True, False]])
    )
    assert stats.lengths.tolist() == [2.0]
    assert stats.sequence_sum().item() == pytest.approx(-2.0794415, abs=1e-6)
    assert stats.sequence_mean().item() == pytest.approx(-1.0397208, abs=1e-6)


def test_sequence_mean_of_a_row_without_trained_tokens_is_zero():
    stats = TokenStats(logps=torch.zeros(1, 2), mask=torch.zeros(1, 2, dtype=torch.bool))
    assert stats.sequence_mean().tolist() == [0.0]


def test_entropy_that_was_not_asked_for():
    stats = TokenStats(logps=torch.zeros(1, 1), mask=torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r'entropy was not computed: call forward\(model, batch, needs=\("entropy",\)'):
        _ = stats.required_entropy
    assert replace(stats, entropy=torch.ones(1, 1)).required_entropy.tolist() == [[1.0]]


def test_pair_logps_example():
    """-10 over 5 tokens under the policy and -12 under the reference; -20 over 8 and -21: log-ratios 2 and 1."""
    numbers = {"chosen": -10.0, "rejected": -20.0, "ref_chosen": -12.0, "ref_rejected": -21.0}
    lengths = {"chosen_length": 5.0, "rejected_length": 8.0}
    pair = PairLogps(**{name: torch.tensor([value]) for name, value in {**numbers, **lengths}.items()})
    assert (pair.chosen_logratio.item(), pair.rejected_logratio.item(), pair.logratio_diff.item()) == (2.0, 1.0, 1.0)
    assert (pair.chosen_mean.item(), pair.rejected_mean.item()) == (-2.0, -2.5)


def test_what_a_pair_was_not_given_is_asked_for():
    one = torch.ones(1)
    names = ("chosen", "rejected", "ref_chosen", "ref_rejected", "chosen_length", "rejected_length")
    pair = PairLogps(**dict.fromkeys(names, one))
    with pytest.raises(ValueError, match="add a column margin"):
        _ = pair.required_margin
    with pytest.raises(ValueError, match=r'needs=\{"divergence"\}'):
        _ = pair.required_kl
    full = replace(pair, margin=one, chosen_kl=one, rejected_kl=2 * one)
    assert full.required_margin is one
    assert full.required_kl[1].item() == 2.0


def test_mean_example():
    mean = Mean.of(torch.tensor([True, False, True]))
    assert (float(mean.total), float(mean.weight), float(mean.squares)) == (2.0, 3.0, 2.0)


def test_mean_weights():
    """Values 1, 4 with weights 3, 1: total 7, weight 4, squares 3 + 16 = 19."""
    mean = Mean.of(torch.tensor([1.0, 4.0]), weight=torch.tensor([3.0, 1.0]))
    assert (float(mean.total), float(mean.weight), float(mean.squares)) == (7.0, 4.0, 19.0)


def test_mean_never_reads_what_has_weight_zero():
    values = torch.tensor([[1.0, math.nan], [2.0, math.inf]])
    mean = Mean.of(values, weight=torch.tensor([[True, False], [True, False]]))
    assert (float(mean.total), float(mean.weight), float(mean.squares)) == (3.0, 2.0, 5.0)


def test_mean_shows_a_value_that_is_not_finite():
    assert math.isnan(Mean.of(torch.tensor([1.0, math.nan])).total)


def test_mean_is_detached():
    value = torch.ones(2, requires_grad=True)
    assert not Mean.of(value * 2).total.requires_grad


@given(values=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12), cut=st.integers(1, 11))
@settings(max_examples=50, deadline=None, derandomize=True, database=None)
def test_means_add_up(values, cut):
    """The sum of two parts' means is the mean of the whole."""
    numbers = torch.tensor(values, dtype=torch.float64)
    parts = [numbers[:cut], numbers[cut:]]
    added, whole = Mean.of(parts[0]) + Mean.of(parts[1]), Mean.of(numbers)
    for name in ("total", "weight", "squares"):
        assert float(getattr(added, name)) == pytest.approx(float(getattr(whole, name)), rel=1e-12, abs=1e-9)


def test_mean_of_bfloat16_is_summed_in_float64():
    """1000 times 1 + 2^-7 in bfloat16 sums to 1007.8125; bfloat16 itself would end at 1008."""
    mean = Mean.of(torch.full((1000,), 1 + 2**-7, dtype=torch.bfloat16))
    assert float(mean.total) == 1007.8125


def test_loss_output_of_one_term():
    losses = torch.tensor([1.0, 2.0])
    output = LossOutput.of(losses, per="pair")
    (term,) = output.terms
    assert isinstance(term, Term)
    assert (term.name, term.per, term.coefficient) == ("loss", "pair", 1.0)
    assert term.losses is losses
    assert dict(output.metrics) == {}
