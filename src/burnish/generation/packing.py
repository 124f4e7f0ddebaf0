"""Linear layers whose weights lie as a processor's kernels want them for a few rows, while a round is drawn.

A step multiplies every weight by a few rows, so it takes about as long as reading the weights. Kernels read them faster
from an order of their own, into which they are copied once a round:

- float32 with MKL, for one number of rows: bit for bit the products of the layer itself;
- float32 with oneDNN, where `torch.set_float32_matmul_precision` has chosen it for the process;
- bfloat16 with oneDNN: half the bytes.

Only what an `nn.Linear` is called for is replaced: its weights, hooks and place in the model stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

Product = Callable[[Tensor], Tensor]  # (..., inputs) -> (..., outputs)

MIN_WEIGHTS = 1 << 15  # smaller matrices, such as those of adapters, are not worth a copy
MIN_FULL = 0.6  # of the rows that MKL's order is for: with fewer of them its plain product is faster than filling up
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@contextmanager
def packed_linears(model: nn.Module, num_rows: int) -> Iterator[int]:
    """Linear layers multiply from packed copies of their weights while this is open.

    Under autocast they multiply in its precision, else in that of their weights.

    Args:
        model: its weights must not change meanwhile.
        num_rows: of a step.

    Yields:
        How many layers do. The others multiply as ever.
    """
    is_right: dict[tuple[int, int, torch.dtype], bool] = {}
    replaced: list[nn.Linear] = []
    try:
        for layer in filter(_is_plain, model.modules()):
            assert isinstance(layer, nn.Linear)
            kind = (layer.in_features, layer.out_features, _dtype_of(layer))
            product = _product_of(layer, num_rows) if is_right.get(kind, True) else None
            if product is not None and kind not in is_right:
                is_right[kind] = _gives_the_same(product, layer, num_rows)
            if product is None or not is_right[kind]:
                is_right[kind] = False
                continue
            vars(layer)["forward"] = product  # nearer than the class's
            replaced.append(layer)
        yield len(replaced)
    finally:
        for layer in replaced:
            del vars(layer)["forward"]


def _product_of(layer: nn.Linear, num_rows: int) -> Product | None:
    """The layer's product from a packed copy; None where this torch, or this processor, has no kernel for it."""
    dtype = _dtype_of(layer)
    if dtype not in TOLERANCES:
        return None
    uses_mkl = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    try:
        return _mkl_product(layer, num_rows) if uses_mkl else _onednn_product(layer, num_rows, dtype)
    except (AttributeError, RuntimeError):
        return None


def _gives_the_same(product: Product, layer: nn.Linear, num_rows: int) -> bool:
    """It agrees with the layer's own product in float32, to the precision that it multiplies in."""
    probe = torch.linspace(-1, 1, num_rows * layer.in_features).view(num_rows, 1, -1)
    bias = None if layer.bias is None else layer.bias.float()
    with torch.autocast("cpu", enabled=False):
        expected = functional.linear(probe, layer.weight.float(), bias)
    try:
        difference = product(probe).float() - expected
    except RuntimeError:
        return False
    return bool(difference.norm() <= TOLERANCES[_dtype_of(layer)] * expected.norm())


def _is_plain(module: nn.Module) -> bool:
    """A linear layer as torch made it, in memory of the CPU, that nothing wraps."""
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and module.weight.device.type == "cpu"
        and module.weight.numel() >= MIN_WEIGHTS
        and "forward" not in vars(module)
    )


def _dtype_of(layer: nn.Linear) -> torch.dtype:
    """What the layer multiplies in."""
    is_cast = torch.is_autocast_enabled("cpu") and layer.weight.dtype == torch.float32
    return torch.get_autocast_dtype("cpu") if is_cast else layer.weight.dtype


def _mkl_product(layer: nn.Linear, num_rows: int) -> Product:
    """For exactly `num_rows` rows, up to which somewhat fewer are filled; other numbers take the weight as it is."""
    weight, bias = layer.weight, layer.bias
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, num_rows)
    multiply = torch.ops.mkl._mkl_linear

    def product(states: Tensor) -> Tensor:
        rows = states.numel() // states.shape[-1]
        if MIN_FULL * num_rows <= rows < num_rows:
            filled = functional.pad(states.reshape(rows, -1), (0, 0, 0, num_rows - rows))
            return multiply(filled, packed, weight, bias, num_rows)[:rows].view(*states.shape[:-1], -1)
        return multiply(states, packed, weight, bias, num_rows)

    return product


def _onednn_product(layer: nn.Linear, num_rows: int, dtype: torch.dtype) -> Product:
    """For any number of rows; the result is as autocast would have it, else in the precision of what comes in."""
    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.to(dtype), num_rows)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    multiply = torch.ops.mkldnn._linear_pointwise

    def product(states: Tensor) -> Tensor:
        result = multiply(states.to(dtype), packed, bias, "none", [], "")
        return result if torch.is_autocast_enabled("cpu") else result.to(states.dtype)

    return product
