"""How fast this machine multiplies the matrices of a model: the roof that a step is held against.

For each linear layer: the product of the forward, that of the gradient of its input and that of its weight, at the
best kernel that this torch has for the precision. Runs in Burnish's environment, and writes seconds per token.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from measure import start_job, write_result
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from burnish.models.load import resolve_model
from burnish.runtime import cpu

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PRODUCTS = ("forward", "input", "weight")
ROWS, REPEATS = 512, 7


def main() -> None:
    job = start_job()
    cpu.apply(cpu.probe())
    precisions = sorted({"highest", torch.get_float32_matmul_precision()})
    trunk, head = linear_shapes(resolve_model(job["model"]))
    known: dict[tuple[int, int], dict[str, float]] = {}

    def seconds(shape: tuple[int, int]) -> dict[str, float]:
        if shape not in known:
            known[shape] = fastest(*shape, dtype=DTYPES[job["precision"]], precisions=precisions)
        return known[shape]

    write_result(
        job,
        {
            "trunk": {name: sum(count * seconds(shape)[name] for shape, count in trunk.items()) for name in PRODUCTS},
            "head": seconds(head),
            "flops_per_second": {
                f"{inputs}x{outputs}": {name: 2 * inputs * outputs / found[name] for name in PRODUCTS}
                for (inputs, outputs), found in known.items()
            },
        },
    )


def linear_shapes(model: str) -> tuple[Counter[tuple[int, int]], tuple[int, int]]:
    """(inputs, outputs) of the trunk's linear layers with their number, and of the head."""
    with torch.device("meta"):
        whole: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    head = whole.get_output_embeddings()
    layers = [layer for layer in whole.modules() if isinstance(layer, nn.Linear) and layer is not head]
    return Counter((layer.in_features, layer.out_features) for layer in layers), (head.in_features, head.out_features)


def fastest(inputs: int, outputs: int, *, dtype: torch.dtype, precisions: list[str]) -> dict[str, float]:
    """Seconds per row of each product, at the best of the precisions that are accurate here."""
    generator = torch.Generator().manual_seed(0)
    rows, weight, grads = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((ROWS, inputs), (outputs, inputs), (ROWS, outputs))
    )
    products: dict[str, Callable[[], Any]] = {
        "forward": lambda: rows @ weight.t(),
        "input": lambda: grads @ weight,
        "weight": lambda: grads.t() @ rows,
    }
    return {name: min(_seconds(product, precision) for precision in precisions) / ROWS
            for name, product in products.items()}  # fmt: skip


def _seconds(product: Callable[[], Any], precision: str) -> float:
    torch.set_float32_matmul_precision(precision)
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        product()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    main()
