import pytest

from burnish.data.shares import apportion, read_weights


@pytest.mark.parametrize(
    ("total", "weights", "parts"),
    [(10, [1, 1, 1], (4, 3, 3)), (10, [3, 1], (8, 2)), (7, [0.2, 0.2, 0.6], (2, 1, 4)), (3, [1000, 1], (3, 0))],
)
def test_apportion_worked_out_by_hand(total, weights, parts):
    """10·¾ = 7.5 and 2.5: the first of equal remainders is rounded up. 7·0.2 = 1.4 twice and 4.2: one is left."""
    assert apportion(total, weights) == parts


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1}, "'b' has none"),
        ({"a": 1, "b": 1, "bb": 1}, "'bb' is no source, did you mean 'b'"),
        ([1], "one for each of a, b"),
        ([1, 0], "0 for 'b'; allowed: above 0"),
        ([1, -1], "-1 for 'b'"),
        ([1, float("inf")], "inf for 'b'"),
        ([1, float("nan")], "nan for 'b'"),
        ([1, True], "True for 'b'"),
        ([1, "2"], "'2' for 'b'"),
        (3, "dataset_weights=3"),
    ],
)
def test_weights_that_are_refused(weights, message):
    with pytest.raises(ValueError, match="dataset_weights") as caught:
        read_weights(weights, ["a", "b"])
    assert message in str(caught.value)


def test_weights_by_name_are_put_in_order():
    assert read_weights({"b": 2, "a": 1}, ["a", "b"]) == (1.0, 2.0)
    assert read_weights(None, ["a", "b"]) is None
