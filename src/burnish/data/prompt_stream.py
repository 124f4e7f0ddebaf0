"""The online cursor: which prompts the next round gets. The same on every rank; part of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from burnish.data.sampler import mix_seeds


class Visit(NamedTuple):
    """A row of the data set, and the epoch in which it is visited: a row is visited at most once in each."""

    row: int
    epoch: int


class PromptStream:
    """Rows of a data set of prompts, one permutation after the other, with a memory of how well each is solved.

    The order of an epoch is a permutation drawn from (seed, epoch), or 0, 1, 2, … without `shuffle`; a round that
    reaches the end goes on with the next epoch, so no prompt is left out.

    Args:
        num_rows: rows of the data set, at least 1.
        seed: of the order.
        shuffle: another order in every epoch.
        window: (low, high) solve rates, in [0, 1], of prompts that are worth a visit in every epoch. A prompt whose
            latest rate lies outside is visited in every `revisit`-th epoch only. None: every prompt in every epoch.
        revisit: see `window`.

    Attributes:
        epoch: the epoch of the next prompt.
        num_left_out: prompts passed over because of their solve rate, over the whole run.

    Example: 3 rows, no shuffle: take(2) is [(0, 0), (1, 0)], then [(2, 0), (0, 1)].
    """

    def __init__(
        self,
        num_rows: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        window: tuple[float, float] | None = None,
        revisit: int = 4,
    ) -> None:
        if num_rows < 1:
            raise ValueError(f"num_rows={num_rows} is not allowed: 1 or more")
        if window is not None and not 0 <= window[0] <= window[1] <= 1:
            raise ValueError(f"the window of solve rates is {window!r}; allowed: 0 <= low <= high <= 1")
        if revisit < 1:
            raise ValueError(f"revisit={revisit} is not allowed: 1 or more")
        self.num_rows = num_rows
        self.seed = seed
        self.shuffle = shuffle
        self.window = window
        self.revisit = revisit
        self.epoch = 0
        self.num_left_out = 0
        self._position = 0
        self._rates: dict[int, float] = {}

    def take(self, count: int) -> list[Visit]:
        """The next `count` rows."""
        taken: list[Visit] = []
        order = self._order()
        while len(taken) < count:
            if self._position == len(order):
                self.epoch, self._position = self.epoch + 1, 0
                order = self._order()
                continue
            row = order[self._position]
            self._position += 1
            if self._is_worth(row):
                taken.append(Visit(row, self.epoch))
            else:
                self.num_left_out += 1
        return taken

    def learn(self, rates: Mapping[int, float]) -> None:
        """Remember the share of a row's answers that were right, at its latest visit."""
        self._rates.update(rates)

    def state_dict(self) -> dict[str, Any]:
        """Cursor and solve rates."""
        rows = sorted(self._rates)
        return {
            "epoch": self.epoch,
            "position": self._position,
            "num_left_out": self.num_left_out,
            "rows": torch.tensor(rows, dtype=torch.int64),
            "rates": torch.tensor([self._rates[row] for row in rows], dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.epoch, self._position = int(state["epoch"]), int(state["position"])
        self.num_left_out = int(state["num_left_out"])
        self._rates = dict(zip(state["rows"].tolist(), state["rates"].tolist(), strict=True))

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.num_rows))
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch))
        return torch.randperm(self.num_rows, generator=generator).tolist()

    def _is_worth(self, row: int) -> bool:
        """Every `revisit`-th epoch all prompts are, so that a stream never runs dry."""
        if self.window is None or self.epoch % self.revisit == 0 or row not in self._rates:
            return True
        low, high = self.window
        return low <= self._rates[row] <= high
