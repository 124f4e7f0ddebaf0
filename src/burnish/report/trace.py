"""The way of one micro-batch, wall by wall: what each room gave that was not there before.

    Witness -> Trace: walls with room, sentence, fields, words -> text on the terminal, or a page

A tensor is shown where it is made; a parcel that only carries it on says its name, and one without anything new is
left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from torch import Tensor

from burnish.report.parcels import Field, fields_of, kind_of
from burnish.report.tokens import PromptView, view_batch
from burnish.rollout.collect import PromptRow
from burnish.trainers.witness import FORWARD, Crossing, Witness
from burnish.types import Answers, Completion, Mean, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TEXTS = 4
ROW_ID, IDS = "row_id", "input_ids"


@dataclass(frozen=True)
class Wall:
    """What crosses one wall.

    Attributes:
        room: where it comes from: `DPOTrainer.dpo_loss`.
        sentence: what the room says of itself.
        kind: what it is: the name of its class.
        fields: what is new in it.
        carried: names of fields that an earlier wall has shown.
        texts: the first ones in words, each with a name.
        view: the first prompt of the first batch, token by token, or None.
    """

    room: str
    sentence: str
    kind: str
    fields: tuple[Field, ...]
    carried: tuple[str, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()
    view: PromptView | None = None


@dataclass(frozen=True)
class Trace:
    """One micro-batch of a run.

    Attributes:
        title: of which run.
        notes: what is known before the first wall: model, reference, data, loss, layout.
        walls: in the order in which they are crossed.
    """

    title: str
    notes: tuple[str, ...]
    walls: tuple[Wall, ...]


def trace_of(witness: Witness, tokenizer: PreTrainedTokenizerBase, *, title: str, notes: Sequence[str] = ()) -> Trace:
    """What a witness saw.

    Args:
        witness: of a trainer that has trained on a micro-batch.
        tokenizer: says what the ids are.
        title: of which run it is.
        notes: lines below the title.
    """
    told = _told(witness.crossings)
    batches = [batch for crossing in told if (batch := _batch_in(crossing.returned)) is not None]
    row = int(batches[-1].row_id[0]) if batches else None  # of the micro-batch
    seen, said = _Seen(), set[str]()
    walls: list[Wall] = []
    for room, sentence, value in (parcel for crossing in told for parcel in _parcels(crossing)):
        found = list(_row_fields(value, row) if isinstance(value, Dataset) else fields_of(value))
        numbers = [field.value for field in found if field.is_number]
        if not all(map(seen.knows, numbers or [value])):
            walls.append(
                Wall(
                    room=room,
                    sentence=sentence,
                    kind=kind_of(value),
                    fields=tuple(f for f in found if f.is_derived or not (seen.knows(f.value) or str(f) in said)),
                    carried=tuple(f.name for f in found if f.is_number and seen.knows(f.value)),
                    texts=tuple(_texts(value, tokenizer, row)),
                    view=_view(value, walls, tokenizer),
                )
            )
        seen.add(value, *numbers)
        said |= {str(field) for field in found if not isinstance(field.value, Tensor | Mean)}
    return Trace(title, tuple(notes), tuple(walls))


class _Seen:
    """Values by identity; they are held, so that no identity is given twice."""

    def __init__(self) -> None:
        self._values: dict[int, Any] = {}

    def knows(self, value: Any) -> bool:
        return id(value) in self._values

    def add(self, *values: Any) -> None:
        self._values |= {id(value): value for value in values}


def _told(crossings: Sequence[Crossing]) -> list[Crossing]:
    """Without the model's own call, where a room has handed on all that it said."""
    handed_on = _Seen()
    for crossing in crossings:
        if crossing.room != FORWARD:
            handed_on.add(*(field.value for field in fields_of(crossing.returned)))

    def adds_nothing(crossing: Crossing) -> bool:
        return all(handed_on.knows(field.value) for field in fields_of(crossing.returned))

    return [crossing for crossing in crossings if crossing.room != FORWARD or not adds_nothing(crossing)]


def _parcels(crossing: Crossing) -> Iterator[tuple[str, str, Any]]:
    """Room, sentence and parcel: what it was given, then what it gave."""
    room = f"{crossing.owner}.{crossing.room}"
    for name, value in crossing.received.items():
        yield f"{name} of {room}", "As the room receives it.", value
    yield room, crossing.sentence, crossing.returned


def _batch_in(value: Any) -> TokenBatch | None:
    """A batch, or the first one of several."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return value if isinstance(value, TokenBatch) else None


def _row_fields(rows: Dataset, row: int | None) -> Iterator[Field]:
    """The columns of one row."""
    for name, value in _row(rows, row).items():
        yield Field(name, "", value)


def _row(rows: Dataset, row: int | None) -> dict[str, Any]:
    """The row of this number, or the first one where there is none."""
    numbers: list[int] = rows[ROW_ID] if ROW_ID in rows.column_names else list(range(len(rows)))
    return rows[numbers.index(row) if row in numbers else 0]


def _texts(value: Any, tokenizer: PreTrainedTokenizerBase, row: int | None) -> Iterator[tuple[str, str]]:
    """Token ids in words."""
    if isinstance(value, Dataset):
        for name, ids in _row(value, row).items():
            if name.endswith(IDS) and ids and isinstance(ids[0], int):
                yield name, _decode(tokenizer, ids)
    if isinstance(value, Answers):
        yield from ((f"completions[{i}]", str(text)) for i, text in enumerate(value.completions[:MAX_TEXTS]))
    if isinstance(value, list):
        for index, item in enumerate(value[:MAX_TEXTS]):
            if isinstance(item, Completion | PromptRow):
                ids = item.token_ids if isinstance(item, Completion) else item.ids
                yield f"[{index}]", _decode(tokenizer, ids.tolist())


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _view(value: Any, walls: Sequence[Wall], tokenizer: PreTrainedTokenizerBase) -> PromptView | None:
    """The first prompt of a batch with its first completions, unless an earlier wall has one."""
    batch = _batch_in(value)
    if batch is None or any(wall.view is not None for wall in walls):
        return None
    rows = (batch.prompt_index == batch.prompt_index[0]).nonzero()[:, 0]
    (view,) = view_batch(batch.take(rows), tokenizer)
    return replace(view, completions=view.completions[:MAX_TEXTS])
