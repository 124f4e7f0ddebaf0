"""Rows in buffers that are made once: a new token is written into its place, and nothing of what stays is copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from burnish.generation.cache import Prefill, Room, RowCache
from burnish.models.introspect import UnsupportedModelError

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor
    from transformers import PreTrainedConfig

SLACK = 64  # columns; the buffers are moved to their beginning once in so many tokens


@dataclass
class Columns:
    """The columns of the buffers that are in use: all rows end in the same one, so their distances are those of tokens.

    Attributes:
        num_rows: rows in use, from the first on.
        first: the first column that any row needs.
        end: the column after the last token.
    """

    num_rows: int = 0
    first: int = 0
    end: int = 0

    @property
    def width(self) -> int:
        """Columns in use."""
        return self.end - self.first


class PlacedLayer(CacheLayerMixin):
    """Keys and values of one layer in buffers (rows, heads, columns, size of a head).

    Args:
        columns: of all layers.
        window: the layer attends to the last so many tokens; None: to all.
    """

    def __init__(self, columns: Columns, window: int | None) -> None:
        super().__init__()
        self.columns, self.window = columns, window
        self.is_sliding = window is not None

    def make_buffers(self, keys: Tensor, values: Tensor, num_rows: int, num_columns: int) -> None:
        """Buffers for keys and values like these; under autocast in its precision, in which they are attended to.

        They begin as zeros, since what a mask hides is multiplied by 0 all the same.
        """
        self.keys, self.values = (
            torch.zeros(num_rows, like.shape[1], num_columns, like.shape[3], dtype=kept_dtype(like), device=like.device)
            for like in (keys, values)
        )
        self.is_initialized = True

    def place(self, keys: Tensor, values: Tensor, source: Int[Tensor, "r"]) -> None:
        """Write the ends of some prompts into the rows behind those in use, up to the last column in use."""
        first, end = self.columns.num_rows, self.columns.end
        rows = slice(first, first + len(source))
        for buffer, new in self._buffers(keys, values):
            buffer[rows, :, end - new.shape[2] : end] = new[source].to(buffer.dtype)

    def move_rows(self, sources: Int[Tensor, "m"], targets: Int[Tensor, "m"]) -> None:
        """Copy rows over others."""
        used = slice(self.columns.first, self.columns.end)
        for buffer, _ in self._buffers():
            buffer[targets, :, used] = buffer[sources, :, used]

    def move_columns(self, new_end: int) -> None:
        """Copy the columns in use to where they end in another one."""
        rows, columns = self.columns.num_rows, self.columns
        for buffer, _ in self._buffers():
            kept = buffer[:rows, :, columns.first : columns.end].clone()  # the two places may overlap
            buffer[:rows, :, new_end - columns.width : new_end] = kept

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one token a row; returns what the layer attends to. See `CacheLayerMixin`."""
        del args, kwargs
        rows, end = self.columns.num_rows, self.columns.end
        length, _ = self.get_mask_sizes(1)
        attended: list[Tensor] = []
        for buffer, new in self._buffers(key_states, value_states):
            used = buffer[:rows]
            used[:, :, end - 1 : end].copy_(new)
            attended.append(used[:, :, end - length : end])
        return attended[0], attended[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number and offset of the columns that are attended to. See `CacheLayerMixin`."""
        del query_length
        width = self.columns.width
        length = width if self.window is None else min(width, self.window)
        return length, width - length

    def get_seq_length(self) -> int:
        """Tokens before the new one. See `CacheLayerMixin`."""
        return self.columns.width - 1

    def get_max_length(self) -> int:
        """No limit that a model should know of. See `CacheLayerMixin`."""
        return -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Never called: the first prompt makes the buffers."""
        raise AssertionError("a row joins with its prompt")

    def _buffers(self, *new: Tensor) -> list[tuple[Tensor, Any]]:
        assert self.keys is not None
        assert self.values is not None
        return list(zip((self.keys, self.values), new or (None, None), strict=True))


class PlacedRows(RowCache):
    """Rows in buffers that are made once, in the layers of a `Cache` of transformers.

    All rows end in the same column, whatever their length and whenever they joined. To the model they look like rows
    that are padded on the left, so that its own attention, masks and sliding windows are right.

    Args:
        config: of the model.
        room: sizes of the buffers.

    Raises:
        UnsupportedModelError: a layer keeps something else than keys and values.
    """

    takes_more = True
    sentence = "keys and values are written in place, and waiting rows take the places of finished ones"

    def __init__(self, config: PreTrainedConfig, room: Room) -> None:
        self.room, self.columns = room, Columns(first=room.longest_prompt, end=room.longest_prompt)
        self._capacity = room.longest_prompt + room.max_new_tokens + (SLACK if room.refills else 0)
        self.layers = [PlacedLayer(self.columns, window) for window in attention_windows(config)]
        self.cache = Cache(layers=list(self.layers))
        self._starts: list[int] = []  # the first column of each row

    def admit(self, prefill: Prefill, source: Sequence[int]) -> None:
        """See `RowCache`."""
        device = prefill.mask.device
        chosen = torch.tensor(source, device=device)
        for layer, prompts in zip(self.layers, prefill.cache.layers, strict=True):
            keys, values = contents(prompts)
            if not layer.is_initialized:
                layer.make_buffers(keys, values, self.room.num_rows, self._capacity)
            layer.place(keys, values, chosen)
        self._starts += [self.columns.end - prefill.lengths[number] for number in source]
        self._settle(device)

    def keep(self, staying: Int[Tensor, "S"]) -> Int[Tensor, "S"]:
        """See `RowCache`: the last rows move into the places that became free."""
        kept = staying.tolist()
        places = set(range(len(kept)))
        tails = [row for row in kept if row >= len(kept)]
        holes = sorted(places.difference(kept))
        if holes:
            sources, targets = (torch.tensor(rows, device=staying.device) for rows in (tails, holes))
            for layer in self.layers:
                layer.move_rows(sources, targets)
        moved = dict(zip(holes, tails, strict=True))
        order = [moved.get(place, place) for place in range(len(kept))]
        self._starts = [self._starts[row] for row in order]
        self._settle(staying.device)
        return torch.tensor(order, dtype=torch.int64, device=staying.device)

    def next_inputs(self) -> dict[str, Any]:
        """See `RowCache`."""
        columns = self.columns
        if columns.end == self._capacity:
            self._move_back()
        columns.end += 1
        here = torch.arange(columns.first, columns.end, device=self._first.device)
        return {
            "attention_mask": (here >= self._first).long(),  # (R, width)
            "position_ids": columns.end - 1 - self._first,  # (R, 1)
            "past_key_values": self.cache,
        }

    def _move_back(self) -> None:
        """Move the columns in use towards the beginning; a prompt has to fit before their end afterwards too."""
        columns = self.columns
        new_end = max(columns.width, self.room.longest_prompt)
        for layer in self.layers:
            layer.move_columns(new_end)
        distance = columns.end - new_end
        columns.first, columns.end = columns.first - distance, new_end
        self._starts = [start - distance for start in self._starts]
        self._settle(self._first.device)

    def _settle(self, device: torch.device) -> None:
        self.columns.num_rows = len(self._starts)
        self.columns.first = min(self._starts, default=self.columns.end)
        self._first = torch.tensor(self._starts, device=device)[:, None]  # (R, 1)


def attention_windows(config: PreTrainedConfig) -> list[int | None]:
    """The window of each layer's attention, None for the whole text.

    Raises:
        UnsupportedModelError: a layer keeps something else than keys and values.
    """
    layers = DynamicCache(config=config).layers
    other = sorted({type(layer).__name__ for layer in layers} - {"DynamicLayer", "DynamicSlidingWindowLayer"})
    if other or not layers:
        raise UnsupportedModelError(f"it keeps {', '.join(other) or 'no layers'} beside keys and values")
    return [layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None for layer in layers]


def contents(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values (P, heads, columns, size) that a prompt has left in a layer of a `DynamicCache`."""
    assert isinstance(layer, DynamicLayer)
    if layer.keys is None or layer.values is None:
        raise UnsupportedModelError("its prompts leave a layer without keys")
    return layer.keys, layer.values


def kept_dtype(states: Tensor) -> torch.dtype:
    """In what keys or values are kept: under autocast in its precision, in which they are attended to."""
    device = states.device.type
    is_cast = torch.is_autocast_enabled(device) and states.dtype == torch.float32
    return torch.get_autocast_dtype(device) if is_cast else states.dtype
