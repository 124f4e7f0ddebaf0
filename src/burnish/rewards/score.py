"""Reward functions and models -> `RewardTable`. The only place that calls code of users.

Where a function runs: a name of the table or a function that can be imported in a worker process that can be killed
(`burnish.rewards.worker`), any other in a thread under a watch (`burnish.rewards.watchdog`), a model here.
Whatever goes wrong is a `RewardError` that names function, row, prompt and answer; or, with `on_error="unscored"`,
an answer without a score from that function, counted, and an event.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from burnish.rewards.attempts import Attempts, Outcome
from burnish.rewards.calling import RESERVED, RewardFunction, shapes_of, unwrapped
from burnish.rewards.calls import Reply, run_call
from burnish.rewards.choices import RewardChoice, check_settings, resolve, weights_of, with_models, workers_of
from burnish.rewards.log import ScoreLog, log_of, message_of
from burnish.rewards.models import ClassifierReward
from burnish.rewards.watchdog import Watchdog, call_directly
from burnish.types import RewardTable

if TYPE_CHECKING:
    from burnish.types import Answers


class RewardError(ValueError):
    """A reward function failed; the message names it, the row, the prompt and the answer."""


class Scorer:
    """Scores answers with one or several reward functions.

    Args:
        reward_funcs: one or several of: a name of the table; a callable with TRL's signature, async ones too; a
            sequence classifier with one label, loaded or by its name or path.
        processing_classes: a tokenizer for each of `reward_funcs` that is a model, None for the others and for models
            with a tokenizer beside them; or one for a single model.
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
        reward_funcs: RewardChoice | Sequence[RewardChoice],
        *,
        processing_classes: Any = None,
        weights: Sequence[float] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        isolation: str = "auto",
        timeout: float | None = 60.0,
        retries: int = 0,
        on_error: str = "raise",
    ) -> None:
        self.on_error, self.retries, self.timeout = on_error, retries, timeout
        check_settings(isolation, timeout, retries, on_error)
        choices: Any = reward_funcs if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        self.functions = resolve(with_models(choices, processing_classes), options or {})
        self.names = tuple(function.name for function in self.functions)
        self.weights = weights_of(weights, self.names)
        self._watchdogs = {function.name: Watchdog() for function in self.functions}
        self._workers = workers_of(self.functions, isolation)
        inner = {function.name: unwrapped(function.function) for function in self.functions}
        self.models = {name: model for name, model in inner.items() if isinstance(model, ClassifierReward)}

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
        frozen: bool = False,
    ) -> tuple[RewardTable, ScoreLog]:
        """Every answer's reward from every function.

        Args:
            answers: N answers with their prompts and columns.
            num_tokens: T, the width of `token_rewards`.
            trainer_state: given to functions that take it.
            device: where the table and the metrics are.
            frozen: running statistics do not take in these scores, as in an evaluation.

        Raises:
            RewardError: a function failed, and `on_error` is `raise`.

        Returns:
            The table, and what is logged about it.
        """
        state = self.state_dict()
        outcomes = self._outcomes(answers, trainer_state)
        if frozen:
            self.load_state_dict(state)
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

    def to(self, device: torch.device | str) -> Scorer:
        """Move the reward models to a device."""
        for model in self.models.values():
            model.to(device)
        return self

    def update(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """End a round: the running statistics of reward models take in its scores. `reduce` sums over all ranks."""
        for model in self.models.values():
            model.moments.update(reduce)

    def state_dict(self) -> dict[str, Any]:
        """The running statistics of reward models."""
        return {name: model.moments.state_dict() for name, model in self.models.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for name, model in self.models.items():
            model.moments.load_state_dict(state[name])

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


def _is_async(function: Callable[..., Any]) -> bool:
    """A coroutine function, or an object with an asynchronous `__call__`."""
    inner = unwrapped(function)
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)
