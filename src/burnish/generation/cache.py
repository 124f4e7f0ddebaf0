"""Where the keys and values of answers live while they are drawn: what is common to all kinds, and the plainest one.

Rows join a `RowCache` with the keys and values of their prompt, grow by one token a step, and leave.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor
    from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefill:
    """Prompts that have been run.

    Attributes:
        cache: their keys and values.
        mask: (P, L) 1 where a token is; prompts are padded on the left.
        lengths: tokens of each prompt.
        logits: (P, V) of the tokens that follow.
    """

    cache: DynamicCache
    mask: Int[Tensor, "P L"]
    lengths: tuple[int, ...]
    logits: Float[Tensor, "P V"]


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a cache has to hold.

    Attributes:
        num_rows: rows that are decoded at the same time.
        longest_prompt: tokens.
        rows_per_prompt: answers to each prompt.
        max_new_tokens: of an answer.
        refills: rows wait until others have ended.
    """

    num_rows: int
    longest_prompt: int
    rows_per_prompt: int
    max_new_tokens: int
    refills: bool


class RowCache(ABC):
    """The rows that are being decoded, in an order of its own.

    Attributes:
        takes_more: rows may join others that are being decoded.
        sentence: what it does.
        is_last_resort: looked at only if nothing else is exact.
    """

    takes_more: ClassVar[bool]
    sentence: ClassVar[str]
    is_last_resort: ClassVar[bool] = False

    @classmethod
    def pays(cls, config: PreTrainedConfig, room: Room) -> bool:
        """It can hold such a batch of this model, and is faster than what comes after it in `CACHES`."""
        del config, room
        return True

    @abstractmethod
    def admit(self, prefill: Prefill, source: Sequence[int]) -> None:
        """Add a row for each number of a prompt in `source`, behind the rows that are there."""

    @abstractmethod
    def keep(self, staying: Int[Tensor, "S"]) -> Int[Tensor, "S"]:
        """Let the other rows go; returns the numbers of the rows that stay, in the order in which they now are."""

    @abstractmethod
    def next_inputs(self) -> dict[str, Any]:
        """Make room for one more token of every row; returns what the model takes beside the tokens themselves."""

    def attention(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """What has to be open while the model takes the new tokens in."""
        del model
        return nullcontext()


class GrowingRows(RowCache):
    """Rows in a `DynamicCache`, which grows by concatenation: every step copies it. Rows join only while it is empty.

    Args:
        config: of the model.
        room: not read: the cache takes what it gets.
    """

    takes_more = False
    is_last_resort = True
    sentence = "keys and values grow by copying"

    def __init__(self, config: PreTrainedConfig, room: Room) -> None:
        del config, room

    def admit(self, prefill: Prefill, source: Sequence[int]) -> None:
        """See `RowCache`."""
        self._cache, self._mask = prefill.cache, prefill.mask
        self.keep(torch.tensor(source, device=prefill.mask.device))

    def keep(self, staying: Int[Tensor, "S"]) -> Int[Tensor, "S"]:
        """See `RowCache`."""
        self._cache.reorder_cache(staying)  # pyright: ignore[reportArgumentType]
        self._mask = self._mask[staying]
        return staying

    def next_inputs(self) -> dict[str, Any]:
        """See `RowCache`."""
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        positions = self._mask.sum(1, keepdim=True) - 1  # (R, 1): padding does not count
        return {"attention_mask": self._mask, "position_ids": positions, "past_key_values": self._cache}
