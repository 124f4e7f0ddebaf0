"""The rows that a model decodes, its next step through their key-value cache, and the proof that it is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from burnish.models.introspect import UnsupportedModelError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformers import PreTrainedModel

PROBE_TOKENS, PROBE_PADDING, PROBE_STEPS = 8, 2, 2
TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-3, 0.2


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveRows:
    """Answers that are being drawn; one entry a row in every tensor, in the order of the cache.

    Attributes:
        number: (R,) of each answer in its batch.
        mask: (R, C) 1 where a token is in the cache, or about to be; prompts are padded on the left.
        seen: (R, V) tokens of prompt and answer, if there is a repetition penalty.
        cache: keys and values.
    """

    number: Int[Tensor, "R"]
    mask: Int[Tensor, "R C"]
    seen: Bool[Tensor, "R V"] | None
    cache: DynamicCache

    def select(self, rows: Tensor) -> LiveRows:
        """Some of the rows, any of them repeatedly; the cache is cut to them too."""
        self.cache.reorder_cache(rows)  # pyright: ignore[reportArgumentType]
        seen = None if self.seen is None else self.seen[rows]
        return replace(self, number=self.number[rows], mask=self.mask[rows], seen=seen)

    def append(self, tokens: Tensor) -> LiveRows:
        """Each row with one more token."""
        mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        seen = None if self.seen is None else self.seen.scatter(1, tokens[:, None], True)
        return replace(self, mask=mask, seen=seen)


def left_padded(prompts: Sequence[Tensor], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (P, L); each prompt stands at the right end of its row."""
    ids = pad_sequence([*prompts], batch_first=True, padding_value=pad_token_id, padding_side="left")
    ones = [torch.ones_like(prompt, dtype=torch.int64) for prompt in prompts]
    return ids.long(), pad_sequence(ones, batch_first=True, padding_side="left")


def tokens_in(ids: Int[Tensor, "P L"], mask: Int[Tensor, "P L"], vocabulary: int) -> Bool[Tensor, "P V"]:
    """Which tokens occur in each row; padding does not."""
    found = torch.zeros(len(ids), vocabulary, dtype=torch.bool, device=ids.device)
    where = mask.nonzero(as_tuple=True)
    return found.index_put((where[0], ids[where]), torch.tensor(True, device=ids.device))


def next_logits(
    model: PreTrainedModel, ids: Int[Tensor, "R n"], mask: Int[Tensor, "R C"], cache: DynamicCache
) -> Float[Tensor, "R V"]:
    """Logits of the token after some new ones, through the model's own forward; the cache takes the new ones in.

    Args:
        model: a causal model in evaluation mode.
        ids: the new tokens.
        mask: 1 where a token is, over the C columns of the cached tokens and then the new ones.
        cache: keys and values of the tokens before.
    """
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]  # (R, n): padding does not count
    outputs = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        return_dict=True,
    )
    return outputs.logits[:, -1]


@torch.no_grad()
def check_cache(model: PreTrainedModel) -> None:
    """Make sure that a model decodes exactly: a few tokens, token by token, give the logits of a plain forward.

    The row that is compared is padded on the left, stands beside a longer one, and changes its place in the batch.

    Raises:
        UnsupportedModelError: it does not, or keeps what it remembers somewhere else.
    """
    embeddings: Any = model.get_input_embeddings()
    device = embeddings.weight.device
    ids = torch.arange(1, PROBE_TOKENS + 1, device=device) % len(embeddings.weight)  # (8,)
    rows = torch.stack([ids, ids.flip(0)])  # (2, 8)
    mask = torch.ones_like(rows)
    mask[0, :PROBE_PADDING] = 0
    exact = model(input_ids=ids[None, PROBE_PADDING:], use_cache=False).logits[0, -1]
    try:
        found = _decode(model, rows, mask)
    except (TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not decode through a DynamicCache of transformers: {error}. "
            "Fix: pass a generator of your own (docs/generation.md)."
        ) from error
    difference = _relative_difference(found.double(), exact.double())
    is_exact = exact.dtype in (torch.float32, torch.float64)
    if not difference <= (TOLERANCE if is_exact else LOW_PRECISION_TOLERANCE):
        raise UnsupportedModelError(
            f"{type(model).__name__} gives other logits when it decodes through its cache than in a plain forward: "
            f"they differ by {difference:.1e} of their size. Fix: pass a generator of your own (docs/generation.md)."
        )


def _decode(model: PreTrainedModel, rows: Tensor, mask: Tensor) -> Tensor:
    """(V,) logits after the first row, whose last tokens come one by one, in another place of the batch."""
    start = rows.shape[1] - PROBE_STEPS
    cache, order = DynamicCache(config=model.config), torch.tensor([1, 0], device=rows.device)
    logits = next_logits(model, rows[:, :start], mask[:, :start], cache)
    live = LiveRows(number=order, mask=mask[:, :start], seen=None, cache=cache).select(order)
    for tokens in rows[order, start:].unbind(1):
        live = live.append(tokens)
        logits = next_logits(model, tokens[:, None], live.mask, cache)
    return logits[1]


def _relative_difference(left: Tensor, right: Tensor) -> float:
    """Of two vectors of logits, of which only differences between tokens mean something."""
    left, right = left - left.mean(), right - right.mean()
    return ((left - right).norm() / right.norm().clamp(min=1e-12)).item()
