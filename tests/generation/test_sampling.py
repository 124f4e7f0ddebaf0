from __future__ import annotations

import math

import pytest
import torch
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from burnish.generation import sampling
from burnish.generation.base import SamplingParams
from burnish.generation.sampling import draw_tokens, inverse_cdf, streams, uniforms

SMALLEST, LARGEST = 2.0**-53, 1 - 2.0**-53  # what uniforms() can give
FILTERS = {
    "none": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.2},
    "all": {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "min_new_tokens": 3, "end_token_ids": (3, 5)},
}


def make_params(**settings) -> SamplingParams:
    return SamplingParams(**{"max_new_tokens": 16, "end_token_ids": (2,), **settings})


def make_logits(rows: int = 4, vocabulary: int = 40) -> torch.Tensor:
    return 2 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(5))


def many_uniforms(count: int) -> torch.Tensor:
    return uniforms(streams(3, 0, range(count), [0] * count), 0)


def assert_drawn_from(tokens: torch.Tensor, probs: torch.Tensor) -> None:
    """Pearson's chi-square over tokens that are expected at least five times stays within five of its deviations."""
    expected = probs.double() * len(tokens)
    observed = tokens.bincount(minlength=len(probs)).double()
    assert observed[probs == 0].sum() == 0
    often = expected >= 5
    pooled = torch.cat([expected[often], expected[~often].sum()[None]])
    counts = torch.cat([observed[often], observed[~often].sum()[None]])
    used = pooled > 0
    chi_square = ((counts - pooled)[used].square() / pooled[used]).sum().item()
    freedom = int(used.sum()) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


# Random numbers.


def test_the_sequence_is_splitmix64():
    """The first outputs of the published generator for the seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    state = torch.tensor([1234567])
    found = [uniforms(state, position).item() for position in range(4)]
    assert found == [((output >> 12) + 0.5) * 2.0**-52 for output in published]


def test_uniforms_are_uniform_over_each_part_of_their_key():
    """1,024 numbers each, into 32 bins; and neighbours are not correlated: four deviations of 1 / sqrt(1024)."""
    count = range(1024)
    constant = [1] * 1024
    one = streams(1, 1, [1], [1])
    over = {
        "seed": torch.cat([uniforms(streams(i, 1, [1], [1]), 0) for i in count]),
        "round": torch.cat([uniforms(streams(1, i, [1], [1]), 0) for i in count]),
        "key": uniforms(streams(1, 1, count, constant), 0),
        "sample": uniforms(streams(1, 1, constant, count), 0),
        "position": torch.cat([uniforms(one, i) for i in count]),
    }
    for numbers in over.values():
        assert_drawn_from((numbers * 32).long(), torch.full((32,), 1 / 32))
        assert torch.corrcoef(torch.stack([numbers[1:], numbers[:-1]]))[0, 1].abs() < 0.125
    assert torch.corrcoef(torch.stack(list(over.values()))).fill_diagonal_(0).abs().max() < 0.125


def test_every_part_of_the_key_counts_and_its_place_too():
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (-1, 0, 0, 0), (2**63, 0, 0, 0)]
    states = [streams(seed, index, [key], [sample]).item() for seed, index, key, sample in keys]
    assert len(set(states)) == len(keys)
    assert streams(2**64 + 1, 0, [0], [0]).item() == states[1]  # the last 64 bits count


# The inverse of the cumulative probability.


@pytest.mark.parametrize("vocabulary", [1, 2, 255, 256, 257, 1000])
def test_inverse_cdf_is_the_plain_one(vocabulary):
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(200, vocabulary, generator=generator).softmax(1)
    numbers = torch.rand(200, dtype=torch.float64, generator=generator)
    edges = probs.double().cumsum(1)
    expected = torch.searchsorted(edges, (numbers * edges[:, -1])[:, None], right=True).squeeze(1)
    assert torch.equal(inverse_cdf(probs, numbers), expected)


@pytest.mark.parametrize("number", [0.0, SMALLEST, 0.5, LARGEST, 1.0])
@pytest.mark.parametrize("place", [0, 1, 255, 256, 299])
def test_a_token_of_probability_0_is_never_drawn(number, place):
    """Alone in its row, at each end of a block, and with the smallest probability that float32 has."""
    probs = torch.zeros(3, 300)
    probs[0, place] = 1.0
    probs[1, place] = 2.0**-149
    probs[2, place], probs[2, (place + 7) % 300] = 0.3, 0.7
    drawn = inverse_cdf(probs, torch.full((3,), number, dtype=torch.float64))
    assert drawn[:2].tolist() == [place, place]
    assert probs[2, drawn[2]] > 0


def test_ends_of_the_interval():
    probs = torch.tensor([[0.0, 0.25, 0.5, 0.25, 0.0]]).expand(4, -1)
    numbers = torch.tensor([SMALLEST, 0.25, 0.75, LARGEST], dtype=torch.float64)
    assert inverse_cdf(probs, numbers).tolist() == [1, 2, 3, 3]


# Draws.


@pytest.mark.parametrize("name", FILTERS)
def test_draws_follow_the_filtered_softmax(name):
    """20,000 draws of one row against the distribution that transformers' own processors make."""
    logits, params = make_logits(1), make_params(**FILTERS[name])
    probs = processed(logits, params).softmax(1)[0]
    draw = draw_tokens(logits.expand(20_000, -1), many_uniforms(20_000), params)
    assert_drawn_from(draw.tokens, probs)
    torch.testing.assert_close(draw.logps, probs.log()[draw.tokens], rtol=0, atol=2e-6)


