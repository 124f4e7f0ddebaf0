from __future__ import annotations

import math

import pytest
import torch

from burnish.generation.base import Prompt, SamplingParams

REFUSED = {
    "max_new_tokens": (0, -1),
    "temperature": (-0.5, 1e-6, math.inf, math.nan),
    "top_k": (-1,),
    "top_p": (0.0, 1.1, math.nan),
    "min_p": (-0.1, 1.5, math.nan),
    "repetition_penalty": (0.0, -1.0, math.inf, math.nan),
    "min_new_tokens": (-1, 9),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_numbers_out_of_range_are_named(name, value):
    settings = {"max_new_tokens": 8, "end_token_ids": (2,), name: value}
    with pytest.raises(ValueError, match=rf"SamplingParams: {name}={value!r}; allowed: "):
        SamplingParams(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"top_k": None, "min_p": None},
        {"temperature": 0},
        {"temperature": 1e-4, "top_p": 1e-3, "min_p": 1.0, "repetition_penalty": 0.5, "min_new_tokens": 8},
        {"end_token_ids": ()},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(settings):
    params = SamplingParams(**{"max_new_tokens": 8, "end_token_ids": (2,), **settings})
    assert params.is_greedy == (settings.get("temperature") == 0)


def test_stop_strings_are_several_and_not_empty():
    with pytest.raises(TypeError, match=r"stop_strings='END'; write \('END',\)"):
        SamplingParams(max_new_tokens=8, end_token_ids=(2,), stop_strings="END")
    with pytest.raises(ValueError, match="empty string"):
        SamplingParams(max_new_tokens=8, end_token_ids=(2,), stop_strings=("END", ""))


@pytest.mark.parametrize(
    "ids", [torch.tensor([], dtype=torch.int64), torch.ones(1, 2, dtype=torch.int64), torch.ones(2)]
)
def test_a_prompt_is_a_vector_of_ids(ids):
    with pytest.raises(ValueError, match=r"the prompt of row 7 is a .* one or more token ids"):
        Prompt(ids=ids, key=7)
