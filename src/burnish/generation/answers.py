"""The answers of a batch while they grow: what was drawn, and which of them have ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from burnish.generation.base import Prompt, SamplingParams
from burnish.generation.sampling import Draw
from burnish.generation.stopping import StopStrings
from burnish.types import Completion

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

LENGTH, STOP, STOP_STRING = range(3)
FINISH_REASONS = ("length", "stop", "stop_string")


class Answers:
    """R answers of at most T tokens, each filled from its beginning.

    Args:
        num_rows: R.
        params: T, and the end tokens.
        stops: looks for stop strings, or None.
        dtype: of the log-probs.
        device: of the draws.

    Attributes:
        drawn: (R,) tokens of each answer so far.
    """

    def __init__(
        self,
        num_rows: int,
        params: SamplingParams,
        *,
        stops: StopStrings | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_rows, params.max_new_tokens)
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self.logps = torch.zeros(shape, dtype=dtype, device=device)
        self.kept_mass = torch.ones(shape, dtype=dtype, device=device)
        self.drawn = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.reasons = torch.full((num_rows,), LENGTH, device=device)
        self.end_ids = torch.tensor(params.end_token_ids, dtype=torch.int64, device=device)
        self.stops, self.params = stops, params

    def write(self, draw: Draw, rows: Int[Tensor, "r"]) -> Bool[Tensor, "r"]:
        """Add a token to some rows, none of which has ended; returns which of them end with it."""
        place = (rows, self.drawn[rows])
        self.tokens[place] = draw.tokens
        self.logps[place] = draw.logps.to(self.logps.dtype)
        self.kept_mass[place] = draw.kept_mass.to(self.logps.dtype)
        self.drawn[rows] += 1
        is_end = torch.isin(draw.tokens, self.end_ids)
        self.reasons[rows[is_end]] = STOP
        if self.stops is not None:
            completed = ~is_end & self._completes_string(self.stops, rows)
            self.reasons[rows[completed]] = STOP_STRING
            is_end = is_end | completed
        return is_end | (self.drawn[rows] == self.params.max_new_tokens)

    def completions(self, prompts: Sequence[Prompt], *, version: int) -> list[Completion]:
        """The answers on the CPU; `prompts` (R) are those that they answer."""
        tokens, logps, kept_mass = self.tokens.cpu(), self.logps.cpu(), self.kept_mass.cpu()
        ends = zip(prompts, self.drawn.tolist(), self.reasons.tolist(), strict=True)
        return [
            Completion(
                prompt_ids=prompt.ids,
                token_ids=tokens[row, :length].clone(),
                logps=logps[row, :length].clone(),
                kept_mass=kept_mass[row, :length].clone(),
                loss_mask=torch.ones(length, dtype=torch.bool),
                finish_reason=FINISH_REASONS[reason],
                policy_version=version,
            )
            for row, (prompt, length, reason) in enumerate(ends)
        ]

    def _completes_string(self, stops: StopStrings, rows: Tensor) -> Tensor:
        """Whether the last token of each row completes a stop string, and may."""
        completed = [
            drawn >= self.params.min_new_tokens
            and stops.completed_by_last(self.tokens[row, max(0, drawn - stops.window) : drawn].tolist())
            for row, drawn in zip(rows.tolist(), self.drawn[rows].tolist(), strict=True)
        ]
        return torch.tensor(completed, dtype=torch.bool, device=rows.device)
