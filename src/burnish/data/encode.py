"""Text -> tokens that know which characters they come from, and which of them are trained."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from burnish.data.chat import Rendered
from burnish.data.prefix import common_prefix


@dataclass(frozen=True)
class TextTokens:
    """The tokens of a text without the special tokens that a tokenizer adds.

    Attributes:
        ids: token ids.
        starts, ends: each token's range of characters; starts never fall.
    """

    ids: list[int]
    starts: list[int]
    ends: list[int]


@dataclass(frozen=True)
class TrainedTokens:
    """The tokens of a prompt and its completion.

    Attributes:
        ids: token ids, special tokens included.
        mask: the token is trained.
        num_prompt: tokens before the first trained one.
        num_straddling: tokens that lie on both sides of a boundary, which are not trained.
        num_template_removed: tokens that the template puts after the last end-of-turn token, removed.
        num_without_eos: 1 if the last trained token is no end token.
    """

    ids: list[int]
    mask: list[bool]
    num_prompt: int
    num_straddling: int
    num_template_removed: int
    num_without_eos: int


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[TextTokens]:
    """Tokenise each text once. A tokenizer without offsets finds them by decoding prefixes."""
    if not tokenizer.is_fast:
        return [_encode_slowly(tokenizer, text) for text in texts]
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return [
        TextTokens(ids, [start for start, _ in offsets], [end for _, end in offsets])
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _encode_slowly(tokenizer: PreTrainedTokenizerBase, text: str) -> TextTokens:
    """A token ends where the decoded prefix stops agreeing with the text, never before the last one."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    ends: list[int] = []
    for index in range(len(ids)):
        decoded = tokenizer.decode(ids[: index + 1], clean_up_tokenization_spaces=False)
        assert isinstance(decoded, str)
        ends.append(max(common_prefix(decoded, text), ends[-1] if ends else 0))
    return TextTokens(ids, [0, *ends[:-1]][: len(ids)], ends)


def special_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the tokenizer puts before a text: its BOS, as a rule, or nothing."""
    plain = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"]
    starts = [i for i in range(len(full) - len(plain) + 1) if full[i : i + len(plain)] == plain]
    return full[: starts[0]] if starts else []


def train_tokens(
    tokenizer: PreTrainedTokenizerBase,
    rendered: Rendered,
    tokens: TextTokens,
    *,
    prefix: Sequence[int],
    end_ids: Collection[int],
    keep_template_end: bool = False,
) -> TrainedTokens:
    """Which tokens of a rendered text are trained, with its beginning and its end put right.

    A token is trained if all of its characters lie in a span. A text gets the tokenizer's `prefix`, unless
    it begins with it, and the tokenizer's EOS, unless it ends with an end token; both are the template's
    affair in a chat. White space that a template puts after an end-of-turn token is not trained, and after
    the last one removed, since generation never produces it, also of a text that came out of a template before;
    `keep_template_end` leaves it there, for models that read what the template writes.
    """
    ids, num_straddling = list(tokens.ids), 0
    mask, end = [False] * len(ids), len(ids)
    for span in rendered.spans:
        first, last, straddling = _span_tokens(tokenizer, tokens, span)
        num_straddling += straddling
        end = _end_of_turn(rendered, tokens, first, last, end_ids)
        mask[first:end] = [True] * (end - first)
    is_ended = end > 0 and ids[end - 1] in end_ids
    num_removed = len(ids) - end if is_ended and not keep_template_end else 0
    if num_removed:
        ids, mask = ids[:end], mask[:end]
    if not rendered.is_chat:
        if tokenizer.eos_token_id is not None and not is_ended:
            ids, mask = [*ids, tokenizer.eos_token_id], [*mask, True]
        missing = list(prefix) if ids[: len(prefix)] != list(prefix) else []
        ids, mask = [*missing, *ids], [False] * len(missing) + mask
    last_trained = next((i for i in range(len(mask) - 1, -1, -1) if mask[i]), None)
    return TrainedTokens(
        ids=ids,
        mask=mask,
        num_prompt=mask.index(True) if last_trained is not None else len(ids),
        num_straddling=num_straddling,
        num_template_removed=num_removed,
        num_without_eos=int(last_trained is None or ids[last_trained] not in end_ids),
    )


def _span_tokens(tokenizer: PreTrainedTokenizerBase, tokens: TextTokens, span: tuple[int, int]) -> tuple[int, int, int]:
    """The tokens [first, last) that lie in a span, and how many lie on one of its boundaries."""
    start, stop = span
    first, last = bisect_left(tokens.starts, start), bisect_left(tokens.starts, stop)
    num_straddling = 0
    if first and tokens.ends[first - 1] > start:
        num_straddling += 1
    elif first < last and _reaches_back(tokenizer, tokens, first, start):
        first, num_straddling = first + 1, 1
    while last > first and tokens.ends[last - 1] > stop:
        last, num_straddling = last - 1, num_straddling + 1
    return first, last, num_straddling


def _reaches_back(tokenizer: PreTrainedTokenizerBase, tokens: TextTokens, index: int, boundary: int) -> bool:
    """A token holds white space of the prompt that its offsets leave out, as some tokenizers trim them."""
    before = tokens.ends[index - 1] if index else 0
    if before >= boundary or tokens.starts[index] <= before:
        return False
    return str(tokenizer.decode([tokens.ids[index]], clean_up_tokenization_spaces=False))[:1].isspace()


def _end_of_turn(rendered: Rendered, tokens: TextTokens, first: int, last: int, end_ids: Collection[int]) -> int:
    """The end of a turn's tokens without the white space after its end token; `last` if there is none."""
    end = last
    while end > first and rendered.text[tokens.starts[end - 1] : tokens.ends[end - 1]].isspace():
        end -= 1
    return end if end > first and tokens.ids[end - 1] in end_ids else last
