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
    """R answers of at most T tokens, filled column by column.

    Args:
        num_rows: R.
        params: T, and the end tokens.
        stops: looks for stop strings, or None.
        dtype: of the log-probs.
        device: of the draws.
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
        self.lengths = torch.full((num_rows,), params.max_new_tokens, device=device)
        self.reasons = torch.full((num_rows,), LENGTH, device=device)
        self.end_ids = torch.tensor(params.end_token_ids, dtype=torch.int64, device=device)
        self.stops, self.min_new_tokens = stops, params.min_new_tokens

    def write(self, draw: Draw, rows: Int[Tensor, "r"], position: int) -> Bool[Tensor, "r"]:
        """Add the token at `position` to some rows; returns which of them have ended, now or before.

        A row that ended before may be among them: what is written behind its end is never read.
        """
        self.tokens[rows, position] = draw.tokens
        self.logps[rows, position] = draw.logps
        self.kept_mass[rows, position] = draw.kept_mass
        is_open = self.lengths[rows] > position
        is_end = torch.isin(draw.tokens, self.end_ids)
        self._end(rows[is_open & is_end], position, STOP)
        if self.stops is not None and position + 1 >= self.min_new_tokens:
            self._end_at_strings(self.stops, rows[is_open & ~is_end], position)
        return self.lengths[rows] <= position + 1

    def completions(self, prompts: Sequence[Prompt], *, version: int) -> list[Completion]:
        """The answers on the CPU, each cut at its end; `prompts` (R) are those that they answer."""
        tokens, logps, kept_mass = self.tokens.cpu(), self.logps.cpu(), self.kept_mass.cpu()
        ends = zip(prompts, self.lengths.tolist(), self.reasons.tolist(), strict=True)
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

    def _end(self, rows: Tensor, position: int, reason: int) -> None:
        self.lengths[rows] = position + 1
        self.reasons[rows] = reason

    def _end_at_strings(self, stops: StopStrings, rows: Tensor, position: int) -> None:
        first = max(0, position + 1 - stops.window)
        tails = self.tokens[rows, first : position + 1].tolist()
        completed = [stops.completed_by_last(tail) for tail in tails]
        self._end(rows[torch.tensor(completed, dtype=torch.bool, device=rows.device)], position, STOP_STRING)
