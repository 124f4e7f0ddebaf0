"""What a step of decoding cannot be faster than on this machine: reading the weights, and multiplying by them.

Reading is measured as the product of a matrix that no cache holds and a vector; multiplying at the best speed that
the model's own shapes show for many rows.
"""

from __future__ import annotations

import time

import torch
from measure import start_job, write_result
from roof import DTYPES, fastest, linear_shapes

from burnish.models.load import resolve_model
from burnish.runtime import cpu

ROWS, COLUMNS, REPEATS = 1 << 17, 2048, 9  # 1 GB


def main() -> None:
    job = start_job()
    cpu.apply(cpu.probe())
    precisions = sorted({"highest", torch.get_float32_matmul_precision()})
    trunk, head = linear_shapes(resolve_model(job["model"]))
    shapes = {**trunk, head: trunk.get(head, 0) + 1}
    dtype = DTYPES[job["precision"]]
    weights = sum(count * inputs * outputs for (inputs, outputs), count in shapes.items())
    bandwidth = bytes_per_second()
    per_row = sum(
        count * fastest(*shape, dtype=dtype, precisions=precisions)["forward"] for shape, count in shapes.items()
    )
    write_result(
        job,
        {
            "weight_bytes": weights * dtype.itemsize,
            "bytes_per_second": bandwidth,
            "read_seconds": weights * dtype.itemsize / bandwidth,
            "multiply_seconds_per_row": per_row,
        },
    )


def bytes_per_second() -> float:
    """Of reading memory, at the fastest of a few passes."""
    matrix, vector = torch.ones(ROWS, COLUMNS), torch.ones(COLUMNS)
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        torch.mv(matrix, vector)
        seconds.append(time.perf_counter() - started)
    return matrix.numel() * matrix.element_size() / min(seconds)


if __name__ == "__main__":
    main()
