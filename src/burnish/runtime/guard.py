"""The guard: a step whose loss or gradient is not finite never reaches the optimizer, and its rows are named.

A loss that is not finite turns its gradient into NaN (`poison`), so that the gradient norm, which every rank sees
alike, is the one thing to look at. A bad step's gradients are dropped: an optimizer skips parameters without one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from burnish.runtime.distributed import gather_rows
from burnish.runtime.state import Counter

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor, nn

MAX_NAMED = 20


class DivergedError(RuntimeError):
    """Too many steps in a row were not finite. The last good checkpoint is untouched."""


def poison(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The same loss if it is finite; otherwise one whose every gradient is NaN. Costs no host sync."""
    return loss * (1 + 0 * loss.detach())


@dataclass
class StepGuard:
    """Looks at the gradient norm of each step, and skips the step if it is not finite.

    Args:
        max_skipped: so many skipped steps in a row end the run.
    """

    max_skipped: int = 10
    num_skipped: Counter = field(default_factory=Counter)
    in_a_row: int = 0
    _losses: list[tuple[Tensor, Tensor]] = field(default_factory=list[tuple["Tensor", "Tensor"]])

    def watch(self, row_id: Int[Tensor, "K"], losses: Float[Tensor, "K"]) -> None:
        """Remember the losses of one micro-batch, with the row that each belongs to."""
        self._losses.append((row_id, losses.detach()))

    def check(self, model: nn.Module, grad_norm: float, *, step: int) -> dict[str, Any] | None:
        """None if the step is sound. Otherwise its gradients are dropped and the event is returned.

        Raises:
            DivergedError: `max_skipped` steps in a row were not finite.
        """
        watched, self._losses = self._losses, []
        if math.isfinite(grad_norm):
            self.in_a_row = 0
            return None
        bad, device = _bad_parameters(model), next(model.parameters()).device
        model.zero_grad(set_to_none=True)
        self.num_skipped.add(1)
        self.in_a_row += 1
        event = {
            "grad_norm": str(grad_norm),
            "losses": [str(loss) for loss in _bad(watched, 1)],
            "rows": _everywhere([int(row) for row in _bad(watched, 0)], device),
            "parameters": bad[:MAX_NAMED],
            "all_rows": _everywhere([int(row) for rows, _ in watched for row in rows], device),
        }
        if self.in_a_row >= self.max_skipped:
            raise DivergedError(
                f"step {step + 1}: loss or gradient was not finite in {self.in_a_row} steps in a row "
                f"(rows {event['rows'] or event['all_rows']}, parameters {event['parameters'][:3]}).\n"
                "Lower the learning rate, or look at these rows. The last checkpoint is from before; resume from it. "
                "max_skipped_steps sets how many are allowed."
            )
        return event

    def state_dict(self) -> dict[str, object]:
        """Counts, for the checkpoint."""
        return {"num_skipped": self.num_skipped.state_dict(), "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from saved counts."""
        self.num_skipped.load_state_dict(state["num_skipped"])  # pyright: ignore[reportArgumentType]
        self.in_a_row = int(state["in_a_row"])  # pyright: ignore[reportArgumentType]


def _bad(watched: Sequence[tuple[Tensor, Tensor]], which: int) -> list[float]:
    """Rows (0) or losses (1) where the loss is not finite."""
    return [item for pair in watched for item in pair[which][~torch.isfinite(pair[1])].tolist()]


def _everywhere(rows: list[int], device: torch.device) -> list[int]:
    """The rows that any rank names; every rank sees the same bad step, so all of them ask."""
    named, _ = gather_rows(torch.tensor(rows, dtype=torch.long, device=device)[:, None])
    return sorted(set(named.flatten().tolist()))[:MAX_NAMED]


def _bad_parameters(model: nn.Module) -> list[str]:
    named = ((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    return [name for name, grad in named if not torch.isfinite(grad).all()]
