"""The contract of trainers: a class, tried on a tiny model and rows of the kind that it reads."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.testing.contract import assert_laws, chosen_laws
from burnish.testing.tiny import ROWS, near_wanted, tiny_model
from burnish.testing.training import FULL, LAWS
from burnish.testing.trials import Case, Trial

SIZES = (2, FULL)


def assert_trainer_contract(
    trainer: type[Any],
    *,
    options: Mapping[str, Any] | None = None,
    make_rows: Callable[[int], Sequence[Mapping[str, Any]]] | None = None,
    make_model: Callable[..., Any] = tiny_model,
    make_keywords: Callable[[], Mapping[str, Any]] | None = None,
    reward_funcs: Any = near_wanted,
    processes: int = 2,
    without: Collection[str] = (),
) -> None:
    """A trainer keeps the laws of trainers.

    Its gradient does not depend on what is in the padding, on the order of rows, on micro-batches, on a token budget,
    or on the number of processes; a step lowers the loss, and makes good answers likelier; all is finite for a model
    that is very sure; logging changes nothing; and a run that is stopped and resumed is bit for bit the whole one.

    Args:
        trainer: a subclass of `PolicyTrainer` or `OnlineTrainer`.
        options: of its configuration.
        make_rows: (count) -> rows; if None, rows of the kind that its
            configuration reads (`row_kind`): preferences, prompts, supervised, judged.
        make_model: (seed, dtype) -> the model; if None, a tiny random one.
        make_keywords: -> further keywords of the constructor, made anew for each trainer.
        reward_funcs: of a trainer that draws its own answers.
        processes: of the law about them; 1 leaves it out, as classes that are defined in a script must.
        without: names of laws that the method breaks on purpose.

    Raises:
        ContractError: a law is broken; the message says which, and shows the smallest case.
        ValueError: there are no rows of its kind, or an unknown law.
    """
    laws = chosen_laws(LAWS, without)
    kind = trainer.config_class.row_kind
    if make_rows is None and kind not in ROWS:
        raise ValueError(
            f"{trainer.__name__} reads rows of the kind {kind!r}, and there are made-up ones of "
            f"{', '.join(ROWS)}: pass make_rows=, a function (count) -> list of rows"
        )
    with tempfile.TemporaryDirectory(prefix="burnish-contract-") as directory:
        trial = Trial(
            trainer=trainer,
            options=options or {},
            make_rows=make_rows or ROWS[kind],
            make_model=make_model,
            make_keywords=make_keywords,
            reward_funcs=reward_funcs,
            processes=processes,
            directory=Path(directory),
        )
        assert_laws(f"the trainer {trainer.__name__}", trial, laws, map(trial.case, SIZES), show=Case.show)
