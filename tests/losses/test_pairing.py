from __future__ import annotations

import math

import pytest
import torch

from burnish.losses.auxiliary import load_balancing
from burnish.losses.pairing import pair_logps, wpo_weights
from burnish.types import PreferenceBatch, TokenStats


def make_batch(pairs=((0, 1),), num_rows=2, margin=None) -> PreferenceBatch:
    ids = torch.ones(num_rows, 3, dtype=torch.int64)
    return PreferenceBatch(
        prompt_ids=torch.ones(1, 1, dtype=torch.int64),
        prompt_mask=torch.ones(1, 1, dtype=torch.bool),
        completion_ids=ids,
        completion_mask=ids.bool(),
        loss_mask=ids.bool(),
        prompt_index=torch.zeros(num_rows, dtype=torch.int64),
        row_id=torch.zeros(num_rows, dtype=torch.int64),
        pairs=torch.tensor(pairs),
        margin=margin,
    )


def make_stats(logps, mask, **extra) -> TokenStats:
    logps, mask = torch.tensor(logps, dtype=torch.float64), torch.tensor(mask).bool()
    return TokenStats(logps=logps * mask, mask=mask, extra={n: torch.tensor(v).double() for n, v in extra.items()})


# chosen: three trained tokens -1 -2 -4; rejected: -8 (not trained), -16, -32
STATS = make_stats([[-1, -2, -4], [-8, -16, -32]], [[1, 1, 1], [0, 1, 1]])
REF = torch.tensor([[-1.0, -1.0, -1.0], [0.0, -2.0, -3.0]], dtype=torch.float64)


def test_sums_over_trained_tokens():
    pair = pair_logps(STATS, REF, make_batch())
    assert (pair.chosen.item(), pair.rejected.item()) == (-7.0, -48.0)
    assert (pair.ref_chosen.item(), pair.ref_rejected.item()) == (-3.0, -5.0)
    assert (pair.chosen_length.item(), pair.rejected_length.item()) == (3.0, 2.0)
    assert pair.chosen_row.tolist() == [0]
    assert pair.chosen_kl is None


def test_a_reference_may_be_known_as_sums_only():
    pair = pair_logps(STATS, torch.tensor([[-3.0], [-5.0]]), make_batch())
    assert (pair.ref_chosen.item(), pair.ref_rejected.item()) == (-3.0, -5.0)


def test_ld_alpha_weights_what_is_beyond_the_shorter_answer():
    """The shorter has 2 trained tokens: chosen -1 - 2 + 0.25 x -4 = -4, its reference -2 - 0.25; rejected whole."""
    pair = pair_logps(STATS, REF, make_batch(), ld_alpha=0.25)
    assert (pair.chosen.item(), pair.rejected.item()) == (-4.0, -48.0)
    assert (pair.ref_chosen.item(), pair.ref_rejected.item()) == (-2.25, -5.0)
    assert pair.chosen_length.item() == 3.0


def test_ld_alpha_of_1_changes_nothing_and_0_cuts():
    plain = pair_logps(STATS, REF, make_batch())
    assert torch.equal(pair_logps(STATS, REF, make_batch(), ld_alpha=1.0).chosen, plain.chosen)
    assert pair_logps(STATS, REF, make_batch(), ld_alpha=0.0).chosen.item() == -3.0


def test_ld_alpha_counts_trained_tokens_not_places():
    """The longer answer's first token is not trained: its first two trained ones are at places 2 and 3."""
    stats = make_stats([[-1, 0, 0, 0], [-8, -16, -32, -64]], [[1, 0, 0, 0], [0, 1, 1, 1]])
    pair = pair_logps(stats, torch.zeros(2, 4), make_batch(), ld_alpha=0.5)
    assert pair.rejected.item() == -16 - 0.5 * (32 + 64)


def test_ld_alpha_of_a_row_in_two_pairs_depends_on_the_pair():
    stats = make_stats([[-1, -2, -4], [-8, 0, 0], [-8, -8, 0]], [[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    pair = pair_logps(stats, torch.zeros(3, 3), make_batch(((0, 1), (0, 2)), 3), ld_alpha=0.0)
    assert pair.chosen.tolist() == [-1.0, -3.0]


def test_ld_alpha_needs_the_reference_per_token():
    with pytest.raises(ValueError, match=r"^ld_alpha weights .* known as sums over each answer$"):
        pair_logps(STATS, torch.zeros(2, 1), make_batch(), ld_alpha=0.5)


def test_margin_and_divergence_come_along():
    stats = make_stats([[-1, -2, -4], [-8, -16, -32]], [[1, 1, 1], [0, 1, 1]], divergence=[[1, 2, 3], [0, 4, 5]])
    pair = pair_logps(stats, REF, make_batch(margin=torch.tensor([1.5])))
    assert (pair.chosen_kl.item(), pair.rejected_kl.item()) == (6.0, 9.0)
    assert pair.margin.item() == 1.5


def test_wpo_weights():
    """p = ½ and sum p² = ½ twice: weight exp(log 1) = 1; p = ¼, sum p² = ½: ½; ¼ and 1, the other 1: (¼ 1)^½ = ½.

    The pairs are the first row with each of the others: ½ and ½. Of the last row with itself: ¼.
    """
    half, quarter = math.log(0.5), math.log(0.25)
    logps, mask = [[half, half], [quarter, 0], [quarter, half]], [[1, 1], [1, 0], [1, 1]]
    stats = make_stats(logps, mask, sum_p2=[[0.5, 0.5], [0.5, 0.0], [1.0, 0.5]])
    weights = wpo_weights(stats, make_batch(((0, 1), (0, 2), (2, 2)), 3))
    assert weights.tolist() == pytest.approx([0.5, 0.5, 0.25], abs=1e-12)


def test_wpo_weights_are_at_most_1_and_carry_no_gradient():
    """p = 0.9 and sum p² = 0.82: each weight is 1.0976, their product is held at 1."""
    logps = torch.full((2, 1), math.log(0.9), dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 1, dtype=torch.bool)
    weights = wpo_weights(TokenStats(logps=logps, mask=mask, extra={"sum_p2": torch.full((2, 1), 0.82)}), make_batch())
    assert weights.item() == 1.0
    assert not weights.requires_grad


def test_load_balancing_is_weighted_by_tokens():
    """The trainer sums over the trained tokens and divides by their number: each token carries the value."""
    stats = TokenStats(logps=STATS.logps, mask=STATS.mask, aux_loss=torch.tensor(1.5))
    (term,) = load_balancing(stats, coefficient=0.01)
    assert (term.name, term.per, term.coefficient) == ("aux_loss", "token", 0.01)
    assert term.losses.shape == (2, 3)
    assert (term.losses == 1.5).all()
    assert load_balancing(STATS, coefficient=0.01) == ()