def processed(logits: torch.Tensor, params: SamplingParams, ids: torch.Tensor | None = None) -> torch.Tensor:
    """Logits after the processors of transformers, in its order."""
    ids = torch.zeros(len(logits), 1, dtype=torch.int64) if ids is None else ids
    ends = list(params.end_token_ids)
    steps = [
        RepetitionPenaltyLogitsProcessor(params.repetition_penalty),
        MinNewTokensLengthLogitsProcessor(ids.shape[1], params.min_new_tokens, ends),
        TemperatureLogitsWarper(params.temperature),
        TopKLogitsWarper(params.top_k or logits.shape[1]),
        TopPLogitsWarper(params.top_p),
        MinPLogitsWarper(params.min_p or 0.0),
    ]
    for step in steps:
        logits = step(ids, logits)
    return logits


@pytest.mark.parametrize("name", FILTERS)
def test_kept_mass_leads_back_to_the_unfiltered_softmax(name):
    """logps + log(kept_mass) = log softmax(logits / temperature), whatever was filtered."""
    logits, params = make_logits(64), make_params(**FILTERS[name])
    draw = draw_tokens(logits, many_uniforms(64), params)
    full = (logits / params.temperature).log_softmax(1)
    expected = full.gather(1, draw.tokens[:, None]).squeeze(1)
    torch.testing.assert_close(draw.logps + draw.kept_mass.log(), expected, rtol=0, atol=2e-6)
    kept = processed(logits, params) > -math.inf
    torch.testing.assert_close(draw.kept_mass, (full.exp() * kept).sum(1), rtol=1e-5, atol=0)
    assert bool((draw.kept_mass == 1).all()) == (name in ("none", "temperature"))


def test_kept_mass_by_hand():
    """Probabilities 0.4, 0.3, 0.2, 0.1: top-p 0.6 keeps two of them (0.7), top-k 3 0.9, min-p 0.5 the first three."""
    logits = torch.tensor([[0.2, 0.4, 0.1, 0.3]]).log()
    number = torch.tensor([SMALLEST], dtype=torch.float64)
    for settings, mass, smallest in (
        ({"top_p": 0.6}, 0.7, 1),
        ({"top_k": 3}, 0.9, 0),
        ({"min_p": 0.5}, 0.9, 0),
        ({"top_k": 2, "top_p": 0.5}, 0.4, 1),  # 0.4 / 0.7 is enough of what top-k kept
        ({"end_token_ids": (1,), "min_new_tokens": 1}, 0.6, 0),
    ):
        draw = draw_tokens(logits, number, make_params(**settings))
        assert draw.kept_mass.item() == pytest.approx(mass, abs=1e-6)
        assert draw.tokens.item() == smallest
        assert draw.logps.exp().item() == pytest.approx([0.2, 0.4][smallest] / mass, abs=1e-6)


def test_ties_are_kept():
    logits = torch.tensor([[1.0, 0.0, 0.0, -1.0, 0.0]])
    for settings in ({"top_k": 2}, {"top_p": 0.6}):
        draw = draw_tokens(logits.expand(2000, -1), many_uniforms(2000), make_params(**settings))
        assert draw.tokens.unique().tolist() == [0, 1, 2, 4]


