from __future__ import annotations

import pytest

from burnish.models.padding import own_pad_token
from conftest import make_tokenizer


def test_a_padding_token_that_ends_nothing_stays():
    assert own_pad_token(make_tokenizer()) == "<pad>"


def test_a_spare_special_token_takes_the_place_of_the_end_token():
    """Not those of the template; one that is called padding if there is one, else the last of them."""
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    assert own_pad_token(tokenizer) == "<pad>"
    assert tokenizer.pad_token == "<|im_end|>"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<spare>", "<rare>"]})
    assert own_pad_token(tokenizer, end_ids=[0]) == "<rare>"


def test_a_padding_token_that_ends_answers_is_none():
    with pytest.raises(ValueError, match=r"pads with '<pad>', which ends answers as well(?s:.*)add_special_tokens"):
        own_pad_token(make_tokenizer(), end_ids=[0])
