r"""A parcel as text, read off its tensors: each token, whether it is trained, and what was cut off.

`escaped` is how text is shown: nothing in it can steer a terminal, turn its direction or hide.

Example: prompt "Sky?", completion " blue<|im_end|>", trained: a prompt of one segment, and a completion whose only
segment is `trained`, with pieces " blue" and, special, "<|im_end|>".
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from burnish.types import PreferenceBatch, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT, TRAINED, UNTRAINED, CUT = KINDS = ("prompt", "trained", "not trained", "cut")
HIDDEN = frozenset(["Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Zs"])  # categories of Unicode that leave no mark
JUDGED = {True: "completion", False: "completion, undesirable"}
MAX_PIECE = 8  # tokens that one character may take
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Piece:
    """Tokens that make whole characters: one, as a rule.

    Attributes:
        ids: token ids.
        text: what they say, as it is: show it through `escaped`.
        is_special: `text` is a name, not letters of the text: a special token, or part of a character.
    """

    ids: tuple[int, ...]
    text: str
    is_special: bool = False


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one of `KINDS`."""

    kind: str
    pieces: tuple[Piece, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids."""
        return tuple(token for piece in self.pieces for token in piece.ids)

    @property
    def text(self) -> str:
        """What the tokens say, as it is: show it through `escaped`."""
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class Passage:
    """A prompt or a completion: its name and its segments in order."""

    name: str
    segments: tuple[Segment, ...]

    def ids(self, *kinds: str) -> tuple[int, ...]:
        """The token ids of segments of these kinds."""
        return tuple(token for segment in self.segments if segment.kind in kinds for token in segment.ids)

    @property
    def counts(self) -> dict[str, int]:
        """Tokens of each kind that it has."""
        counts = {kind: len(self.ids(kind)) for kind in KINDS}
        return {kind: count for kind, count in counts.items() if count}


@dataclass(frozen=True)
class PromptView:
    """A prompt of a parcel with its completions.

    Attributes:
        row_id: of the row of the data set.
        prompt: its tokens.
        completions: theirs.
        has_images: the model gets images with the prompt.
    """

    row_id: int
    prompt: Passage
    completions: tuple[Passage, ...]
    has_images: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return {
            "row_id": self.row_id,
            "has_images": self.has_images,
            "prompt": _passage_dict(self.prompt),
            "completions": [_passage_dict(passage) for passage in self.completions],
        }


def view_batch(
    batch: TokenBatch, tokenizer: PreTrainedTokenizerBase, *, whole: TokenBatch | None = None
) -> list[PromptView]:
    """Every prompt of a parcel that has completions, with them.

    Args:
        batch: what a trainer gets from its collator.
        tokenizer: says what the ids are.
        whole: the same rows as `batch`, not cut to any length: what it has more is shown as cut.
    """
    reader = _Reader(tokenizer)
    rows_of = _rows_of_prompts(batch)
    return [_view(reader, batch, whole or batch, prompt, rows) for prompt, rows in rows_of.items()]


def view_prompts(
    prompts: Mapping[int, Sequence[int]], tokenizer: PreTrainedTokenizerBase, *, whole: Mapping[int, Sequence[int]]
) -> list[PromptView]:
    """Prompts that are answered by the policy itself.

    Args:
        prompts: number of the row -> token ids, as the policy gets them.
        tokenizer: says what the ids are.
        whole: the same, not cut to any length.
    """
    reader = _Reader(tokenizer)
    return [PromptView(row, _prompt(reader, list(ids), list(whole[row])), ()) for row, ids in prompts.items()]


def escaped(text: str, *, line_break: str = "↵\n", tab: str = "⇥") -> str:
    r"""Text in which everything is to be seen: control and format characters and odd spaces as Python writes them.

    >>> escaped("a\x1b[2J\u202eb\n", line_break="↵")
    'a\\x1b[2J\\u202eb↵'
    """
    marks = {"\n": line_break, "\t": tab, " ": " "}
    return "".join(marks.get(c) or (_escape(c) if unicodedata.category(c) in HIDDEN else c) for c in text)


class _Reader:
    """Token ids -> pieces."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = {token: added.content for token, added in tokenizer.added_tokens_decoder.items()}

    def pieces(self, ids: Sequence[int], ends: Collection[int]) -> list[Piece]:
        """The pieces of a text, none across one of the `ends`.

        A token is decoded behind the piece before it, since what a token says may depend on its place: a leading
        space, a part of a character.
        """
        pieces: list[Piece] = []
        before, start = 0, 0
        for stop in range(1, len(ids) + 1):
            if ids[stop - 1] in self._special:
                pieces.append(Piece((ids[stop - 1],), self._special[ids[stop - 1]], is_special=True))
            else:
                text = self._decode(ids[before:stop])[len(self._decode(ids[before:start])) :]
                must_end = stop in ends or stop == len(ids) or ids[stop] in self._special or stop - start == MAX_PIECE
                if text.endswith(REPLACEMENT) and not must_end:
                    continue
                own = tuple(ids[start:stop])
                is_part = REPLACEMENT in text or not text
                pieces.append(Piece(own, self._name(own) if is_part else text, is_special=is_part))
            before, start = start, stop
        return pieces

    def _name(self, ids: Sequence[int]) -> str:
        return "".join(map(str, self._tokenizer.convert_ids_to_tokens(list(ids))))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _view(reader: _Reader, batch: TokenBatch, whole: TokenBatch, prompt: int, rows: Sequence[int]) -> PromptView:
    kept, given = (_ids(b.prompt_ids[prompt], b.prompt_mask[prompt]) for b in (batch, whole))
    names = _names(batch, rows)
    return PromptView(
        row_id=int(batch.row_id[rows[0]]),
        prompt=_prompt(reader, kept, given),
        completions=tuple(
            Passage(name, _completion(reader, batch, whole, row, given)) for name, row in zip(names, rows, strict=True)
        ),
        has_images=bool(batch.extra and batch.extra[prompt]),
    )


def _prompt(reader: _Reader, kept: list[int], given: list[int]) -> Passage:
    num_cut = len(given) - len(kept)
    assert given[num_cut:] == kept
    return Passage("prompt", _segments(reader, given, [CUT] * num_cut + [PROMPT] * len(kept)))


def _completion(
    reader: _Reader, batch: TokenBatch, whole: TokenBatch, row: int, prompt: Sequence[int]
) -> tuple[Segment, ...]:
    """The segments of a row behind its prompt, which is read along and left out."""
    kept, given = (_ids(b.completion_ids[row], b.completion_mask[row]) for b in (batch, whole))
    assert given[: len(kept)] == kept
    trained = batch.loss_mask[row][batch.completion_mask[row]].tolist()
    kinds = [TRAINED if is_trained else UNTRAINED for is_trained in trained] + [CUT] * (len(given) - len(kept))
    return _segments(reader, [*prompt, *given], [PROMPT] * len(prompt) + kinds)[1 if prompt else 0 :]


def _segments(reader: _Reader, ids: Sequence[int], kinds: Sequence[str]) -> tuple[Segment, ...]:
    runs = [(kind, len(list(group))) for kind, group in itertools.groupby(kinds)]
    ends = list(itertools.accumulate(length for _, length in runs))
    pieces = iter(reader.pieces(ids, frozenset(ends)))
    return tuple(Segment(kind, tuple(_take(pieces, length))) for kind, length in runs)


def _take(pieces: Iterator[Piece], num_tokens: int) -> Iterator[Piece]:
    while num_tokens > 0:
        piece = next(pieces)
        num_tokens -= len(piece.ids)
        yield piece


def _rows_of_prompts(batch: TokenBatch) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {}
    for row, prompt in enumerate(batch.prompt_index.tolist()):
        rows.setdefault(prompt, []).append(row)
    return rows


def _names(batch: TokenBatch, rows: Sequence[int]) -> list[str]:
    """What the completions of a prompt are called: chosen and rejected of one pair, or how each was judged."""
    numbered = [f"completion {place}" for place in range(len(rows))]
    if not isinstance(batch, PreferenceBatch):
        return numbered
    if not len(batch.pairs) and "label" in batch.columns:
        return [JUDGED[bool(batch.columns["label"][row])] for row in rows]
    pairs = [pair for pair in batch.pairs.tolist() if pair[0] in rows]
    if len(rows) == 2 and len(pairs) == 1:
        return ["chosen" if row == pairs[0][0] else "rejected" for row in rows]
    if len(rows) == 2:
        return [f"{name}, tied" for name in numbered]
    wins = [sum(pair[0] == row for pair in pairs) for row in rows]
    return [f"{name}, preferred to {num} others" for name, num in zip(numbered, wins, strict=True)]


def _ids(ids: Any, mask: Any) -> list[int]:
    return ids[mask].tolist()


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _passage_dict(passage: Passage) -> dict[str, Any]:
    segments = [
        {"kind": segment.kind, "num_tokens": len(segment.ids), "ids": list(segment.ids), "text": segment.text}
        for segment in passage.segments
    ]
    return {"name": passage.name, "counts": passage.counts, "segments": segments}
