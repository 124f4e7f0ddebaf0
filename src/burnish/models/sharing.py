"""Which layout a model takes: found out once, by comparing each with plain rows on a made-up batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from burnish.models.introspect import (
    evaluation_mode,
    layer_kinds,
    num_dropouts,
    places_tokens,
    sliding_windows,
    takes_attention,
)
from burnish.models.layout import LAYOUTS, TREE_ATTENTIONS, RowOutputs, run_rows, run_tree
from burnish.models.lean import keeping_less
from burnish.models.recomputed import recomputes, recomputing
from burnish.models.tree import make_tree
from burnish.models.upcast import in_float32
from burnish.types import TokenBatch

if TYPE_CHECKING:
    from torch import Tensor, nn

TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-4, 5e-2
SHARING = ("auto", "tree", "cache", "off")
# The kinds of layers that a layout is right for. What a recurrent layer keeps in a cache has no gradient.
KINDS = {
    "tree": frozenset({"full_attention", "sliding_attention"}),
    "cache": frozenset({"full_attention", "sliding_attention", "chunked_attention", "conv"}),
}
MAX_SCORES = 1 << 26  # of one layer's attention over a tree, 256 MB in float32
MIN_SAVED = 0.05
# What the line about the layout says of gradient checkpointing.
CHECKPOINTED = {
    "tree": "under gradient checkpointing too",
    "rows": "and under gradient checkpointing anew for each of them (layout rows)",
}


@dataclass(frozen=True)
class Sharing:
    """How a trunk runs over prompts that several completions share.

    Attributes:
        layout: `tree`, `cache` or `rows`.
        reason: why not a faster one; empty if there is none.
        device: the type of the device on which that was found out.
        recomputed: the layout under gradient checkpointing, `tree` or `rows`; None if nobody asked, and rows then.
    """

    layout: str
    reason: str = ""
    device: str = "cpu"
    recomputed: str | None = None

    @property
    def trained(self) -> str:
        """The layout of passes with a gradient."""
        return self.recomputed or self.layout

    def line(self) -> str:
        """For the console and the report."""
        how = TREE_ATTENTIONS[self.device].words if self.layout == "tree" else ""
        words = {
            "tree": f"A prompt is computed once for all of its answers, and padding not at all (layout tree{how}).",
            "cache": "A prompt is computed once for all of its answers (layout cache).",
            "rows": "A prompt is computed anew for each of its answers (layout rows).",
        }
        line = words[self.layout]
        if self.recomputed is not None and self.layout != "rows":
            line = f"{line[:-1]}, {CHECKPOINTED[self.recomputed]}."
        return line + (f" {self.reason}" if self.reason else "")


PLAIN = Sharing("rows")


def run_trunk(
    trunk: nn.Module, batch: TokenBatch, *, sharing: Sharing = PLAIN, output_router_logits: bool = False
) -> RowOutputs:
    """The trunk over a batch, in the layout that the model takes, or in plain rows where that saves nothing.

    Plain rows too where dropout is on, with images, and where activations are computed again in the backward pass
    unless `sharing` says otherwise.

    Args:
        trunk: of a causal model.
        batch: N rows.
        sharing: of `choose_sharing`.
        output_router_logits: also what the routers of a mixture of experts say.
    """
    with keeping_less(trunk):
        return LAYOUTS[_layout(trunk, batch, sharing)](trunk, batch, output_router_logits=output_router_logits)


def choose_sharing(trunk: nn.Module, wanted: str = "auto", *, gradient_checkpointing: bool = False) -> Sharing:
    """The fastest layout that gives this trunk's own numbers, or the one that is wanted.

    Args:
        trunk: of a causal model, on its device.
        wanted: `auto`; `off` for plain rows; `tree` or `cache`.
        gradient_checkpointing: find out as well how it runs where activations are computed again in the backward pass;
            also found out if they are already.

    Raises:
        ValueError: another word, or a layout that changes what the trunk computes.
    """
    if wanted not in SHARING:
        raise ValueError(f"prefix_sharing={wanted!r}; allowed: {', '.join(SHARING)}")
    if wanted == "off":
        return Sharing("rows", "prefix_sharing is off.")
    reason = ""
    for name in ("tree", "cache") if wanted == "auto" else (wanted,):
        if problem := _problem(trunk, name):
            reason = f"Not {name}: {problem}."
            continue
        found = Sharing(name, reason, _device(trunk).type)
        if not (gradient_checkpointing or recomputes(trunk)):
            return found
        if not (problem := _recomputed_problem(trunk, name)):
            return replace(found, recomputed=name)
        reason = f"Not {name} under gradient checkpointing: {problem}."
        if wanted != "tree":
            return replace(found, recomputed="rows", reason=f"{found.reason} {reason}".lstrip())
    if wanted != "auto":
        raise ValueError(f"prefix_sharing={wanted!r}: {reason} Set prefix_sharing='auto', or 'off'")
    return Sharing("rows", reason)


def _layout(trunk: nn.Module, batch: TokenBatch, sharing: Sharing) -> str:
    """The layout of one batch."""
    is_recomputed = trunk.training and recomputes(trunk)
    name = (sharing.recomputed or "rows") if is_recomputed else sharing.layout
    if name == "rows" or not _may_share(trunk, batch):
        return "rows"
    if name == "tree" and (batch.prompt_ids.device.type != sharing.device or not _fits(trunk, batch)):
        return "rows" if is_recomputed else "cache"
    return name


def _may_share(trunk: nn.Module, batch: TokenBatch) -> bool:
    """Whether another layout than rows is right for this batch, and saves something."""
    if batch.extra or (trunk.training and num_dropouts(trunk)):
        return False
    if not bool(batch.prompt_mask.any(1).all()):
        return False
    num_tokens = int(batch.prompt_mask.sum() + batch.completion_mask.sum())
    in_rows = len(batch) * (batch.prompt_ids.shape[1] + batch.completion_ids.shape[1])
    return num_tokens < (1 - MIN_SAVED) * in_rows


def _fits(trunk: nn.Module, batch: TokenBatch) -> bool:
    """Whether the scores of one layer's attention over the tree, if they are kept, stay within their budget."""
    if not TREE_ATTENTIONS[batch.prompt_ids.device.type].keeps_scores:
        return True
    config: Any = trunk.config
    (num_prompts, length), (rows, tokens) = batch.prompt_ids.shape, batch.completion_ids.shape
    num_scores = num_prompts * length * length + rows * tokens * (length + tokens)
    return num_scores * config.num_attention_heads <= MAX_SCORES


