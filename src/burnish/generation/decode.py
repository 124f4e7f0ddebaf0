"""The model's own forward as an engine uses it: prompts, one more token a row, and the proof that a cache is exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from burnish.generation.cache import Prefill, Room, RowCache
from burnish.generation.kinds import CACHES
from burnish.models.introspect import UnsupportedModelError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformers import PreTrainedModel

PROBE_TOKENS, PROBE_PADDING, PROBE_STEPS = 8, 2, 2
TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-3, 0.2


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


def prefill(model: PreTrainedModel, ids: Int[Tensor, "P L"], mask: Int[Tensor, "P L"]) -> Prefill:
    """Run some prompts; only their last positions meet the head.

    Args:
        model: a causal model in evaluation mode.
        ids: left-padded.
        mask: 1 where a token is.
    """
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # (P, L): padding does not count
    logits = _logits(model, ids, {"attention_mask": mask, "position_ids": positions, "past_key_values": cache})
    return Prefill(cache=cache, mask=mask, lengths=tuple(mask.sum(1).tolist()), logits=logits)


def next_logits(model: PreTrainedModel, tokens: Int[Tensor, "R"], cache: RowCache) -> Float[Tensor, "R V"]:
    """Logits of the token after a new one in each row, which the cache takes in; through the model's own forward."""
    inputs = cache.next_inputs()
    with cache.attention(model):
        return _logits(model, tokens[:, None], inputs)


def _logits(model: PreTrainedModel, ids: Tensor, inputs: dict[str, Any]) -> Tensor:
    return model(input_ids=ids, use_cache=True, logits_to_keep=1, return_dict=True, **inputs).logits[:, -1]


def check_cache(model: PreTrainedModel, kind: str = "dynamic") -> None:
    """Make sure that a model decodes exactly through a cache; see `problem_with`.

    Raises:
        UnsupportedModelError: it does not, or keeps what it remembers somewhere else.
    """
    if problem := problem_with(model, kind):
        raise UnsupportedModelError(
            f"{type(model).__name__} does not decode exactly through a cache of transformers ({kind}): {problem}. "
            "Fix: pass a generator of your own (docs/generation.md)."
        )


@torch.no_grad()
def problem_with(model: PreTrainedModel, kind: str) -> str:
    """Why a model does not decode exactly through a cache, or an empty string.

    Exact is what gives the logits of a plain forward when a few tokens come one by one. The row that is compared is
    padded on the left, stands beside longer ones, joins them late if rows may, and moves when another one leaves. Its
    tokens are from all over the vocabulary: what a model says after its first few, which are special ones, may be so
    flat that bfloat16 leaves nothing of it.

    Args:
        model: a causal model in evaluation mode.
        kind: a name of `CACHES`.
    """
    embeddings: Any = model.get_input_embeddings()
    device, vocabulary = embeddings.weight.device, len(embeddings.weight)
    ids = (
        torch.arange(1, PROBE_TOKENS + 1, device=device) * max(1, vocabulary // (PROBE_TOKENS + 1)) % vocabulary
    )  # (8,)
    exact = model(input_ids=ids[None, PROBE_PADDING:], use_cache=False).logits[0, -1]
    try:
        found = _decode(model, ids, kind)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        return str(error) or type(error).__name__
    difference = _relative_difference(found.double(), exact.double())
    is_exact = exact.dtype in (torch.float32, torch.float64)
    if difference <= (TOLERANCE if is_exact else LOW_PRECISION_TOLERANCE):
        return ""
    return f"its logits differ from those of a plain forward by {difference:.1e} of their size"


def _decode(model: PreTrainedModel, ids: Tensor, kind: str) -> Tensor:
    """(V,) logits after `ids` without its first tokens, the last ones fed one by one beside rows of other tokens."""
    start = PROBE_TOKENS - PROBE_STEPS
    other = ids.flip(0)
    rows = torch.stack([ids, other])[:, :start]
    mask = torch.ones_like(rows)
    mask[0, :PROBE_PADDING] = 0
    room = Room(num_rows=3, longest_prompt=start, rows_per_prompt=2, max_new_tokens=PROBE_STEPS + 1, refills=True)
    cache, prompts = CACHES[kind](model.config, room), prefill(model, rows, mask)
    if cache.takes_more:
        cache.admit(prompts, [1, 1])
        next_logits(model, other[-2:], cache)
        cache.admit(prompts, [0])
    else:
        cache.admit(prompts, [1, 1, 0])
    next_logits(model, torch.cat([other[:2], ids[start : start + 1]]), cache)
    order = cache.keep(torch.tensor([1, 2], device=ids.device)).tolist()
    tokens = torch.where(torch.tensor(order, device=ids.device) == 2, ids[-1], other[0])
    return next_logits(model, tokens, cache)[order.index(2)]


def _relative_difference(left: Tensor, right: Tensor) -> float:
    """Of two vectors of logits, of which only differences between tokens mean something."""
    left, right = left - left.mean(), right - right.mean()
    return ((left - right).norm() / right.norm().clamp(min=1e-12)).item()
