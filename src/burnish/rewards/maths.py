r"""Mathematics: is the answer equal to the right one, as math-verify sees it? Always called in a worker.

What counts as the answer: the last `\boxed{...}`; else what follows the last "####" or "answer is"; else the last
formula between dollars or brackets; else the last number of the text. It has to be one answer and to be meant: "not
42", "42 or 43" and "41 = 42" are wrong when 42 is asked for. math-verify's own limits of time need the main thread;
they are off, and the worker's limit takes their place, so that the result is the same everywhere. An answer that
takes longer is wrong, and counted.
"""

from __future__ import annotations

import logging
import math as mathematics
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from burnish.rewards.builtin import is_denied, is_hedged, plain_digits, tail_number
from burnish.rewards.table import reward, text_of

LONGEST = 20_000  # characters at the end of an answer that are looked at
LONGEST_EXPRESSION = 300
MOST_BOXES = 8
FACTS: dict[str, Any] = {
    "isolation": "process",
    "per_answer": True,
    "seconds": 5.0,
    "overdue": 0.0,
    "package": "math_verify",
}
_ANCHOR = re.compile(r"####|\b(?:answer|result|solution)\b(?:\s+(?:is|equals)\b|\s*[:=])+", re.I)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]{2,}(?: [^\W\d_]+)*|[^\W\d_]")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_PROSE = re.compile(r"[^\W\d_]{2,}|\d\s+\d|\n")  # no single expression
_RELATION = re.compile(r"[<>≤≥≠!]|\\(?:[lg]e|[lg]eq|[lg]t|neq?|not|approx)(?![a-zA-Z])")


@reward("math", **FACTS)
def math(completions: Sequence[Any], answer: Sequence[Any]) -> list[float | None]:
    r"""1 if the answer is mathematically equal to that of the column, as a number or in LaTeX; else 0.

    A column that cannot be read: not scored.
    """
    return [_score(text_of(completion), right) for completion, right in zip(completions, answer, strict=True)]


@reward("accuracy_reward", **FACTS)
def accuracy_reward(completions: Sequence[Any], solution: Sequence[Any], **_: Any) -> list[float | None]:
    """`math` under TRL's name and with its column; answers need no LaTeX."""
    return math(completions, solution)


@reward("reasoning_accuracy_reward", **FACTS)
def reasoning_accuracy_reward(
    completions: Sequence[Any],
    solution: Sequence[Any],
    *,
    reasoning_delimiters: Sequence[str] = ("</think>",),
    **_: Any,
) -> list[float | None]:
    """`math` of what follows the last delimiter; 0 if there is none: the reasoning did not end."""

    def score(text: str, right: Any) -> float | None:
        ends = [text.rfind(delimiter) + len(delimiter) for delimiter in reasoning_delimiters if delimiter in text]
        return _score(text[max(ends) :], right) if ends else 0.0

    return [score(text_of(completion), right) for completion, right in zip(completions, solution, strict=True)]


@reward("get_cosine_scaled_reward", paper="2502.03373", **FACTS)
def cosine_scaled_reward(
    completions: Sequence[Any],
    solution: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    *,
    max_len: int,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    **_: Any,
) -> list[float | None]:
    """`math` scaled by length: short right answers are worth most, short wrong ones cost most.

    reward = low + (high - low) (1 + cos(pi min(|y| / max_len, 1))) / 2; low and high are the values for a long and a
    short answer: min_value_correct and max_value_correct, max_value_wrong and min_value_wrong.

    Source: Demystifying Long Chain-of-Thought Reasoning (2502.03373), appendix C.1.
    """

    def scale(right: float | None, num_tokens: int) -> float | None:
        if right is None:
            return None
        long, short = (min_value_correct, max_value_correct) if right else (max_value_wrong, min_value_wrong)
        return long + (short - long) * (1 + mathematics.cos(mathematics.pi * min(num_tokens / max_len, 1))) / 2

    scores = math(completions, solution)
    return [scale(score, len(ids)) for score, ids in zip(scores, completion_ids, strict=True)]


def get_cosine_scaled_reward(
    max_len: int,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
) -> Callable[..., list[float | None]]:
    """TRL's constructor of `cosine_scaled_reward`."""
    return partial(
        cosine_scaled_reward,
        max_len=max_len,
        min_value_wrong=min_value_wrong,
        max_value_wrong=max_value_wrong,
        min_value_correct=min_value_correct,
        max_value_correct=max_value_correct,
    )


def _score(text: str, right: Any) -> float | None:
    wanted = _segment(plain_digits(str(right))) or str(right).strip() if right is not None else ""
    word = _as_word(wanted)
    gold = [] if word is not None else _read(wanted)
    if word is None and not gold:
        return None
    given = _segment(plain_digits(text)[-LONGEST:])
    if given is None:
        return 0.0
    if word is not None:
        return float(_as_word(given) == word)
    if "=" in wanted or _RELATION.search(given):
        return float(_equal(gold, given))
    first, *others = given.split("=")
    parts = others if others and re.search(r"[a-zA-Z]", first) else [first, *others]
    return float(all(_equal(gold, part) for part in parts))


def _segment(text: str) -> str | None:
    """The part of a text that is its answer; None if it has none, or takes it back."""
    boxes = _boxes(text)
    if boxes:
        start, end, content = boxes[-1]
        hedged = len(boxes) > 1 and boxes[-2][2] != content and is_hedged(text[boxes[-2][1] : start])
        return None if hedged or is_denied(text, start, end) else content
    if anchors := list(_ANCHOR.finditer(text)):
        text = text[anchors[-1].end() :]
    if formulas := list(_FORMULA.finditer(text)):
        last = formulas[-1]
        hedged = len(formulas) > 1 and formulas[-2][0] != last[0] and is_hedged(text[formulas[-2].end() : last.start()])
        return None if hedged or is_denied(text, *last.span()) else next(group for group in last.groups() if group)
    stripped = text.strip().strip("*").rstrip(".").strip()
    if stripped and not _PROSE.search(_COMMAND.sub("", stripped)):
        return stripped
    return tail_number(text) or (stripped if _as_word(stripped) else None)


def _boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Start, end and content of the last `\boxed{...}` whose braces are closed."""
    found: list[tuple[int, int, str]] = []
    for match in list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))[-MOST_BOXES:]:
        depth = 1
        for brace in re.finditer(r"\\.|[{}]", text[match.end() :], re.DOTALL):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                end = match.end() + brace.start()
                found.append((match.start(), end + 1, text[match.end() : end].strip()))
                break
    return found


def _as_word(text: str) -> str | None:
    """An answer that is a word or a letter, without case; letters must not be read as factors of a product."""
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text).strip().rstrip(".").strip()
    text = text[1:-1] if re.fullmatch(r"\([A-Za-z]\)", text) else text
    return text.casefold() if _WORD.fullmatch(text) else None


def _read(expression: str) -> list[Any]:
    """What math-verify makes of one expression; nothing of one that is too long to be an answer."""
    if len(expression) > LONGEST_EXPRESSION:
        return []
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    latex = parse(
        rf"\boxed{{{expression}}}",
        extraction_config=[LatexExtractionConfig(boxed_match_priority=0)],
        extraction_mode="first_match",
        fallback_mode="no_fallback",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]
    )
    if latex or _RELATION.search(expression):
        return latex
    return parse(
        expression,
        extraction_config=[ExprExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]
    )


def _equal(gold: list[Any], expression: str) -> bool:
    from math_verify import verify

    given = _read(expression)
    return bool(given) and verify(gold, given, timeout_seconds=None)
