"""Rows of a classifier -> groups with a common beginning -> batches under a token budget -> a `TokenBatch`.

A row is its prompt and answer, tokenised together, so that the token at their border may be of both: what the rows of
a prompt share is found in their tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from burnish.types import TokenBatch

if TYPE_CHECKING:
    from torch import Tensor

Row = Sequence[int]


@dataclass(frozen=True)
class Group:
    """Rows with a common beginning.

    Attributes:
        rows: which rows they are.
        shared: how many tokens they begin with together; 0 only for an empty row.
        own: how many tokens of each row come behind; 0 for a row of one token.
    """

    rows: tuple[int, ...]
    shared: int
    own: tuple[int, ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.shared + max(self.own)


Batch = list[Group]
# The tokens that a layout of `models.sharing` runs over.
NUM_TOKENS: Mapping[str, Callable[[Batch], int]] = {
    "tree": lambda batch: sum(group.shared + sum(group.own) for group in batch),
    "cache": lambda batch: (
        len(batch) * max(g.shared for g in batch) + _num_rows(batch) * max(max(g.own) for g in batch)
    ),
    "rows": lambda batch: _num_rows(batch) * max(group.longest for group in batch),
}


def groups_of(rows: Sequence[Row], prompts: Sequence[str | None]) -> list[Group]:
    """Rows of one prompt together, as far as they begin alike.

    Args:
        rows: their tokens.
        prompts: of each row; None for a row that stands alone.

    >>> groups_of([[5, 6, 7], [5, 6, 8, 9], [5, 6]], ["a", "a", None])
    [Group(rows=(0, 1), shared=2, own=(1, 2)), Group(rows=(2,), shared=1, own=(1,))]
    """
    together: dict[str | int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        together.setdefault(row if prompt is None else prompt, []).append(row)
    groups: list[Group] = []
    for members in together.values():
        shared = _num_shared([rows[row] for row in members])
        parts = [members] if shared else [[row] for row in members]
        groups += [_group(rows, part) for part in parts]
    return groups


def batches(groups: Sequence[Group], max_tokens: int, *, layout: str) -> list[Batch]:
    """Groups of similar length together, so that a forward stays under a budget.

    A group that is over it alone is cut into parts, each with the common beginning; a row that is over it stands alone.

    Args:
        groups: of `groups_of`.
        max_tokens: that one forward runs over.
        layout: which tokens those are, a row of `NUM_TOKENS`.

    >>> alone = [Group((row,), length, (0,)) for row, length in enumerate([5, 1, 9, 2])]
    >>> [[row for group in batch for row in group.rows] for batch in batches(alone, 6, layout="rows")]
    [[1, 3], [0], [2]]
    """
    num_tokens = NUM_TOKENS[layout]
    found: list[Batch] = []
    parts = [part for group in groups for part in _parts(group, max_tokens, num_tokens)]
    for part in sorted(parts, key=lambda part: part.longest):
        if found and num_tokens([*found[-1], part]) <= max_tokens:
            found[-1].append(part)
        else:
            found.append([part])
    return found


def token_batch(
    rows: Sequence[Row], groups: Batch, *, pad_token_id: int, device: torch.device | str = "cpu"
) -> TokenBatch:
    """The rows of some groups, one group after the other: what they share as prompts, the rest as completions."""
    members = [(row, p, group.shared) for p, group in enumerate(groups) for row in group.rows]
    prompts = [rows[group.rows[0]][: group.shared] for group in groups]
    completions = [rows[row][shared:] for row, _, shared in members]
    prompt_ids, prompt_mask = _padded(prompts, pad_token_id, side="left")
    completion_ids, completion_mask = _padded(completions, pad_token_id, side="right")
    return TokenBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=completion_ids,
        completion_mask=completion_mask,
        loss_mask=torch.zeros_like(completion_mask),
        prompt_index=torch.tensor([prompt for _, prompt, _ in members]),
        row_id=torch.tensor([row for row, _, _ in members]),
    ).to(device)


def _group(rows: Sequence[Row], members: Sequence[int]) -> Group:
    """Every row keeps a token of its own, if it has more than one."""
    shortest = min(len(rows[row]) for row in members)
    shared = min(_num_shared([rows[row] for row in members]), max(shortest - 1, 1))
    return Group(tuple(members), shared, tuple(len(rows[row]) - shared for row in members))


def _num_shared(rows: Sequence[Row]) -> int:
    """Tokens that all rows begin with: those of the first and the last in the order of a dictionary."""
    first, last = min(map(tuple, rows)), max(map(tuple, rows))
    pairs = zip(first, last, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(last)))


def _parts(group: Group, max_tokens: int, num_tokens: Callable[[Batch], int]) -> list[Group]:
    parts: list[Group] = []
    for row, own in zip(group.rows, group.own, strict=True):
        if parts:
            grown = Group((*parts[-1].rows, row), group.shared, (*parts[-1].own, own))
            if num_tokens([grown]) <= max_tokens:
                parts[-1] = grown
                continue
        parts.append(Group((row,), group.shared, (own,)))
    return parts


def _padded(sequences: Sequence[Row], fill: int, *, side: str) -> tuple[Tensor, Tensor]:
    """Token ids with at least one column, and where a token is."""
    ids = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    widest = torch.zeros(max(1, *map(len, ids)), dtype=torch.long)  # a sequence more, so that there is a column
    padded = pad_sequence([*ids, widest], batch_first=True, padding_value=fill, padding_side=side)[:-1]
    mask = pad_sequence([*map(torch.ones_like, ids), widest], batch_first=True, padding_side=side)[:-1].bool()
    return padded, mask


def _num_rows(batch: Batch) -> int:
    return sum(len(group.rows) for group in batch)
