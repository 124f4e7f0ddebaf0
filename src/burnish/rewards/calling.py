"""Which arguments a reward function gets: TRL's calling convention, by keyword.

A function that takes `**kwargs` gets everything: `prompts`, `completions`, `completion_ids`, every column of the data
set, `trainer_state`, `log_extra(column, values)` and `log_metric(name, value)`. Any other gets what it names. Only one
that names `token_texts` gets the text that each token adds to the answer: rewards of spans are found with it.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from burnish.registry import Entry, closest, own_name
from burnish.rewards.catalog import reward_functions
from burnish.rewards.models import ClassifierReward
from burnish.rewards.returns import AnswerShape
from burnish.rewards.table import text_of

if TYPE_CHECKING:
    from burnish.types import Answers

NOTES = ("log_extra", "log_metric")
TOKEN_TEXTS = "token_texts"
RESERVED = ("prompts", "completions", "completion_ids", TOKEN_TEXTS, "trainer_state", *NOTES)


@dataclass(frozen=True, kw_only=True, eq=False)
class RewardFunction:
    """A function with its settings, and what it wants to be called with.

    Attributes:
        name: in metrics and errors.
        function: what is called.
        facts: of its row in the table, or the table's defaults.
        parameters: the names that it takes.
        required: those without a default.
        takes_all: it has `**kwargs`.
        sources: parameter -> column, where they have different names.
    """

    name: str
    function: Callable[..., Any]
    facts: Mapping[str, Any]
    parameters: frozenset[str]
    required: frozenset[str]
    takes_all: bool
    sources: Mapping[str, str]

    @property
    def wants(self) -> tuple[str, ...]:
        """Which of `log_extra` and `log_metric` it takes."""
        return tuple(name for name in NOTES if self.takes_all or name in self.parameters)

    def missing(self, columns: Iterable[str]) -> dict[str, str]:
        """Parameter -> the column that it needs and that is not there."""
        needed = {name: self.sources.get(name, name) for name in self.required - set(RESERVED)}
        needed.update(self.sources)
        return {name: column for name, column in needed.items() if column not in set(columns)}

    def arguments(self, answers: Answers, rows: Sequence[int], trainer_state: Any) -> dict[str, Any]:
        """The keyword arguments for some of the answers: lists of its own, which it may change."""
        given: dict[str, Any] = {
            "prompts": [own_copy(answers.prompts[row]) for row in rows],
            "completions": [own_copy(answers.completions[row]) for row in rows],
            "completion_ids": [list(answers.completion_ids[row]) for row in rows],
            "trainer_state": trainer_state,
        }
        if TOKEN_TEXTS in self.parameters:
            given[TOKEN_TEXTS] = [token_texts(answers, row) for row in rows]
        columns = {name: [values[row] for row in rows] for name, values in answers.columns.items()}
        renamed = {parameter: columns[column] for parameter, column in self.sources.items()}
        everything = {**columns, **given, **renamed}
        return everything if self.takes_all else {n: v for n, v in everything.items() if n in self.parameters}


def token_texts(answers: Answers, row: int) -> list[str]:
    """The text that each token of an answer adds to it; together they are the answer's text.

    A character of several tokens belongs to the last of them. Without `decode` the text is dealt to the tokens in
    equal parts.
    """
    ids = answers.completion_ids[row]
    if answers.decode is None:
        text, count = text_of(answers.completions[row]), len(ids)
        return [text[len(text) * k // count : len(text) * (k + 1) // count] for k in range(count)]
    found: list[str] = []
    done = 0
    for length in range(1, len(ids) + 1):
        text = answers.decode(ids[:length])
        whole = text if length == len(ids) else text.rstrip("\ufffd")  # the rest of a character is still to come
        found.append(whole[done:])
        done = max(done, len(whole))
    return found


def own_copy(conversation: Any) -> Any:
    """A text as it is; messages copied."""
    if isinstance(conversation, str):
        return conversation
    return [dict(message) if isinstance(message, dict) else message for message in conversation]


def shapes_of(answers: Answers, rows: Sequence[int]) -> list[AnswerShape]:
    """Tokens and turns of some of the answers."""
    turns = answers.turns
    return [AnswerShape.of(len(answers.completion_ids[row]), turns[row] if turns else None) for row in rows]


def unwrapped(function: Any) -> Any:
    """What a `partial` is made of, everything else as it is."""
    while isinstance(function, partial):
        function = function.func
    return function


def name_of(choice: str | Callable[..., Any]) -> str:
    """What a reward is called in metrics: its name in the table or its function's, `lambda` for those without."""
    return _entry(choice).name


