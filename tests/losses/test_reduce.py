from __future__ import annotations

import pytest
import torch

from burnish.losses import aggregations, reduce_tokens

LOSSES = torch.tensor([[1.0, 3.0, 5.0], [7.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])


@pytest.mark.parametrize(
    ("aggregation", "expected", "per"),
    [
        ("token_mean", [[1.0, 3.0, 5.0], [7.0, 0.0, 0.0], [0.0, 0.0, 0.0]], "token"),
        ("seq_mean_token_mean", [3.0, 7.0, 0.0], "row"),
        ("seq_mean_token_sum", [9.0, 7.0, 0.0], "row"),
        ("token_sum_norm", [0.9, 0.7, 0.0], "row"),
    ],
)
def test_values(aggregation, expected, per):
    """Tokens 1, 3, 5 have the mean 3 and the sum 9; an answer without a trained token has 0."""
    losses, unit = reduce_tokens(LOSSES, MASK, aggregation=aggregation, max_completion_length=10)
    assert unit == per
    torch.testing.assert_close(losses, torch.tensor(expected))


@pytest.mark.parametrize("aggregation", sorted(aggregations))
def test_one_number_an_answer_counts_for_each_of_its_tokens(aggregation):
    """(N, 1) is what the same number at every token is."""
    one, everywhere = LOSSES[:, :1], LOSSES[:, :1].expand(3, 3)
    first, _ = reduce_tokens(one, MASK, aggregation=aggregation, max_completion_length=10)
    second, _ = reduce_tokens(everywhere, MASK, aggregation=aggregation, max_completion_length=10)
    assert torch.equal(first, second)


@pytest.mark.parametrize("aggregation", sorted(aggregations))
def test_padding_is_never_read(aggregation):
    """NaN outside the mask reaches neither the value nor the gradient."""
    losses = torch.where(MASK, LOSSES, torch.nan).requires_grad_()
    reduced, _ = reduce_tokens(losses, MASK, aggregation=aggregation, max_completion_length=10)
    reduced.sum().backward()
    assert reduced.isfinite().all()
    assert torch.equal(losses.grad != 0, MASK)


def test_the_constant_is_asked_for():
    message = r"max_completion_length=None.*set it to the longest answer that may be sampled"
    with pytest.raises(ValueError, match=message):
        reduce_tokens(LOSSES, MASK, aggregation="token_sum_norm")


def test_unknown_aggregation():
    with pytest.raises(ValueError, match="did you mean 'token_mean'"):
        reduce_tokens(LOSSES, MASK, aggregation="tokenmean")
