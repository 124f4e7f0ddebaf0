r"""What two sequences begin with in common, and where the prompt ends that two answers contain.

Text: the longest common prefix is cut back to its last white space, so that no word is split and no answer is
empty; line breaks there belong to the prompt, a single space to the answer's first word.
Messages: the prompt ends after the longest common prefix of whole turns that an assistant's turn follows in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LINE_BREAKS = frozenset("\n\r")


def common_prefix(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many items two sequences begin with in common.

    Whole slices are compared, of lengths that are halved: texts of a million characters take milliseconds.

    >>> common_prefix("sky", "skin")
    2
    """
    same, unknown = 0, min(len(first), len(second))
    if first[:unknown] == second[:unknown]:
        return unknown
    while unknown - same > 1:  # the first `same` items agree, the first `unknown` do not
        middle = (same + unknown) // 2
        if first[same:middle] == second[same:middle]:
            same = middle
        else:
            unknown = middle
    return same


def implicit_text_prompt(chosen: str, rejected: str) -> int | None:
    r"""Where the prompt ends that two texts begin with, or None if there is no such place.

    >>> implicit_text_prompt("Sky? It is blue", "Sky? It is red")   # the space belongs to " blue"
    10
    >>> implicit_text_prompt("Sky?\nblue", "Sky?\nblack")           # the line break belongs to the prompt
    5
    >>> implicit_text_prompt("Yes ", "No!") is None
    True
    """
    first_word = len(chosen) - len(chosen.lstrip())
    last_word = min(len(text.rstrip()) for text in (chosen, rejected))
    for end in range(min(common_prefix(chosen, rejected), last_word - 1), first_word, -1):
        if chosen[end - 1] in LINE_BREAKS:
            return end
        following = (chosen[end], rejected[end])
        if all(char.isspace() for char in following) and not LINE_BREAKS.issuperset(following):
            return end
    return None


def implicit_chat_prompt(chosen: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]]) -> int | None:
    """How many turns the prompt has that two conversations begin with, or None if they share no such turns.

    >>> question, blue, red = {"role": "user"}, {"role": "assistant", "content": "blue"}, {"role": "assistant"}
    >>> implicit_chat_prompt([question, blue], [question, red])
    1
    """
    last = min(common_prefix(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    for end in range(last, 0, -1):
        answers = chosen[end]["role"] == rejected[end]["role"] == "assistant"
        if answers and chosen[end - 1]["role"] != "assistant":
            return end
    return None
