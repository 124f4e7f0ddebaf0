"""Draws of next tokens, each from a random number of its own.

The number for a token is a hash of (seed, round, prompt, sample, position), and the token is where the cumulative
probability passes it. A row's answer thus does not depend on the rows beside it, and nothing has to be saved to make
it again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from burnish.generation.base import SamplingParams

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

BLOCK = 256
TOP_P_CANDIDATES = 1024
# The increment and the factors of splitmix64, as signed 64-bit integers.
GAMMA, FACTOR_1, FACTOR_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


class Draw(NamedTuple):
    """One token a row.

    Attributes:
        tokens: (R,) ids.
        logps: (R,) nats, under the distribution that was drawn from; for the likeliest token at temperature 0, under
            the softmax at temperature 1.
        kept_mass: (R,) the probability, in (0, 1], of what could be drawn; 1 at temperature 0.
    """

    tokens: Int[Tensor, "R"]
    logps: Float[Tensor, "R"]
    kept_mass: Float[Tensor, "R"]


def streams(seed: int, round_index: int, keys: Sequence[int], samples: Sequence[int]) -> Int[Tensor, "R"]:
    """The state of each row's random numbers: a hash of seed, round, key of the prompt and number of the sample."""
    state = torch.zeros(len(keys), dtype=torch.int64)
    for values in ([seed] * len(keys), [round_index] * len(keys), keys, samples):
        state = _mix((state ^ torch.tensor([_signed(value) for value in values], dtype=torch.int64)) + GAMMA)
    return state


def uniforms(streams: Int[Tensor, "R"], position: int) -> Float[Tensor, "R"]:
    """A number in (0, 1) for the token at `position` of each row: element `position` of its splitmix64 sequence."""
    bits = _shift(_mix(streams + _signed(GAMMA * (position + 1))), 12)  # 52 of them: exact in float64
    return (bits.to(_exact_dtype(streams)) + 0.5) * 2.0**-52


def draw_tokens(
    logits: Float[Tensor, "R V"],
    uniforms: Float[Tensor, "R"],
    params: SamplingParams,
    *,
    position: int = 0,
    seen: Bool[Tensor, "R V"] | None = None,
) -> Draw:
    """Draw one token a row.

    Args:
        logits: the model's own.
        uniforms: a number in (0, 1) for each row.
        params: temperature, filters and end tokens.
        position: tokens that the answers have already.
        seen: tokens of prompt and answer so far, for the repetition penalty; not read without one.

    Raises:
        FloatingPointError: logits of which nothing can be drawn (NaN, or infinite).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if params.repetition_penalty != 1.0 and seen is not None:
        penalised = torch.where(logits < 0, logits * params.repetition_penalty, logits / params.repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    if not params.is_greedy:
        logits = logits / params.temperature
    kept = _filter(logits, params, position)  # (R, V)
    normaliser = _logsumexp(logits)  # (R,)
    probs = None if params.is_greedy else kept.softmax(1)  # (R, V); exp is slow where the logit is -inf
    tokens = kept.argmax(1) if probs is None else inverse_cdf(probs, uniforms)
    logps = _at(logits, tokens) - normaliser
    if probs is None or kept is logits:
        return Draw(tokens, logps, torch.ones_like(logps))
    kept_logps = _at(probs, tokens).log()
    return Draw(tokens, kept_logps, (logps - kept_logps).exp().clamp(max=1.0))


def inverse_cdf(probs: Float[Tensor, "R V"], uniforms: Float[Tensor, "R"]) -> Int[Tensor, "R"]:
    """The index at which the cumulative sum of each row passes `uniforms` of its total; never one of probability 0.

    The sum goes over blocks first and then inside one block, in float64 where the device has it.
    """
    dtype = _exact_dtype(probs)
    blocks = functional.pad(probs, (0, -probs.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))  # (R, V/256, 256)
    sums = blocks.sum(2, dtype=dtype)
    block, rest = _passed(sums, uniforms.to(dtype) * sums.sum(1))
    inside, _ = _passed(blocks[torch.arange(len(probs), device=probs.device), block].to(dtype), rest)
    return block * BLOCK + inside


def _passed(masses: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) the first index whose cumulative sum is above the target, and how far into its mass the target lies."""
    edges = masses.cumsum(1)  # (R, K)
    below = torch.nextafter(edges[:, -1], torch.zeros_like(targets))
    targets = torch.minimum(targets, below).clamp(min=0.0)[:, None]  # (R, 1)
    index = torch.searchsorted(edges, targets, right=True)
    return index.squeeze(1), (targets - edges.gather(1, index) + masses.gather(1, index)).squeeze(1)


def _filter(logits: Tensor, params: SamplingParams, position: int) -> Tensor:
    """-inf for every token that may not be drawn; the logits themselves if all may."""
    if params.end_token_ids and position < params.min_new_tokens:
        banned = torch.tensor(params.end_token_ids, device=logits.device)
        logits = logits.index_fill(1, banned, -math.inf)
    if params.is_greedy:
        return logits
    if params.top_k and params.top_k < logits.shape[1]:
        lowest = logits.topk(params.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -math.inf)
    if params.top_p < 1:
        logits = logits.masked_fill(logits < _lowest_of_top_p(logits, params.top_p), -math.inf)
    if params.min_p:
        lowest = logits.amax(1, keepdim=True) + math.log(params.min_p)
        logits = logits.masked_fill(logits < lowest, -math.inf)
    return logits


def _lowest_of_top_p(logits: Tensor, top_p: float) -> Tensor:
    """(R, 1) the logit of the last token that the mass of `top_p` needs; the first one is always kept.

    A vocabulary is rarely sorted whole: the likeliest tokens have that mass nearly always.
    """
    total = logits.logsumexp(1, keepdim=True)
    ranked = logits.topk(min(TOP_P_CANDIDATES, logits.shape[1])).values
    if bool(((ranked - total).exp().sum(1) < top_p).any()):
        ranked = logits.sort(descending=True).values
    probs = (ranked - total).exp()
    needed = (probs.cumsum(1) - probs < top_p).sum(1, keepdim=True).clamp(min=1)
    return ranked.gather(1, needed - 1)


def _logsumexp(logits: Tensor) -> Tensor:
    total = logits.logsumexp(1)
    if not bool(total.isfinite().all()):
        rows = (~total.isfinite()).sum().item()
        raise FloatingPointError(
            f"the model's logits are NaN or infinite in {rows} of {len(logits)} rows, so no token can be drawn. "
            "Fix: look for a weight that is not finite (a learning rate that is too high, an overflow in float16)."
        )
    return total


def _at(values: Tensor, tokens: Tensor) -> Tensor:
    return values.gather(1, tokens[:, None]).squeeze(1)


def _exact_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _mix(state: Tensor) -> Tensor:
    """The output function of splitmix64: a bijection of 64-bit integers."""
    state = (state ^ _shift(state, 30)) * FACTOR_1
    state = (state ^ _shift(state, 27)) * FACTOR_2
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    """Logical right shift of signed integers."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The signed 64-bit integer with the last 64 bits of `value`."""
    return (value + 2**63) % 2**64 - 2**63
