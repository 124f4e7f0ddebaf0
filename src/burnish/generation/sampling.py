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


def uniforms(streams: Int[Tensor, "R"], position: int | Int[Tensor, "R"]) -> Float[Tensor, "R"]:
    """A number in (0, 1) for the token at `position` of each row: element `position` of its splitmix64 sequence."""
    steps = (position + 1) * GAMMA
    state = streams + (_signed(steps) if isinstance(steps, int) else steps)
    bits = _shift(_mix(state), 12)  # 52 of them: exact in float64
    return (bits.to(_exact_dtype(streams)) + 0.5) * 2.0**-52


class Sampler:
    """Draws from one distribution, in memory that it keeps from one step to the next.

    Args:
        params: temperature, filters and end tokens.
    """

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._memory = torch.empty(0)

    def draw(
        self,
        logits: Float[Tensor, "R V"],
        streams: Int[Tensor, "R"],
        positions: Int[Tensor, "R"],
        seen: Bool[Tensor, "R V"] | None = None,
    ) -> Draw:
        """The token at `positions` of each row, each from the random numbers of its stream; see `draw_tokens`."""
        memory = self._memory
        if memory.numel() < logits.numel() or (memory.dtype, memory.device) != (_dtype(logits), logits.device):
            self._memory = torch.empty(logits.numel(), dtype=_dtype(logits), device=logits.device)
        buffer = self._memory[: logits.numel()].view(logits.shape)
        return draw_tokens(
            logits, uniforms(streams, positions), self.params, position=positions, seen=seen, buffer=buffer
        )


def draw_tokens(
    logits: Float[Tensor, "R V"],
    uniforms: Float[Tensor, "R"],
    params: SamplingParams,
    *,
    position: int | Int[Tensor, "R"] = 0,
    seen: Bool[Tensor, "R V"] | None = None,
    buffer: Float[Tensor, "R V"] | None = None,
) -> Draw:
    """Draw one token a row.

    Args:
        logits: the model's own.
        uniforms: a number in (0, 1) for each row.
        params: temperature, filters and end tokens.
        position: tokens that the answers have already, of all rows or of each.
        seen: tokens of prompt and answer so far, for the repetition penalty; not read without one.
        buffer: memory to work in, overwritten; made anew if None.

    Raises:
        FloatingPointError: logits of which nothing can be drawn (NaN, or infinite).
    """
    is_plain = not (params.is_greedy or params.repetition_penalty != 1.0 or _filters(params, position))
    if is_plain:
        return _draw_unfiltered(logits, uniforms, params.temperature, buffer)
    logits = logits.to(_dtype(logits))
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


def _draw_unfiltered(logits: Tensor, uniforms: Tensor, temperature: float, buffer: Tensor | None) -> Draw:
    """A draw from softmax(logits / temperature): one exponential an entry, in one buffer, and nothing normalised."""
    highest = logits.amax(1, keepdim=True).to(_dtype(logits))  # (R, 1)
    masses = logits - highest if buffer is None else torch.sub(logits, highest, out=buffer)
    if temperature != 1.0:
        masses.div_(temperature)
    masses.exp_()
    sums = _block_sums(masses)
    total = sums.sum(1)  # (R,) from 1 to V
    _check_finite(total)
    tokens = _inverse_cdf(masses, sums, uniforms)
    logps = _at(masses, tokens).log() - total.log().to(masses.dtype)
    return Draw(tokens, logps, torch.ones_like(logps))


def inverse_cdf(masses: Float[Tensor, "R V"], uniforms: Float[Tensor, "R"]) -> Int[Tensor, "R"]:
    """The index at which the cumulative sum of each row passes `uniforms` of its total; never one of mass 0.

    The sum goes over blocks first and then inside one block, in float64 where the device has it.
    """
    return _inverse_cdf(masses, _block_sums(masses), uniforms)


def _inverse_cdf(masses: Tensor, sums: Tensor, uniforms: Tensor) -> Tensor:
    block, rest = _passed(sums, uniforms.to(sums.dtype) * sums.sum(1))
    columns = block[:, None] * BLOCK + torch.arange(BLOCK, device=block.device)  # (R, 256)
    is_real = columns < masses.shape[1]
    inside = masses.gather(1, columns.clamp(max=masses.shape[1] - 1)).to(sums.dtype) * is_real
    return block * BLOCK + _passed(inside, rest)[0]


def _block_sums(masses: Tensor) -> Tensor:
    """(R, V/256) the mass of each block of the vocabulary; the last one may be short."""
    whole = masses.shape[1] // BLOCK * BLOCK
    sums = masses[:, :whole].unflatten(1, (-1, BLOCK)).sum(2)
    if whole < masses.shape[1]:
        sums = torch.cat([sums, masses[:, whole:].sum(1, keepdim=True)], dim=1)
    return sums.to(_exact_dtype(masses))


def _passed(masses: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) the first index whose cumulative sum is above the target, and how far into its mass the target lies."""
    edges = masses.cumsum(1)  # (R, K)
    below = torch.nextafter(edges[:, -1], torch.zeros_like(targets))
    targets = torch.minimum(targets, below).clamp(min=0.0)[:, None]  # (R, 1)
    index = torch.searchsorted(edges, targets, right=True)
    return index.squeeze(1), (targets - edges.gather(1, index) + masses.gather(1, index)).squeeze(1)


def _filters(params: SamplingParams, position: int | Tensor) -> bool:
    """Some token may not be drawn."""
    if params.top_k or params.min_p or params.top_p < 1:
        return True
    may_ban = bool(params.end_token_ids and params.min_new_tokens)
    return may_ban and bool((torch.as_tensor(position) < params.min_new_tokens).any())


def _filter(logits: Tensor, params: SamplingParams, position: int | Tensor) -> Tensor:
    """-inf for every token that may not be drawn; the logits themselves if all may."""
    if params.end_token_ids and params.min_new_tokens:
        ends = torch.tensor(params.end_token_ids, device=logits.device)
        is_early = (torch.as_tensor(position, device=logits.device) < params.min_new_tokens).expand(len(logits))
        banned = logits.index_fill(1, ends, -math.inf)
        logits = torch.where(is_early[:, None], banned, logits) if bool(is_early.any()) else logits
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
    _check_finite(total)
    return total


def _check_finite(totals: Tensor) -> None:
    if not bool(totals.isfinite().all()):
        rows = (~totals.isfinite()).sum().item()
        raise FloatingPointError(
            f"the model's logits are NaN or infinite in {rows} of {len(totals)} rows, so no token can be drawn. "
            "Fix: look for a weight that is not finite (a learning rate that is too high, an overflow in float16)."
        )


def _at(values: Tensor, tokens: Tensor) -> Tensor:
    return values.gather(1, tokens[:, None]).squeeze(1)


def _dtype(logits: Tensor) -> torch.dtype:
    """Half precision is sampled in float32."""
    return torch.promote_types(logits.dtype, torch.float32)


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
