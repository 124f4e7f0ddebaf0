"""Rows that share their prompts: keys and values of a prompt are there once, and those of answers in rows.

A new token attends to both parts apart, and the two are put together by their log-sum-exps a (prompt) and b (answer):

    output = w output_prompt + (1 - w) output_answer,   w = exp(a) / (exp(a) + exp(b)) = sigmoid(a - b)

so that a prompt is read once for all of its answers. For attention that is softmax(scaling q k) v and nothing else.

Source: Hydragen (2402.05099) section 3.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import AttentionInterface

from burnish.generation.cache import Prefill, Room
from burnish.generation.placed import PlacedRows, attention_windows, contents, kept_dtype
from burnish.models.attention import attention_of, refuse_more_than_plain
from burnish.models.flash import flash, runs_flash
from burnish.models.introspect import UnsupportedModelError, takes_attention, trunk_of

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

NAME = "burnish_shared_rows"
MIN_TOKENS, MIN_ROWS = 64, 4  # of a prompt; below, two attentions cost as much as they save


class PromptPool:
    """Prompts of rows that are being decoded, each once: of every layer keys and values (places, heads, tokens, size).

    Args:
        num_tokens: of the longest prompt.

    Attributes:
        layers: keys and values of each layer; a prompt's tokens begin in the first column.
        lengths: tokens of the prompt in each place.
    """

    def __init__(self, num_tokens: int) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.lengths: list[int] = []
        self._num_tokens = num_tokens
        self._owners: list[tuple[weakref.ref[Prefill], int]] = []

    def place_of(self, prefill: Prefill, number: int) -> int:
        """Where a prompt is; it is put there if it is not."""
        for place, (owner, own_number) in enumerate(self._owners):
            if owner() is prefill and own_number == number:
                return place
        self._owners.append((weakref.ref(prefill), number))
        self.lengths.append(prefill.lengths[number])
        if not self.layers:
            self.layers = [self._empty(*contents(layer)) for layer in prefill.cache.layers]
        if len(self.lengths) > len(self.layers[0][0]):
            self.layers = [(_doubled(keys), _doubled(values)) for keys, values in self.layers]
        for pool, prompts in zip(self.layers, prefill.cache.layers, strict=True):
            for buffer, states in zip(pool, contents(prompts), strict=True):
                buffer[len(self.lengths) - 1, :, : self.lengths[-1]] = states[number, :, -self.lengths[-1] :]
        return len(self.lengths) - 1

    def keep(self, places: Sequence[int]) -> dict[int, int]:
        """Let the other prompts go; the last ones move into their places. Returns the new place of each that stays."""
        tails = [place for place in places if place >= len(places)]
        holes = sorted(set(range(len(places))).difference(places))
        for tail, hole in zip(tails, holes, strict=True):
            for buffer in (buffer for pool in self.layers for buffer in pool):
                buffer[hole] = buffer[tail]
        moved = dict(zip(tails, holes, strict=True))
        order = sorted(places, key=lambda place: moved.get(place, place))
        self.lengths = [self.lengths[place] for place in order]
        self._owners = [self._owners[place] for place in order]
        return {place: moved.get(place, place) for place in places}

    def _empty(self, *states: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = (
            torch.zeros(1, like.shape[1], self._num_tokens, like.shape[3], dtype=kept_dtype(like), device=like.device)
            for like in states
        )
        return keys, values


@dataclass(frozen=True, eq=False)
class Groups:
    """Which rows belong to which prompt, as the attention to prompts takes them: P groups of at most G rows.

    Attributes:
        shape: (P, G).
        rows: (P G,) the row in each place, any of its own where a group is smaller; None: all rows in their order.
        places: (R,) the place of each row; None: as `rows`.
        num_tokens: tokens of the longest of the prompts.
        hidden: (P, 1, 1, L) -inf behind the end of a prompt; None: all are as long.
    """

    shape: tuple[int, int]
    rows: Int[Tensor, "PG"] | None
    places: Int[Tensor, "R"] | None
    num_tokens: int
    hidden: Float[Tensor, "P 1 1 L"] | None

    @classmethod
    def of(cls, prompt_of: Sequence[int], lengths: Sequence[int], device: torch.device, dtype: torch.dtype) -> Groups:
        """The groups of rows whose prompts are `prompt_of`, numbers of prompts that are `lengths` long."""
        groups: list[list[int]] = [[] for _ in lengths]
        for row, prompt in enumerate(prompt_of):
            groups[prompt].append(row)
        most, longest = max(map(len, groups)), max(lengths)
        rows = [row for group in groups for row in group + group[:1] * (most - len(group))]
        hidden = None
        if min(lengths) < longest:
            is_behind = torch.arange(longest)[None] >= torch.tensor(lengths)[:, None]  # (P, L)
            hidden = _minus_infinity(is_behind.to(device), dtype)
        if rows == list(range(len(prompt_of))):
            return cls((len(groups), most), None, None, longest, hidden)
        places = {row: place for place, row in reversed(list(enumerate(rows)))}
        order = torch.tensor([places[row] for row in range(len(prompt_of))], device=device)
        return cls((len(groups), most), torch.tensor(rows, device=device), order, longest, hidden)


class SharedRows(PlacedRows):
    """Rows of answers as in `PlacedRows`, with their prompts in a pool. On the CPU.

    Args:
        config: of the model.
        room: sizes of the buffers.

    Raises:
        UnsupportedModelError: a layer keeps something else than keys and values, or its window is shorter than a row.
    """

    sentence: ClassVar[str] = "a prompt is kept and read once for all of its answers, which are written in place"

    def __init__(self, config: PreTrainedConfig, room: Room) -> None:
        super().__init__(config, replace(room, longest_prompt=0))
        self.longest_row = room.longest_prompt + room.max_new_tokens
        if self.longest_row > _shortest_window(config):
            raise UnsupportedModelError(
                f"rows of {self.longest_row} tokens are longer than a window of {_shortest_window(config)}"
            )
        self.pool = PromptPool(room.longest_prompt)
        self.groups: Groups | None = None  # None: they have changed
        self.hidden: Tensor | None = None  # (R, 1, 1, width) -inf before the beginning of an answer; None: nowhere
        self._prompt_of: list[int] = []

    @classmethod
    def pays(cls, config: PreTrainedConfig, room: Room) -> bool:
        """See `RowCache`."""
        fits = room.longest_prompt + room.max_new_tokens <= _shortest_window(config)
        return fits and room.longest_prompt >= MIN_TOKENS and room.rows_per_prompt >= MIN_ROWS

    def admit(self, prefill: Prefill, source: Sequence[int]) -> None:
        """See `RowCache`."""
        for layer, prompts in zip(self.layers, prefill.cache.layers, strict=True):
            if not layer.is_initialized:
                layer.make_buffers(*contents(prompts), self.room.num_rows, self._capacity)
        self._prompt_of += [self.pool.place_of(prefill, number) for number in source]
        self._starts += [self.columns.end] * len(source)
        self.groups = None
        self._settle(prefill.mask.device)

    def keep(self, staying: Int[Tensor, "S"]) -> Int[Tensor, "S"]:
        """See `RowCache`."""
        order = super().keep(staying)
        kept = [self._prompt_of[row] for row in order.tolist()]
        places = self.pool.keep(sorted(set(kept)))
        self._prompt_of = [places[prompt] for prompt in kept]
        self.groups = None
        return order

    def next_inputs(self) -> dict[str, Any]:
        """See `RowCache`."""
        inputs = super().next_inputs()
        is_there = inputs.pop("attention_mask").bool()  # (R, width)
        device, dtype = is_there.device, self.pool.layers[0][0].dtype
        if self.groups is None:
            self.groups = Groups.of(self._prompt_of, self.pool.lengths, device, dtype)
            self._prompt_lengths = torch.tensor([self.pool.lengths[n] for n in self._prompt_of], device=device)[:, None]
        self.hidden = None
        if min(self._starts) < max(self._starts):
            self.hidden = _minus_infinity(~is_there, dtype)
        inputs["position_ids"] = inputs["position_ids"] + self._prompt_lengths
        return {**inputs, "shared_rows": self}

    @contextmanager
    def attention(self, model: PreTrainedModel) -> Iterator[None]:
        """See `RowCache`."""
        trunk = trunk_of(model)
        if not takes_attention(trunk):
            raise UnsupportedModelError("its attention cannot be replaced")
        with attention_of(trunk, NAME):
            yield


def shared_attention(
    module: nn.Module,
    query: Float[Tensor, "R Hq 1 D"],
    key: Float[Tensor, "R Hk w D"],
    value: Float[Tensor, "R Hk w D"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    shared_rows: SharedRows | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "R 1 Hq D"], None]:
    """What transformers calls in every layer for a new token of rows that share their prompts.

    Raises:
        NotImplementedError: the layer's attention is more than softmax(scaling q k) v, or torch has no flash for it.
    """
    if shared_rows is None:
        raise NotImplementedError("attention of shared rows without the rows")
    refuse_more_than_plain(attention_mask, dropout, kwargs)
    if sliding_window is not None and sliding_window < shared_rows.longest_row:
        raise NotImplementedError(f"attention with a window of {sliding_window} over {shared_rows.longest_row} tokens")
    groups, layer_index = shared_rows.groups, cast("int", module.layer_idx)
    assert groups is not None
    rows, heads, _, size = query.shape
    own = query.to(key.dtype).view(rows, key.shape[1], -1, size)  # (R, Hk, rep, D): heads that share keys as tokens
    answer, answer_lse = _attend(own, key, value, shared_rows.hidden, scaling)
    keys, values = (
        buffer[: groups.shape[0], :, : groups.num_tokens] for buffer in shared_rows.pool.layers[layer_index]
    )
    grouped = own if groups.rows is None else own[groups.rows]
    grouped = grouped.view(*groups.shape, heads, size).transpose(1, 2)  # (P, Hq, G, D)
    prompt, prompt_lse = (
        states.transpose(1, 2) for states in _attend(grouped, keys, values, groups.hidden, scaling)
    )  # (P, G, Hq, D), (P, G, Hq)
    if groups.places is not None:
        prompt, prompt_lse = (states.flatten(0, 1)[groups.places] for states in (prompt, prompt_lse))
    answer, answer_lse = answer.reshape(prompt.shape), answer_lse.reshape(prompt_lse.shape)
    weight = torch.sigmoid(prompt_lse - answer_lse)[..., None].to(answer.dtype)
    return torch.lerp(answer, prompt, weight).reshape(rows, 1, heads, -1).to(query.dtype), None


AttentionInterface.register(NAME, shared_attention)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, scaling: float | None
) -> tuple[Tensor, Tensor]:
    """Output (B, Hq, M, D) and log-sum-exp (B, Hq, M); `key` and `value` have as many heads or fewer."""
    if not runs_flash(query.device.type):
        raise NotImplementedError("torch has no flash attention here that gives its log-sum-exp")
    return flash(query, key, value, bias=hidden, scale=scaling)


def _shortest_window(config: PreTrainedConfig) -> int:
    return min((window for window in attention_windows(config) if window is not None), default=sys.maxsize)


def _minus_infinity(where: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, 1, n) -inf where `where` (B, n) is true, else 0."""
    return torch.zeros(where.shape, dtype=dtype, device=where.device).masked_fill_(where, -math.inf)[:, None, None]


def _doubled(buffer: Tensor) -> Tensor:
    return torch.cat([buffer, torch.zeros_like(buffer)])
