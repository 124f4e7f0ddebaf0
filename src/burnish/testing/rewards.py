"""The contract of reward functions: answers -> a number or None each, and made-up answers."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from burnish.rewards.calling import RewardFunction, reward_function, shapes_of
from burnish.rewards.calls import run_call
from burnish.testing.contract import Law, assert_laws
from burnish.types import Answers

TEXTS = ("42", "", "The answer is 42.", "What is 6 times 7?", "}{ \\boxed{ <think> ñ ## None", "so " * 200)
SIZES = (1, 2, len(TEXTS))


@dataclass(frozen=True, eq=False)
class Sample:
    """Some answers to one prompt."""

    answers: Answers

    def show(self) -> str:
        """For the message."""
        return "\n".join(f"  completion {row}: {answer!r:.80}" for row, answer in enumerate(self.answers.completions))


def assert_reward_contract(
    reward: str | Callable[..., Any], *, columns: dict[str, Any] | None = None, **settings: Any
) -> None:
    """A reward function keeps the laws of rewards.

    It gives each answer, empty and garbled ones too, a finite number or None (or numbers for its turns, or spans of its
    tokens); an answer's reward is the same when it is scored again, in another order, and alone.

    Args:
        reward: a function of TRL's signature, sync or async, or the name of a built-in one.
        columns: the value of each column of the data set that it takes, the same for every answer: `{"answer": "42"}`.
        settings: its keyword-only parameters.

    Raises:
        ContractError: a law is broken; the message says which, and shows the smallest case.

    >>> def has_answer(completions, answer, **kwargs):
    ...     return [float(right in text) for text, right in zip(completions, answer)]
    >>> assert_reward_contract(has_answer, columns={"answer": "42"})
    """
    function = reward_function(reward, settings)
    given = columns or {}
    if missing := function.missing(given):
        name = next(iter(missing.values()))
        raise ValueError(f"the reward {function.name!r} takes the column {name!r}: pass columns={{{name!r}: ...}}")
    assert_laws(f"the reward {function.name}", function, LAWS, make_samples(given), show=Sample.show)


def make_samples(columns: dict[str, Any]) -> Iterator[Sample]:
    """A right answer alone, with an empty one, and with others; as texts, then as messages."""
    for is_conversation in (False, True):
        for size in SIZES:
            yield Sample(_answers(TEXTS[:size], columns, is_conversation=is_conversation))


def _answers(texts: tuple[str, ...], columns: dict[str, Any], *, is_conversation: bool) -> Answers:
    def spoken(role: str, text: str) -> Any:
        return [{"role": role, "content": text}] if is_conversation else text

    count = len(texts)
    return Answers(
        prompts=[spoken("user", "What is 6 times 7?")] * count,
        completions=[spoken("assistant", text) for text in texts],
        completion_ids=[list(range(1, len(text.split()) + 2)) for text in texts],
        prompt_index=[0] * count,
        row_id=[0] * count,
        columns={name: [value] * count for name, value in columns.items()},
        truncated=[False] * count,
    )


def _scores(function: RewardFunction, answers: Answers, rows: list[int]) -> tuple[list[float], str]:
    """A number for each of some answers, and what went wrong."""
    reply = run_call(
        function.function,
        function.arguments(answers, rows, SimpleNamespace(global_step=0)),
        [shapes_of(answers, rows)[place] for place in range(len(rows))],
        function.wants,
        lambda result: asyncio.run(result) if inspect.isawaitable(result) else result,  # pyright: ignore[reportArgumentType]
    )
    if reply.kind is not None:
        return [], f"it {reply.failure}"
    problems = [
        f"answer {row}: {score.problem}" for row, score in zip(rows, reply.scores, strict=True) if score.problem
    ]
    return [score.value for score in reply.scores], problems[0] if problems else ""


def _result(function: RewardFunction, sample: Sample) -> str:
    return _scores(function, sample.answers, list(range(len(sample.answers))))[1]


def _differs(function: RewardFunction, sample: Sample, orders: list[list[int]], what: str) -> str:
    """Whether some call over other rows gives an answer another reward."""
    expected, _ = _scores(function, sample.answers, list(range(len(sample.answers))))
    for order in orders:
        found, problem = _scores(function, sample.answers, order)
        for row, value in zip(order, found, strict=False):
            both_unscored = math.isnan(value) and math.isnan(expected[row])
            if not both_unscored and not math.isclose(value, expected[row], rel_tol=1e-6, abs_tol=1e-9):
                return f"answer {row} has the reward {expected[row]:g}, and {value:g} {what}"
        if problem:
            return f"{problem} ({what})"
    return ""


def _again(function: RewardFunction, sample: Sample) -> str:
    return _differs(function, sample, [list(range(len(sample.answers)))], "when it is scored again")


def _order(function: RewardFunction, sample: Sample) -> str:
    return _differs(function, sample, [list(range(len(sample.answers)))[::-1]], "in reverse order")


def _alone(function: RewardFunction, sample: Sample) -> str:
    return _differs(function, sample, [[row] for row in range(len(sample.answers))], "alone")


LAWS: tuple[Law[RewardFunction, Sample], ...] = (
    Law("a number or None for each answer", "A run would end, or leave answers out.", _result),
    Law("the same again", "A resumed run would not be the run that was stopped.", _again),
    Law("order of answers", "Answers would be given the rewards of others.", _order),
    Law("alone", "The number of processes and the size of a batch would change rewards.", _alone),
)
