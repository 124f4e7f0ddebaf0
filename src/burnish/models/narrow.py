"""Norms of a float32 trunk whose output only matrix products read: under autocast they give it in the products' dtype.

Autocast casts what goes into each product: what a norm gives up to three times, and the backward pass keeps each cast.
Here it is cast once, and kept as its recipe. Which norms those are is found out on a few tokens, for which they give
numbers that bfloat16 rounds: hidden states stay the same bit for bit, which they do not where anything else reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from burnish.models.introspect import evaluation_mode

if TYPE_CHECKING:
    from torch import Tensor, nn

NUM_TOKENS = 6
_MARK = "_burnish_narrow"


def narrow_norms(trunk: nn.Module, norms: Sequence[nn.Module]) -> None:
    """Let those of the norms of which it changes nothing cast their output, in place, by their role in a layer.

    Args:
        trunk: of a causal model.
        norms: modules of it whose forward asks `is_narrow`.
    """
    candidates = {id(norm) for norm in norms}
    of_roles: dict[str, list[nn.Module]] = {}
    for name, module in trunk.named_modules():
        vars(module).pop(_MARK, None)
        if id(module) in candidates and next(module.parameters()).dtype == torch.float32:
            of_roles.setdefault(_role(name), []).append(module)
    tried = [norm for modules in of_roles.values() for norm in modules]
    exact = _states(trunk, tried) if tried else None
    if exact is None:
        return
    found = [own for own in of_roles.values() if _are_equal(_states(trunk, tried, cast=own), exact)]
    for norm in (norm for own in found for norm in own):
        vars(norm)[_MARK] = True


def is_narrow(norm: nn.Module) -> bool:
    """Under autocast the norm gives the dtype of products."""
    return bool(vars(norm).get(_MARK))


def _role(name: str) -> str:
    """What a module is in any of the layers: its name without their numbers."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


@torch.no_grad()
def _states(trunk: nn.Module, norms: Sequence[nn.Module], cast: Sequence[nn.Module] = ()) -> Tensor | None:
    """Hidden states of a few tokens in bfloat16; None if the trunk or its device cannot run so.

    Args:
        trunk: of a causal model.
        norms: that give numbers which bfloat16 rounds, whatever their weights.
        cast: those of them whose output is cast.
    """
    embeddings: Any = trunk.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    device = embeddings.weight.device
    ids = torch.arange(1, NUM_TOKENS + 1, device=device)[None] % embeddings.num_embeddings
    hooks = [norm.register_forward_hook(partial(_rounded, casts=norm in cast)) for norm in norms]
    try:
        with evaluation_mode(trunk), torch.autocast(device.type, dtype=torch.bfloat16):
            return trunk(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)[0]
    except (TypeError, ValueError, NotImplementedError, AttributeError, RuntimeError, IndexError):
        return None
    finally:
        for hook in hooks:
            hook.remove()


def _rounded(norm: nn.Module, args: Any, normed: Tensor, *, casts: bool) -> Tensor:
    """What a norm gives, each column with another factor."""
    del norm, args
    factors = 1 + torch.arange(normed.shape[-1], dtype=torch.float32, device=normed.device).sin() / 10
    return (normed * factors).to(torch.bfloat16) if casts else normed * factors


def _are_equal(found: Tensor | None, exact: Tensor) -> bool:
    return found is not None and found.dtype == exact.dtype and torch.equal(found, exact)
