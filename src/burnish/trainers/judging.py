"""Judges: functions of users that compare two answers to a prompt. They are called here and nowhere else."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from burnish.runtime.functions import import_function

NUM_SHOWN_CHARACTERS = 160
TIE = 0.5


class JudgeError(ValueError):
    """A judge failed, or returned something that is no verdict; the message shows prompt and answers."""


@dataclass(frozen=True)
class Contest:
    """Two answers to one prompt: the policy's, and the one that it is compared with."""

    row_id: int
    prompt: str
    policy: str
    other: str


@dataclass(frozen=True)
class Judge:
    """A function (prompts, first_answers, second_answers) -> for each the probability that the first is better.

    It may return True and False as well, and None for what it cannot tell. Whole numbers are refused: 1 would be "the
    first is better" for one person, and "the second one" for another.
    """

    function: Callable[[list[str], list[str], list[str]], Any]
    name: str

    @classmethod
    def of(cls, judge: Any) -> Judge:
        """The judge of the option of that name: a function, or `module:function`."""
        if isinstance(judge, str):
            return cls(import_function(judge, option="judge"), judge)
        return cls(judge, f"{judge.__module__}:{judge.__qualname__}" if _has_a_name(judge) else type(judge).__name__)

    def scores(self, contests: Sequence[Contest], *, seed: int) -> list[float | None]:
        """For each contest 1 if the policy wins, 0 if it loses, and what is between them; None: not judged.

        Which answer comes first is drawn by a coin of (seed, row): a judge that prefers a position does so for either
        side alike, and in the same rows at every evaluation. Equal answers are a tie, and are not asked about.

        Raises:
            JudgeError: the judge failed, or returned no verdicts.
        """
        differing = [contest for contest in contests if contest.policy != contest.other]
        swapped = [random.Random(f"{seed}/{contest.row_id}").random() < TIE for contest in differing]
        first = [c.other if swap else c.policy for c, swap in zip(differing, swapped, strict=True)]
        second = [c.policy if swap else c.other for c, swap in zip(differing, swapped, strict=True)]
        verdicts = self._ask(differing, first, second) if differing else []
        won = iter(None if v is None else 1 - v if swap else v for v, swap in zip(verdicts, swapped, strict=True))
        return [TIE if contest.policy == contest.other else next(won) for contest in contests]

    def _ask(self, contests: Sequence[Contest], first: list[str], second: list[str]) -> list[float | None]:
        prompts = [contest.prompt for contest in contests]
        try:
            given = self.function(list(prompts), list(first), list(second))
        except Exception as error:
            culprit = self._first_failing(prompts, first, second)
            raise self._error(f"raised {error!r}", contests, first, second, culprit) from error
        found = given.tolist() if isinstance(given, torch.Tensor | np.ndarray) else given
        if not isinstance(found, list | tuple):
            raise self._error(f"returned {type(given).__name__}, not a list", contests, first, second, 0)
        if len(found) != len(prompts):
            problem = f"returned {len(found)} verdicts on {len(prompts)} prompts"
            raise self._error(problem, contests, first, second, min(len(found), len(prompts) - 1))
        for number, verdict in enumerate(found):
            if problem := _problem(verdict):
                raise self._error(f"returned {verdict!r}, {problem}", contests, first, second, number)
        return [None if verdict is None else float(verdict) for verdict in found]

    def _first_failing(self, prompts: list[str], first: list[str], second: list[str]) -> int:
        """The place of the first row on which the judge fails by itself as well; else 0."""
        for number, (prompt, one, other) in enumerate(zip(prompts, first, second, strict=True)):
            try:
                self.function([prompt], [one], [other])
            except Exception:
                return number
        return 0

    def _error(
        self, problem: str, contests: Sequence[Contest], first: list[str], second: list[str], number: int
    ) -> JudgeError:
        return JudgeError(
            f"the judge {self.name} {problem}\n"
            f"row {contests[number].row_id}, prompt: {_excerpt(contests[number].prompt)}\n"
            f"first answer: {_excerpt(first[number])}\n"
            f"second answer: {_excerpt(second[number])}\n"
            "Allowed: a list with one value for each prompt: a float from 0 to 1, the probability that the first "
            "answer is better (0.5: a tie); True or False; or None for what cannot be told."
        )


def _has_a_name(judge: Any) -> bool:
    return isinstance(judge, type(_has_a_name) | type)


def _problem(verdict: Any) -> str | None:
    if verdict is None or isinstance(verdict, bool | np.bool_):
        return None
    if isinstance(verdict, Integral):
        return "a whole number: a share such as 1.0, or True, says that the first is better; an index does not"
    if not isinstance(verdict, Real):
        return f"which is {type(verdict).__name__}"
    return None if 0 <= float(verdict) <= 1 else "which is not from 0 to 1"


def _excerpt(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= NUM_SHOWN_CHARACTERS else f"{shown[:NUM_SHOWN_CHARACTERS]}…"
