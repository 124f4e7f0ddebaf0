"""Reward functions and models -> `RewardTable`. The only place that calls code of users.

Where a function runs: a name of the table or a function that can be imported in a worker process that can be killed
(`burnish.rewards.worker`), any other in a thread under a watch (`burnish.rewards.watchdog`), a model here.
Whatever goes wrong is a `RewardError` that names function, row, prompt and answer; or, with `on_error="unscored"`,
an answer without a score from that function, counted, and an event.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from burnish.rewards.attempts import Attempts, Outcome
from burnish.rewards.calling import RESERVED, RewardFunction, name_of, reward_function, shapes_of
from burnish.rewards.calls import Reply, run_call
from burnish.rewards.log import ScoreLog, log_of, message_of
from burnish.rewards.watchdog import Watchdog, call_directly
from burnish.rewards.worker import Worker, target_of
from burnish.types import RewardTable

if TYPE_CHECKING:
    from burnish.types import Answers

ISOLATIONS = ("auto", "process", "none")
POLICIES = ("raise", "unscored")


class RewardError(ValueError):
    """A reward function failed; the message names it, the row, the prompt and the answer."""


class Scorer:
    """Scores answers with one or several reward functions.

    Args:
        reward_funcs: one or several names of the table or callables with TRL's signature, async ones too.
        weights: the factor of each in the total; all 1 by default.
        options: name -> {parameter: value}: settings of keyword-only parameters, and for other parameters the name of
            the column that they take: {"math": {"answer": "solution"}}.
        isolation: `auto` and `process` call what can be imported in workers, `process` refuses what cannot; `none`
            calls in this process what does not always need a worker.
        timeout: seconds of one call, or None for no limit; calls in this process are then made in the main thread.
        retries: how often a call that raised, hung or crashed is tried again.
        on_error: `raise`, or `unscored`: an answer without a score from that function, counted.

    Example: Scorer(["number", lambda completions, **_: [-len(c) / 1000 for c in completions]], weights=[1, 0.1]).
    """

    def __init__(
        self,
        reward_funcs: str | Callable[..., Any] | Sequence[str | Callable[..., Any]],
        *,
        weights: Sequence[float] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        isolation: str = "auto",
        timeout: float | None = 60.0,
        retries: int = 0,
        on_error: str = "raise",
    ) -> None:
        self.on_error, self.retries, self.timeout = on_error, retries, timeout
        _check_settings(isolation, timeout, retries, on_error)
        choices: Any = reward_funcs if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        self.functions = _resolve(choices, options or {})
        self.names = tuple(function.name for function in self.functions)
        self.weights = _weights(weights, self.names)
        self._watchdogs = {function.name: Watchdog() for function in self.functions}
        self._workers = _workers(self.functions, isolation)

    def check_columns(self, columns: Iterable[str]) -> None:
        """Refuse a data set whose columns do not fit, before anything is generated.

        Raises:
            ValueError: a function needs a column that is not there, or a column has a name that functions are called
                with already.
        """
        columns = sorted(columns)
        if taken := sorted(set(columns) & set(RESERVED)):
            raise ValueError(
                f"the data set has the column {taken[0]!r}, and reward functions get {', '.join(RESERVED)} from the "
                "trainer: rename it"
            )
        for function in self.functions:
            for parameter, column in function.missing(columns).items():
                hint = f"reward_options={{{function.name!r}: {{{parameter!r}: '<column>'}}}}"
                raise ValueError(
                    f"the reward {function.name!r} needs the column {column!r}, and the data set has {columns}. "
                    f"Add it, rename one, or say which one it is: {hint}"
                )

    def score(
        self,
        answers: Answers,
        *,
        num_tokens: int,
        trainer_state: Any = None,
        device: torch.device | str = "cpu",
    ) -> tuple[RewardTable, ScoreLog]:
        """Every answer's reward from every function.

        Args:
            answers: N answers with their prompts and columns.
            num_tokens: T, the width of `token_rewards`.
            trainer_state: given to functions that take it.
            device: where the table and the metrics are.

        Raises:
            RewardError: a function failed, and `on_error` is `raise`.

        Returns:
            The table, and what is logged about it.
        """
        outcomes = self._outcomes(answers, trainer_state)
        for name in self.names if self.on_error == "raise" else ():
            for failure in outcomes[name].failures[:1]:
                raise RewardError(message_of(name, failure, answers)) from failure.error
        shape = len(answers), len(self.names)
        values = [outcomes[name].scores[row].value for row in range(len(answers)) for name in self.names]
        table = RewardTable(
            rewards=torch.tensor(values, dtype=torch.float32, device=device).reshape(shape),
            names=self.names,
            weights=torch.tensor(self.weights, dtype=torch.float32, device=device),
            token_rewards=self._token_rewards(outcomes, (len(answers), num_tokens), device),
        )
        return table, log_of(outcomes, answers, device)

    def close(self) -> None:
        """End the worker processes; the next `score` starts new ones."""
        for worker in self._workers.values():
            worker.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _outcomes(self, answers: Answers, trainer_state: Any) -> dict[str, Outcome]:
        """Workers and coroutines at the same time; other functions one after the other, in their order."""
        attempts = {f.name: self._attempts(f, answers, trainer_state) for f in self.functions}
        rows = range(len(answers))
        together = [f.name for f in self.functions if f.name in self._workers or _is_async(f.function)]
        with ThreadPoolExecutor(max_workers=max(len(together), 1)) as pool:
            try:
                running = {name: pool.submit(attempts[name].score, rows) for name in together}
                outcomes = {name: attempts[name].score(rows) for name in self.names if name not in running}
                outcomes |= {name: future.result() for name, future in running.items()}
            except BaseException:
                self.close()  # the pool waits for its calls
                raise
        return {name: outcomes[name] for name in self.names}

    def _attempts(self, function: RewardFunction, answers: Answers, trainer_state: Any) -> Attempts:
        limits = [limit for limit in (self.timeout, function.facts["seconds"]) if limit is not None]
        return Attempts(
            call=partial(self._call, function, answers, trainer_state),
            per_answer=function.facts["per_answer"],
            seconds=min(limits) if limits else None,
            overdue=function.facts["overdue"],
            retries=self.retries,
            stop_early=self.on_error == "raise",
        )

    def _call(
        self,
        function: RewardFunction,
        answers: Answers,
        trainer_state: Any,
        rows: Sequence[int],
        seconds: float | None,
    ) -> Reply:
        arguments = function.arguments(answers, rows, trainer_state)
        shapes = shapes_of(answers, rows)
        if function.name in self._workers:
            return self._workers[function.name].call(arguments, shapes, function.wants, seconds)
        call = partial(run_call, function.function, arguments, shapes, function.wants)
        if seconds is None or function.facts["isolation"] == "none":
            return call_directly(call)
        return self._watchdogs[function.name].call(call, seconds)

    def _token_rewards(
        self, outcomes: Mapping[str, Outcome], shape: tuple[int, int], device: torch.device | str
    ) -> torch.Tensor | None:
        """(N, T) weighted rewards of turns and spans, or None if there are none."""
        placed = [
            (row, position, weight * value)
            for name, weight in zip(self.names, self.weights, strict=True)
            for row, score in outcomes[name].scores.items()
            for position, value in score.tokens
        ]
        if not placed:
            return None
        rows, positions, values = zip(*placed, strict=True)
        places = torch.tensor(rows), torch.tensor(positions)
        return torch.zeros(shape).index_put(places, torch.tensor(values), accumulate=True).to(device)


def _check_settings(isolation: str, timeout: float | None, retries: int, on_error: str) -> None:
    if isolation not in ISOLATIONS:
        raise ValueError(f"reward_isolation is {isolation!r}; it is one of {', '.join(ISOLATIONS)}")
    if on_error not in POLICIES:
        raise ValueError(f"on_reward_error is {on_error!r}; it is one of {', '.join(POLICIES)}")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"reward_timeout is {timeout!r}; it is a number of seconds above 0, or None for no limit")
    if retries < 0:
        raise ValueError(f"reward_retries is {retries!r}; it is 0 or more")


def _resolve(
    choices: Sequence[str | Callable[..., Any]], options: Mapping[str, Mapping[str, Any]]
) -> tuple[RewardFunction, ...]:
    """Each with its options and a name of its own: the second `lambda` is `lambda_2`."""
    if not choices:
        raise ValueError("reward_funcs is empty: give at least one name, function or model")
    functions: list[RewardFunction] = []
    plain_names: list[str] = []
    for choice in choices:
        plain_names.append(name_of(choice))
        count = plain_names.count(plain_names[-1])
        name = plain_names[-1] if count == 1 else f"{plain_names[-1]}_{count}"
        functions.append(reward_function(choice, options.get(name), name=name))
    known = [function.name for function in functions]
    if unread := sorted(set(options) - set(known)):
        raise ValueError(f"reward_options has {unread}, and the rewards are {known}: options go by the reward's name")
    return tuple(functions)


def _workers(functions: Sequence[RewardFunction], isolation: str) -> dict[str, Worker]:
    """A worker for each function that gets one; none is started yet."""
    workers: dict[str, Worker] = {}
    for function in functions:
        wished = "process" if function.facts["isolation"] == "process" else isolation
        if function.facts["isolation"] == "none" or wished == "none":
            continue
        target = target_of(function.function, package=function.facts["package"] or "")
        if target is not None:
            workers[function.name] = Worker(target)
        elif isolation == "process":
            raise ValueError(
                f"reward_isolation='process': the reward {function.name!r} cannot be imported by a worker, since it is "
                "no function at the top of a module. Move it to a module beside the script, or set "
                "reward_isolation='auto', which calls it in this process"
            )
    return workers


def _weights(weights: Sequence[float] | None, names: Sequence[str]) -> tuple[float, ...]:
    if weights is None:
        return (1.0,) * len(names)
    if len(weights) != len(names):
        raise ValueError(f"reward_weights has {len(weights)} numbers for the {len(names)} rewards {list(names)}")
    if bad := [weight for weight in weights if not math.isfinite(weight)]:
        raise ValueError(f"reward_weights has {bad[0]}; each is a finite number")
    return tuple(float(weight) for weight in weights)


def _is_async(function: Callable[..., Any]) -> bool:
    """A coroutine function, or an object with an asynchronous `__call__`."""
    inner = function.func if isinstance(function, partial) else function
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)
