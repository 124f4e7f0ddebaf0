r"""Rewards that need nothing but Python: exact match, last number, format, lengths, repetition.

All but `format` are quick and cannot hang, and are called in the training process. The answers that try to trick them
are in their tests.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

from burnish.rewards.table import reward, text_of

LONGEST = 1000  # characters of a number
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
NUMBER = re.compile(
    rf"(?:(?<![\w)])[-+])?(?<!\w)(?<![0-9]\.)(?P<top>{_DIGITS})(?:[eE](?P<power>[-+]?[0-9]{{1,3}}))?"
    r"(?:/(?P<bottom>[0-9]*[1-9][0-9]*))?(?!\w|\.[0-9]|/[0-9])"
)
_LOOSE = re.compile(r"[\s,;/|&~–—-]*")  # between two numbers: a list or a range
_HEDGE = re.compile(
    r"[\W_]*(?:\b(?:or|and|to|either|maybe|perhaps|possibly|probably|also|even|it|is|be|could|might)\b[\W_]*)+", re.I
)
_BUT = re.compile(r"\b(?:or|and|to|either|maybe|perhaps|possibly)\b", re.I)
_NEGATED = re.compile(r"(?:\bnot|n['’]t|\bnever|\bno|\bneither|\bnor)\s+(?:(?!but\b|so\b)[^\W\d]+\s+){0,2}$", re.I)
_DENIED = re.compile(r"\W*(?:(?:is|was|would be|seems)\s*)?(?:not\b|n['’]t\b|wrong\b|incorrect\b|false\b)", re.I)
_SIGNS = str.maketrans({"−": "-", "－": "-", "＋": "+", "，": ",", "．": ".", "／": "/"})


@reward("exact_match", isolation="none")
def exact_match(completions: Sequence[Any], answer: Sequence[Any], *, ignore_case: bool = False) -> list[float | None]:
    r"""1 if the whole answer is the text of the column, white space around it aside; else 0.

    A list in the column holds several right answers. None in it: not scored.

    >>> exact_match([" Paris\n", "Paris, or Rome"], ["Paris", "Paris"])
    [1.0, 0.0]
    """

    def same(text: str) -> str:
        text = unicodedata.normalize("NFC", text).strip()
        return text.casefold() if ignore_case else text

    def score(completion: Any, right: Any) -> float | None:
        accepted = right if isinstance(right, list | tuple) else [right]
        if any(item is None for item in accepted) or not accepted:
            return None
        return float(same(text_of(completion)) in {same(str(item)) for item in accepted})

    return [score(completion, right) for completion, right in zip(completions, answer, strict=True)]


@reward("number", isolation="none")
def number(completions: Sequence[Any], answer: Sequence[Any]) -> list[float | None]:
    """1 if the last number of the answer equals the last number of the column; else 0.

    Numbers are compared exactly: 7, 7.0, ７ and 14/2 are the same; 1,000 is a thousand. An answer that hedges
    ("4 or 5", "4, 5") or denies ("not 7") is wrong. A column without a number: not scored.

    >>> number(["3 + 4 = 7", "not 7", "4 or 7"], ["7", "7", "7"])
    [1.0, 0.0, 0.0]
    """

    def score(completion: Any, right: Any) -> float | None:
        wanted = None if right is None else last_number(str(right))
        return None if wanted is None else float(answered_number(text_of(completion)) == wanted)

    return [score(completion, right) for completion, right in zip(completions, answer, strict=True)]


def last_number(text: str) -> Fraction | None:
    """The last number of a text, or None."""
    matches = list(NUMBER.finditer(plain_digits(text)))
    return _value(matches[-1]) if matches else None


def answered_number(text: str) -> Fraction | None:
    """The last number of a text that commits itself to it, or None."""
    last = _committed(plain_digits(text))
    return None if last is None else _value(last)


def tail_number(text: str) -> str | None:
    """The same as it is written."""
    last = _committed(text)
    return None if last is None else last[0]


def _committed(text: str) -> re.Match[str] | None:
    matches = list(NUMBER.finditer(text))
    if not matches or is_denied(text, *matches[-1].span()):
        return None
    if len(matches) > 1 and _value(matches[-2]) != _value(matches[-1]):
        return None if is_hedged(text[matches[-2].end() : matches[-1].start()]) else matches[-1]
    return matches[-1]


def is_denied(text: str, start: int, end: int) -> bool:
    """Before an answer stands a "not", or after it that it is wrong."""
    return bool(_NEGATED.search(text[max(start - 60, 0) : start]) or _DENIED.match(text, end))


def is_hedged(between: str) -> bool:
    """What stands between two answers makes them alternatives, a list or a range."""
    return bool(_LOOSE.fullmatch(between) or (_HEDGE.fullmatch(between) and _BUT.search(between)))


def plain_digits(text: str) -> str:
    """Decimal digits of any script as 0-9, and their signs; superscripts and the like stay what they are."""
    text = text.translate(_SIGNS)
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(c)) if unicodedata.decimal(c, None) is not None else c for c in text)


def _value(match: re.Match[str]) -> Fraction | None:
    """The number, or None for one that nobody asks for and that takes long to read."""
    if len(match[0]) > LONGEST:
        return None
    value = Fraction(Decimal(match["top"].replace(",", ""))) * Fraction(10) ** int(match["power"] or 0)
    value = value / int(match["bottom"]) if match["bottom"] else value
    return -value if match[0].startswith("-") else value


@reward("format", isolation="process", per_answer=True, seconds=5.0)
def matches_format(completions: Sequence[Any], *, pattern: str) -> list[float]:
    """1 if the regular expression `pattern` matches the whole answer (`.` matches line ends too); else 0.

    >>> matches_format(["<a>4</a>", "4"], pattern="<a>.*</a>")
    [1.0, 0.0]
    """
    compiled = re.compile(pattern, re.DOTALL)
    return [float(compiled.fullmatch(text_of(completion)) is not None) for completion in completions]


@reward("think_format_reward", isolation="none")
def think_format_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    """1 if the answer begins with `<think>`, which is there once, and closes it; else 0.

    >>> think_format_reward(["<think>a</think>4", "<think>a", "4"])
    [1.0, 0.0, 0.0]
    """
    texts = [text_of(completion) for completion in completions]
    return [float(t.startswith("<think>") and t.count("<think>") == 1 and "</think>" in t) for t in texts]


@reward("length", isolation="none")
def length(
    completion_ids: Sequence[Sequence[int]], *, max_tokens: int, min_tokens: int = 0, slack: int = 0
) -> list[float]:
    """1 for min_tokens to max_tokens tokens, falling to 0 over `slack` tokens on either side.

    >>> length([[1], [1] * 4, [1] * 5], max_tokens=3, slack=2)
    [1.0, 0.5, 0.0]
    """

    def score(num_tokens: int) -> float:
        distance = max(num_tokens - max_tokens, min_tokens - num_tokens, 0)
        return 1.0 if distance == 0 else max(0.0, 1 - distance / slack) if slack else 0.0

    return [score(len(ids)) for ids in completion_ids]


@reward("repetition", isolation="none", paper="2502.03373")
def repetition(
    completion_ids: Sequence[Sequence[int]], *, ngram_size: int = 3, max_penalty: float = -1.0
) -> list[float]:
    """max_penalty times the share of n-grams of tokens that are repeated: 1 - distinct / all.

    Source: Demystifying Long Chain-of-Thought Reasoning (2502.03373), appendix C.2.

    >>> repetition([[1, 2, 3, 4], [5, 5, 5, 5, 5]], ngram_size=2)
    [0.0, -0.75]
    """
    if ngram_size < 1 or max_penalty > 0:
        raise ValueError(f"ngram_size is {ngram_size} and max_penalty {max_penalty}: at least 1, and at most 0")

    def score(ids: Sequence[int]) -> float:
        grams = [tuple(ids[start : start + ngram_size]) for start in range(len(ids) - ngram_size + 1)]
        return max_penalty * (1 - len(set(grams)) / len(grams)) + 0.0 if grams else 0.0

    return [score(ids) for ids in completion_ids]


@reward("overlong", isolation="none", paper="2503.14476")
def overlong(
    completion_ids: Sequence[Sequence[int]], *, max_completion_len: int, soft_punish_cache: int
) -> list[float]:
    """0 up to max_completion_len - soft_punish_cache tokens, falling to -1 at max_completion_len, and -1 beyond.

    Source: DAPO (2503.14476) eq. 13.

    >>> overlong([[1] * 80, [1] * 90, [1] * 101], max_completion_len=100, soft_punish_cache=20)
    [0.0, -0.5, -1.0]
    """
    free = max_completion_len - soft_punish_cache

    def score(num_tokens: int) -> float:
        if num_tokens <= free:
            return 0.0
        return -1.0 if num_tokens > max_completion_len else (free - num_tokens) / soft_punish_cache

    return [score(len(ids)) for ids in completion_ids]


@reward("get_repetition_penalty_reward", isolation="none", paper="2502.03373")
def repetition_penalty_reward(
    completion_ids: Sequence[Sequence[int]], *, ngram_size: int = 3, max_penalty: float = -1.0, **_: Any
) -> list[float]:
    """`repetition` under TRL's name."""
    return repetition(completion_ids, ngram_size=ngram_size, max_penalty=max_penalty)


@reward("get_soft_overlong_punishment", isolation="none", paper="2503.14476")
def soft_overlong_punishment_reward(
    completion_ids: Sequence[Sequence[int]], *, max_completion_len: int, soft_punish_cache: int, **_: Any
) -> list[float]:
    """`overlong` under TRL's name."""
    return overlong(completion_ids, max_completion_len=max_completion_len, soft_punish_cache=soft_punish_cache)


def get_repetition_penalty_reward(ngram_size: int = 3, max_penalty: float = -1.0) -> Callable[..., list[float]]:
    """TRL's constructor of `repetition_penalty_reward`."""
    return partial(repetition_penalty_reward, ngram_size=ngram_size, max_penalty=max_penalty)


def get_soft_overlong_punishment(max_completion_len: int, soft_punish_cache: int) -> Callable[..., list[float]]:
    """TRL's constructor of `soft_overlong_punishment_reward`."""
    return partial(
        soft_overlong_punishment_reward, max_completion_len=max_completion_len, soft_punish_cache=soft_punish_cache
    )
