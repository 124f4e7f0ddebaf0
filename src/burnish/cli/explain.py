"""What a name of a run file is: a method, a loss, an advantage, a reward, an option or a metric, in its own words.

Everything is read off the tables, docstrings and option sentences that the library itself runs by.
"""

from __future__ import annotations

import importlib
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from burnish.cli.methods import METHODS, find, load, method_named
from burnish.cli.template import options_of
from burnish.cli.validate import is_function_name, load_schema, own_method_problem, training_schema
from burnish.metrics import EXPLANATIONS
from burnish.metrics import explain as explain_metric
from burnish.registry import closest, load_plugins, origin

if TYPE_CHECKING:
    from burnish.registry import Entry, Table

PAPER = "https://arxiv.org/abs/"
SHOWN = {"per": "averaged over each", "ratio": "ratio of a", "aggregation": "put together by"}
CLAIMS = ("unbiased", "never_negative")


@dataclass(frozen=True)
class Home:
    """Where the rows of a table are, and the key of a run file that names one."""

    table: str
    key: str

    def load(self) -> Table[..., Any]:
        """The table; imports torch."""
        module, _, name = self.table.rpartition(".")
        return vars(importlib.import_module(module))[name]


HOMES = (
    Home("burnish.losses.preference_losses", "training.loss_type, with method: dpo"),
    Home("burnish.losses.reward_losses", "training.loss_type, with method: reward"),
    Home("burnish.losses.supervised_losses", "training.loss_type, with method: sft"),
    Home("burnish.losses.unpaired_losses", "training.loss_type, with method: kto"),
    Home("burnish.losses.policy_losses", "training.loss_type, with method: grpo"),
    Home("burnish.losses.divergences", "training.f_divergence_type"),
    Home("burnish.losses.kl_estimators", "training.kl_estimator"),
    Home("burnish.losses.aggregations", "training.loss_aggregation"),
    Home("burnish.advantages.advantages", "training.advantage"),
    Home("burnish.importance.importance_corrections", "training.importance_sampling_mode"),
    Home("burnish.rewards.catalog.reward_functions", "rewards"),
)


def explain(name: str) -> str:
    """Everything that has this name, one passage each.

    Args:
        name: a method, a row of a table, an option of a method, or a metric.

    Raises:
        ValueError: nothing has it; the message says what comes near.
    """
    load_plugins()
    passages = list(_passages(name))
    if not passages:
        known = {*METHODS, *EXPLANATIONS, *(row for home in HOMES for row in home.load())}
        raise ValueError(f"nothing is called {name!r}{closest(name, known)}; all names: burnish explain")
    return "\n\n\n".join(passages)


def catalogue() -> str:
    """The names of all methods and rows of tables, kind by kind, those of installed packages as well."""
    load_plugins()
    kinds = {"methods": list(METHODS)} | {_several(table): list(table) for table in map(Home.load, HOMES)}
    passages = [
        textwrap.fill(f"{kind}: {', '.join(names)}", 110, subsequent_indent="  ") for kind, names in kinds.items()
    ]
    return "\n".join([*passages, "Also every option and every metric. One of them: burnish explain NAME"])


def _passages(name: str) -> Iterator[str]:
    if is_function_name(name) and (problem := own_method_problem(name)) is not None:
        raise ValueError(problem)
    if find(name) is not None:
        yield _method(name)
    for home in HOMES:
        table = home.load()
        if name in table:
            yield _row(table, table[name], home.key)
    of_methods: dict[str, list[str]] = {}
    for method, definition in load_schema()["$defs"].items():
        if name in definition["properties"]:
            of_methods.setdefault(_option(method, name), []).append(method)
    for sentence, methods in of_methods.items():
        yield f"{name}: an option of {', '.join(methods)}.\n\n{_wrapped(sentence)}"
    if (sentence := explain_metric(name)) is not None:
        yield f"{name}: a metric.\n\n{_wrapped(sentence)}"


def _method(name: str) -> str:
    """Rooms, classes, losses and the options that matter of a method."""
    config, trainer = load(method_named(name))
    losses = [] if trainer.loss_table is None else [f"Losses (loss_type): {', '.join(trainer.loss_table)}"]
    return "\n\n".join(
        [
            f"{name}: a method. {trainer.__name__}(model, args={config.__name__}(...), ...)",
            *_rooms(trainer),
            inspect.getdoc(trainer) or "",
            *map(_wrapped, losses),
            f"Options that matter most; all of them: burnish init {name} --all",
            "\n".join(_wrapped("  " + _option(name, option), indent=6) for option in options_of(name)),
        ]
    )


def _rooms(trainer: type) -> list[str]:
    """How a batch flows, as the modules say it from the method's own down to the one of all trainers."""
    from burnish.trainers.base import PolicyTrainer

    modules = dict.fromkeys(base.__module__ for base in trainer.__mro__ if issubclass(base, PolicyTrainer))
    return [f"{name}: {inspect.getdoc(importlib.import_module(name))}" for name in modules]


def _several(table: Table[..., Any]) -> str:
    return table.kind + ("es" if table.kind.endswith("s") else "s")


def _row(table: Table[..., Any], entry: Entry[..., Any], key: str) -> str:
    """Docstring, facts and hyper-parameters of a row."""
    facts = [f"{words} {entry.facts[fact]}" for fact, words in SHOWN.items() if entry.facts.get(fact) is not None]
    facts += [f"needs {', '.join(sorted(entry.facts['needs']))}"] if entry.facts.get("needs") else []
    facts += [claim.replace("_", " ") for claim in CLAIMS if entry.facts.get(claim)]
    parts = [
        f"{entry.name}: one of the {_several(table)}. In a run file: {key}.",
        inspect.getdoc(entry.function) or "",
        f"Takes: {_operands(entry)}.",
    ]
    if facts:
        parts.append(f"Facts: {'; '.join(facts)}.")
    if entry.hyper_parameters:
        values = (
            name if default is inspect.Parameter.empty else f"{name}={default!r}"
            for name, default in entry.hyper_parameters.items()
        )
        parts.append(f"Hyper-parameters, options of the same name or loss_kwargs: {', '.join(values)}.")
    if (place := origin(entry.function)) is not None:
        parts.append(f"From: {place}")
    if entry.paper is not None:
        parts.append(f"Paper: {PAPER}{entry.paper}")
    return "\n\n".join(parts)


def _operands(entry: Entry[..., Any]) -> str:
    """What the function is given, with types and shapes, and what it returns."""
    signature = inspect.signature(entry.function)
    operands = [p for p in signature.parameters.values() if p.kind is not p.KEYWORD_ONLY]
    words = ", ".join(f"{p.name} {p.annotation}" if isinstance(p.annotation, str) else p.name for p in operands)
    returned = signature.return_annotation
    return f"{words} -> {returned}" if isinstance(returned, str) else words


def _option(method: str, name: str) -> str:
    """An option's default and sentence."""
    found = training_schema({"method": method})["properties"][name]
    return f"{name} = {json.dumps(found.get('default'))}: {found['description']}"


def _wrapped(text: str, *, indent: int = 2) -> str:
    return textwrap.fill(
        text, 110, initial_indent=" " * (len(text) - len(text.lstrip())), subsequent_indent=" " * indent
    )
