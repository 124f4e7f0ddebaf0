"""Everything that crosses processes. The only file that names a collective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from jaxtyping import Shaped
    from torch import Tensor


def is_distributed() -> bool:
    """Whether there is more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world() -> tuple[int, int]:
    """This process's rank, and how many processes there are."""
    return (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The element-wise sum over all ranks; the tensor itself on one process."""
    if not is_distributed():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def gather_rows(rows: Shaped[Tensor, "K D"]) -> tuple[Shaped[Tensor, "S D"], int]:
    """Every rank's rows in rank order, and where this rank's begin. K may differ between ranks."""
    if not is_distributed():
        return rows, 0
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    sizes = [int(size) for size in counts]
    padded = torch.cat([rows, rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])])
    gathered = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    mine = sum(sizes[: dist.get_rank()])
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)]), mine


def gather_lines(lines: Sequence[str], device: torch.device | str = "cpu") -> list[str]:
    """Every rank's lines in rank order, on every rank. A line holds no line break."""
    if not is_distributed():
        return list(lines)
    encoded = "".join(f"{line}\n" for line in lines).encode()
    mine = torch.frombuffer(bytearray(encoded), dtype=torch.uint8) if encoded else torch.empty(0, dtype=torch.uint8)
    gathered, _ = gather_rows(mine[:, None].to(device))
    return bytes(gathered.flatten().tolist()).decode().split("\n")[:-1]


def barrier() -> None:
    """Wait for every rank."""
    if is_distributed():
        dist.barrier()


def largest_over_ranks(number: int, device: torch.device | str) -> int:
    """The largest of every rank's number."""
    if not is_distributed():
        return number
    value = torch.tensor(number, device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value)
