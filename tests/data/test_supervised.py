from __future__ import annotations

import pytest

from burnish.data.errors import BadRowsError
from burnish.data.supervised import prepare_supervised, supervised_batch
from conftest import make_tokenizer

END = [2]


def prepare(rows, **options):
    return prepare_supervised(rows, make_tokenizer(), end_ids=END, **{"max_length": None, **options})


def texts(row) -> tuple[str, str]:
    """The prompt, and what of the rest is trained."""
    tokenizer = make_tokenizer()
    trained = [token for token, is_trained in zip(row.completion_ids, row.loss_mask, strict=True) if is_trained]
    return tokenizer.decode(row.prompt_ids), tokenizer.decode(trained)


def test_a_prompt_and_its_completion():
    ((row,), report) = prepare([{"prompt": "Sky?", "completion": " blue"}])
    assert texts(row) == ("Sky?", " blue<|im_end|>")
    assert (report.num_rows, report.num_trained) == (1, 6)
    assert "1 supervised rows, 6 trained tokens" in report.lines()[0]


def test_a_conversation():
    """Of messages the assistant's turns are trained, whichever columns they are in."""
    turns = [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "blue"}]
    more = [{"role": "user", "content": "Sea?"}, {"role": "assistant", "content": "green"}]
    ((first, second), _) = prepare([{"messages": turns + more}, {"prompt": turns + more[:1], "completion": more[1:]}])
    opening = "<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\n"
    assert texts(first) == (opening, "blue<|im_end|>green<|im_end|>")
    assert texts(second)[1] == "green<|im_end|>"


def test_plain_text_is_trained_from_its_second_token():
    ((row,), _) = prepare([{"text": "Hi all"}])
    assert texts(row) == ("H", "i all<|im_end|>")


def test_long_rows_lose_their_end():
    ((row,), report) = prepare([{"prompt": "Sky?", "completion": " blue"}], max_length=7)
    assert texts(row) == ("Sky?", " bl")
    assert report.num_cut == 1
    assert "1 rows lost their end" in report.lines()[0]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"question": "x"}, "the row has no answer that could be trained"),
        ({"prompt": "x", "completion": 3}, "is int, not text"),
        ({"messages": [{"role": "user", "content": "x"}]}, "is no conversation that ends with an answer"),
        ({"prompt": "a long prompt", "completion": "b"}, "leaves no trained token within 7 tokens"),
    ],
    ids=["columns", "type", "roles", "length"],
)
def test_bad_rows_are_named_or_dropped(row, named):
    rows = [{"prompt": "x", "completion": "y"}, row]
    with pytest.raises(BadRowsError, match=rf"row 1, column .*{named}"):
        prepare(rows, max_length=7)
    kept, report = prepare(rows, max_length=7, on_bad_row="drop")
    assert [row.row_id for row in kept] == [0]
    assert report.num_dropped == 1


def test_the_fingerprint_is_that_of_what_is_trained():
    first, same, other = (
        prepare([{"prompt": "x", "completion": text, "note": note}])[1].fingerprint
        for text, note in (("y", 1), ("y", 2), ("z", 1))
    )
    assert first == same != other


def test_a_parcel():
    rows, _ = prepare([{"prompt": "Sky?", "completion": " blue"}, {"prompt": "A", "completion": "b"}])
    batch = supervised_batch(rows, 0)
    assert batch.prompt_mask.sum(1).tolist() == [4, 1]
    assert batch.prompt_mask[1].tolist() == [False, False, False, True]
    assert batch.completion_mask.sum(1).tolist() == batch.loss_mask.sum(1).tolist() == [6, 2]
    assert batch.row_id.tolist() == [0, 1]
    assert batch.prompt_index.tolist() == [0, 1]