def reward_function(
    choice: str | Callable[..., Any], options: Mapping[str, Any] | None = None, *, name: str | None = None
) -> RewardFunction:
    """A row of the table or a function of the user's, with its settings.

    Args:
        choice: a name of the table or a callable.
        name: another name than its own.
        options: for a keyword-only parameter its value; for any other the name of the column that it takes.

    Raises:
        ValueError: an unknown name, an option that the function does not read, or a setting without a value.
        TypeError: no callable, or one with parameters that cannot be given by keyword.
        ImportError: the package that it needs is absent.
    """
    entry = _entry(choice)
    package = entry.facts["package"]
    if package and importlib.util.find_spec(package) is None:
        raise ImportError(f"the reward {entry.name!r} needs the package {package}: pip install 'burnish[rewards]'")
    parameters = _parameters(entry)
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    settings, sources = _split_options(entry.name, named, options or {})
    unset = [n for n, p in named.items() if p.kind is p.KEYWORD_ONLY and p.default is p.empty and n not in settings]
    if isinstance(choice, str) and unset:
        raise ValueError(
            f"the reward {choice!r} needs {unset}: set reward_options={{{choice!r}: {{{unset[0]!r}: ...}}}}"
        )
    left = {name: p for name, p in named.items() if name not in settings}
    return RewardFunction(
        name=name or entry.name,
        function=partial(entry.function, **settings) if settings else entry.function,
        facts=entry.facts,
        parameters=frozenset(left),
        required=frozenset(name for name, p in left.items() if p.default is p.empty),
        takes_all=any(p.kind is p.VAR_KEYWORD for p in parameters.values()),
        sources=sources,
    )


def _entry(choice: Any) -> Entry[..., Any]:
    """The row of a name or of a function that is in the table, `partial` or not, else one with the default facts."""
    if isinstance(choice, str):
        return reward_functions[choice]
    if isinstance(choice, ClassifierReward):
        return Entry(choice.name, choice, None, {**reward_functions.entry(choice).facts, "isolation": "none"})
    if not callable(choice) or isinstance(choice, type):
        raise TypeError(f"a reward is the name of one, a function or a model; {choice!r} is {type(choice).__name__}")
    inner = unwrapped(choice)
    name = own_name(inner).replace("<lambda>", "lambda")
    facts = reward_functions.entry(inner).facts
    return Entry(type(inner).__name__ if name == "custom" else name, choice, None, facts)


def _parameters(entry: Entry[..., Any]) -> Mapping[str, inspect.Parameter]:
    parameters = inspect.signature(entry.function).parameters
    for parameter in parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise TypeError(
                f"the reward {entry.name!r} has the positional-only parameter {parameter.name!r}; rewards are called "
                "by keyword, as in TRL: def reward(completions, **kwargs)"
            )
    return parameters


def _split_options(
    name: str, parameters: Mapping[str, inspect.Parameter], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings, and the columns that parameters are taken from."""
    settings: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for option, value in options.items():
        if option not in parameters or option in RESERVED:
            known = sorted(set(parameters) - set(RESERVED))
            raise ValueError(
                f"reward_options: {name!r} does not read {option!r}{closest(option, known)}; it reads {known}"
            )
        if parameters[option].kind is inspect.Parameter.KEYWORD_ONLY:
            settings[option] = value
        elif isinstance(value, str):
            sources[option] = value
        else:
            raise ValueError(
                f"reward_options: {option!r} of the reward {name!r} is a column of the data set, named by a text; "
                f"found {value!r}"
            )
    return settings, sources