def _problem(trunk: nn.Module, name: str) -> str:
    """Why a layout is not right for a trunk where it is, or an empty string."""
    if places_tokens(trunk):
        return "the model places its tokens by images"
    if others := layer_kinds(trunk) - KINDS[name]:
        return f"it has layers of {', '.join(sorted(others))}"
    if name == "tree" and not takes_attention(trunk):
        return "its attention cannot be replaced"
    if name == "tree" and _device(trunk).type not in TREE_ATTENTIONS:
        return f"there is no attention over a tree for {_device(trunk).type}"
    return _found(partial(_difference, trunk, name))


def _recomputed_problem(trunk: nn.Module, name: str) -> str:
    """Why a layout that is right for a trunk is not under gradient checkpointing, or an empty string."""
    return _found(partial(_recomputed_difference, trunk)) if name == "tree" else "transformers drops it there"


def _found(compare: Callable[[], str]) -> str:
    """What a comparison finds, or what keeps it from running."""
    try:
        return compare()
    except (TypeError, ValueError, NotImplementedError, AttributeError, RuntimeError, IndexError) as error:
        return f"it cannot run so ({str(error).splitlines()[0] if str(error) else type(error).__name__})"


def _device(trunk: nn.Module) -> torch.device:
    embeddings: Any = trunk.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    return embeddings.weight.device


@torch.no_grad()
def _difference(trunk: nn.Module, name: str) -> str:
    """What differs between a layout and plain rows on a made-up batch in float32, or an empty string.

    In bfloat16 one order of sums can be a tenth of the hidden states away from another, as a wrong layout can.
    """
    batch = _probe(trunk)
    tree = make_tree(batch)
    run = partial(run_tree, tree=tree) if name == "tree" else LAYOUTS[name]
    with evaluation_mode(trunk), in_float32(trunk):
        exact, found = run_rows(trunk, batch).hidden, run(trunk, batch).hidden
    if name == "tree" and tree.windows != sliding_windows(trunk):
        return "its layers do not say what their sliding windows are"
    there = torch.cat([torch.ones_like(batch.completion_mask[:, :1]), batch.completion_mask], dim=1)
    return _apart(found[there], exact[there], "hidden states differ from those of plain rows")


def _recomputed_difference(trunk: nn.Module) -> str:
    """What differs between the gradients of a tree whose layers are computed again and not, or an empty string."""
    with evaluation_mode(trunk):
        exact = _gradient(trunk)
        with recomputing(trunk) as num_layers:
            found = _gradient(trunk)
    if not num_layers:
        return "it has no layers that can be computed again"
    return _apart(found, exact, "gradients differ from those of activations that are kept")


def _gradient(trunk: nn.Module) -> Tensor:
    """Of the states of a made-up tree, each with another factor, for the embeddings of its tokens: (1, S, H)."""
    inputs: list[Tensor] = []

    def begin_here(module: nn.Module, args: Any, states: Tensor) -> Tensor:
        del module, args
        inputs.append(states.detach().requires_grad_())
        return inputs[-1]

    embeddings: Any = trunk.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    hook = embeddings.register_forward_hook(begin_here)
    try:
        with torch.enable_grad(), keeping_less(trunk):
            hidden = run_tree(trunk, _probe(trunk)).hidden
    finally:
        hook.remove()
    factors = torch.arange(hidden.numel(), device=hidden.device).cos().view_as(hidden)
    return torch.autograd.grad(hidden, inputs[0], factors.to(hidden.dtype))[0]


def _apart(found: Tensor, exact: Tensor, words: str) -> str:
    """By how much two tensors differ, or an empty string if that is their precision."""
    difference = float((found - exact).double().norm() / exact.double().norm().clamp(min=1e-12))
    is_wide = exact.dtype in (torch.float32, torch.float64)
    if difference <= (TOLERANCE if is_wide else LOW_PRECISION_TOLERANCE):
        return ""
    return f"{words} by {difference:.0e} of their size"


def _probe(trunk: nn.Module) -> TokenBatch:
    """Two prompts of 5 and 3 tokens with two completions and one, of 4, 2 and 3 tokens."""
    embeddings: Any = trunk.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    device, vocabulary = _device(trunk), embeddings.num_embeddings
    prompt_mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], dtype=torch.bool, device=device)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool, device=device)
    ids = torch.arange(1, 23, device=device) % vocabulary
    return TokenBatch(
        prompt_ids=ids[:10].view(2, 5),
        prompt_mask=prompt_mask,
        completion_ids=ids[10:].view(3, 4),
        completion_mask=mask,
        loss_mask=mask,
        prompt_index=torch.tensor([0, 0, 1], device=device),
        row_id=torch.arange(3, device=device),
    )
