from __future__ import annotations

import pytest
from datasets import Dataset

from burnish.data.errors import BadRowsError
from burnish.data.prompt_ids import with_prompts
from burnish.data.prompts import prepare_prompts
from conftest import make_tokenizer


def test_the_text_has_the_same_ids_again():
    tokenizer = make_tokenizer()
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Sky?"}], tokenize=False, add_generation_prompt=True
    )
    texts = ["One and ", " é ☃ ", said]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    given = Dataset.from_list(
        [{"input_ids": row, "attention_mask": [1] * len(row), "lengths": len(row)} for row in ids]
    )
    found = with_prompts(given, tokenizer, name="train")
    assert found["prompt"][:] == texts
    assert sorted(found.column_names) == ["lengths", "prompt"]
    prepared, _ = prepare_prompts(found, tokenizer)
    assert prepared["prompt_input_ids"][:] == ids


def test_rows_with_a_prompt_stay_as_they_are():
    given = Dataset.from_list([{"prompt": "x", "input_ids": [1]}])
    assert with_prompts(given, make_tokenizer(), name="train") is given


def test_ids_that_are_no_text_are_named():
    """Half a character has no text of its own."""
    tokenizer = make_tokenizer()
    half = tokenizer("é")["input_ids"][:1]
    given = Dataset.from_list([{"input_ids": tokenizer("ok")["input_ids"]}, {"input_ids": half}])
    with pytest.raises(BadRowsError, match="row 1, column 'input_ids'"):
        with_prompts(given, tokenizer, name="train")