def test_top_p_sorts_the_vocabulary_if_it_must(monkeypatch):
    """Flat rows beside a peaked one: the likeliest candidates lack the mass, and the whole sort gives the tokens."""
    logits, number = make_logits(3, 3000) / 20, many_uniforms(3)
    logits[0] *= 100
    params = make_params(top_p=0.9)
    sorted_whole = draw_tokens(logits, number, params)
    monkeypatch.setattr(sampling, "TOP_P_CANDIDATES", 3000)
    for one, other in zip(sorted_whole, draw_tokens(logits, number, params), strict=True):
        assert torch.equal(one, other)
    kept = (processed(logits, params) > -math.inf).sum(1)
    assert kept[0] < 20
    assert kept[1:].min() > 1024
    torch.testing.assert_close(sorted_whole.kept_mass[1:], torch.full((2,), 0.9), rtol=0, atol=1e-3)


def test_the_likeliest_token_at_temperature_0():
    """Whatever the filters; its log-prob is the one at temperature 1, and nothing counts as filtered."""
    logits = make_logits()
    draw = draw_tokens(logits, many_uniforms(4), make_params(temperature=0, top_k=3, top_p=0.1, min_p=0.5))
    assert torch.equal(draw.tokens, logits.argmax(1))
    torch.testing.assert_close(draw.logps, logits.log_softmax(1).amax(1))
    assert draw.kept_mass.tolist() == [1] * 4
    banned = make_params(temperature=0, end_token_ids=tuple(draw.tokens.tolist()), min_new_tokens=1)
    assert not set(draw_tokens(logits, many_uniforms(4), banned).tokens.tolist()) & set(draw.tokens.tolist())


def test_end_tokens_wait_for_min_new_tokens():
    logits, ends = torch.zeros(2000, 4), (1, 2)
    for position, allowed in ((0, [0, 3]), (1, [0, 3]), (2, [0, 1, 2, 3])):
        params = make_params(end_token_ids=ends, min_new_tokens=2)
        draw = draw_tokens(logits, many_uniforms(2000), params, position=position)
        assert draw.tokens.unique().tolist() == allowed
        assert draw.kept_mass.unique().tolist() == [len(allowed) / 4]


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty_is_that_of_transformers(penalty):
    logits, params = make_logits(), make_params(repetition_penalty=penalty)
    ids = torch.tensor([[1, 1, 2], [3, 4, 5], [0, 39, 0], [7, 8, 9]])
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, True)
    draw = draw_tokens(logits, many_uniforms(4), params, seen=seen)
    expected = processed(logits, params, ids).log_softmax(1).gather(1, draw.tokens[:, None]).squeeze(1)
    torch.testing.assert_close(draw.logps, expected)
    assert not torch.allclose(draw.logps, logits.log_softmax(1).gather(1, draw.tokens[:, None]).squeeze(1))


def test_rows_do_not_know_each_other():
    logits, numbers = make_logits(16), many_uniforms(16)
    params = make_params(**FILTERS["all"])
    together = draw_tokens(logits, numbers, params)
    order = torch.arange(15, -1, -1)
    for one, other in zip(together, draw_tokens(logits[order], numbers[order], params), strict=True):
        assert torch.equal(one[order], other)


def test_dtypes():
    """Half precision is sampled in float32, and float64 in float64."""
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        draw = draw_tokens(make_logits().to(dtype), many_uniforms(4), make_params(top_p=0.9))
        assert (draw.logps.dtype, draw.kept_mass.dtype) == (expected, expected)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_are_not_finite(value, temperature):
    logits = make_logits()
    logits[2, 5] = value
    with pytest.raises(FloatingPointError, match="NaN or infinite in 1 of 4 rows"):
        draw_tokens(logits, many_uniforms(4), make_params(temperature=temperature, top_p=0.9))


def test_a_model_may_rule_out_tokens_itself():
    logits = make_logits(1)
    logits[:, 10:] = -math.inf
    draw = draw_tokens(logits.expand(500, -1), many_uniforms(500), make_params())
    assert draw.tokens.max() < 10
    assert draw.kept_mass.unique().tolist() == [1.0]
