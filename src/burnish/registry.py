"""Tables: a name, its function and the facts about it. Each name occurs in code once, at its function.

    @preference_loss("hinge", paper="2305.10425")
    def hinge(pair: PairLogps, *, beta: float) -> Tensor: ...

`Table.bind` turns names and a configuration into closed functions, so that no loss ever sees a configuration.

Installed packages add rows of their own through an entry point, in their pyproject.toml:

    [project.entry-points."burnish.plugins"]
    my_losses = "my_package.losses"

It names a module; the first look-up of a name that no table has imports it, so that its decorators run.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from importlib.metadata import entry_points
from typing import Any, Generic, ParamSpec, TypeVar

Signature = ParamSpec("Signature")
Result = TypeVar("Result")
PLUGIN_GROUP = "burnish.plugins"


@dataclass(frozen=True)
class Entry(Generic[Signature, Result]):
    """A row of a table: the function and what is known about it.

    Attributes:
        facts: whatever the table's rooms ask for instead of branching on the name: `per`, `couples_rows`, `needs`.
    """

    name: str
    function: Callable[Signature, Result]
    paper: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def hyper_parameters(self) -> dict[str, Any]:
        """The function's keyword-only parameters and their defaults (`inspect.Parameter.empty` for none).

        Those of the fact `follows` are no settings: the trainer fills them in as the run goes on.
        """
        parameters = inspect.signature(self.function).parameters.values()
        followed = self.facts.get("follows", ())
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in followed}


class Table(Generic[Signature, Result]):
    """Functions of one kind, by name.

    Args:
        kind: what the rows are, for messages: "preference loss".
        defaults: the facts that a row has unless it says otherwise; a row may state no other fact.
    """

    def __init__(self, kind: str, **defaults: Any) -> None:
        self.kind = kind
        self._defaults = defaults
        self._entries: dict[str, Entry[Signature, Result]] = {}

    def register(
        self, name: str, *, paper: str | None = None, **facts: Any
    ) -> Callable[[Callable[Signature, Result]], Callable[Signature, Result]]:
        """Decorator: put a function into the table under `name`.

        Raises:
            ValueError: the name is taken, or a fact is unknown to the table.
        """
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered already, by {self._entries[name].function}")
        if unknown := set(facts) - set(self._defaults):
            raise ValueError(f"{self.kind} {name!r} states {sorted(unknown)}; known facts: {sorted(self._defaults)}")

        def add(function: Callable[Signature, Result]) -> Callable[Signature, Result]:
            self._entries[name] = self._entry(name, function, paper, facts)
            return function

        return add

    def _entry(
        self, name: str, function: Callable[Signature, Result], paper: str | None, facts: Mapping[str, Any]
    ) -> Entry[Signature, Result]:
        return Entry(name, function, paper, {**self._defaults, **facts})

    def __iter__(self):
        return iter(self._entries)

    def __getitem__(self, name: str) -> Entry[Signature, Result]:
        plugins = () if name in self._entries else load_plugins()
        if name not in self._entries:
            near = closest(name, self._entries)
            broken = "".join(f"; {plugin.problem}" for plugin in plugins if plugin.problem)
            raise ValueError(f"unknown {self.kind} {name!r}{near}; known: {', '.join(sorted(self._entries))}{broken}")
        return self._entries[name]

    def entry(self, choice: str | Callable[Signature, Result]) -> Entry[Signature, Result]:
        """The row of a name or of a function of the table; any other callable is a row with the default facts.

        Raises:
            ValueError: an unknown name.
            TypeError: neither a name nor a function.
        """
        if isinstance(choice, str):
            return self[choice]
        if not callable(choice):
            raise TypeError(f"{self.kind} {choice!r} is of type {type(choice).__name__}: give one name or one function")
        for known in self._entries.values():
            if known.function is choice:
                return known
        return self._entry(own_name(choice), choice, None, {})

    def bind(
        self,
        choices: Sequence[str | Callable[Signature, Result]],
        config: Any,
        overrides: Mapping[str, Any] | None = None,
        *,
        read_elsewhere: frozenset[str] = frozenset(),
    ) -> list[Entry[Any, Result]]:
        """Rows with their hyper-parameters filled in: from `overrides`, else the config field of that name.

        Config fields in `read_elsewhere` may be set whichever functions are chosen.

        Raises:
            ValueError: an unknown name (with the closest ones), a name twice, a hyper-parameter without a value, an
                override that no chosen function reads, or a config field of this table that is set away from its
                default although no chosen function reads it: an unread option is a lie.
        """
        overrides = overrides or {}
        chosen = [self.entry(choice) for choice in choices]
        if len({entry.name for entry in chosen}) < len(chosen):
            names = [entry.name for entry in chosen]
            raise ValueError(f"{self.kind} {names} has a name twice, and metrics go by name: keep one, or rename it")
        read = {name for entry in chosen for name in entry.hyper_parameters}
        self._refuse_unread(chosen, read, read_elsewhere, config, overrides)
        bound: list[Entry[Any, Result]] = []
        for entry in chosen:
            values = {name: _value(self.kind, entry, name, config, overrides) for name in entry.hyper_parameters}
            bound.append(Entry(entry.name, partial(entry.function, **values), entry.paper, entry.facts))
        return bound

    def _refuse_unread(
        self,
        chosen: Sequence[Entry[Any, Any]],
        read: set[str],
        read_elsewhere: frozenset[str],
        config: Any,
        overrides: Mapping[str, Any],
    ) -> None:
        names = [entry.name for entry in chosen]
        if unread := sorted(set(overrides) - read):
            raise ValueError(f"loss_kwargs {unread} are read by none of {names}; they read: {sorted(read)}")
        known = {name for entry in self._entries.values() for name in entry.hyper_parameters}
        for config_field in fields(config):
            name = config_field.name
            if name not in known - read - read_elsewhere or config_field.default is MISSING:
                continue
            if getattr(config, name) != config_field.default:
                readers = sorted(e.name for e in self._entries.values() if name in e.hyper_parameters)
                raise ValueError(
                    f"{name}={getattr(config, name)!r} is set, but the {self.kind} {names} does not read it. "
                    f"Leave it at {config_field.default!r}, or choose one that does: {', '.join(readers)}"
                )


@dataclass(frozen=True)
class Plugin:
    """A module that an installed package has registered.

    Attributes:
        name: of the entry point.
        module: that is imported.
        package: its name and version.
        problem: why it could not be imported, in a sentence, or nothing.
    """

    name: str
    module: str
    package: str
    problem: str = ""


def has_plugins() -> bool:
    """Whether some installed package has registered a module; imports none."""
    return bool(entry_points(group=PLUGIN_GROUP))


@functools.cache
def load_plugins() -> tuple[Plugin, ...]:
    """Import the modules that installed packages have registered, once; one that fails is warned of and passed over."""
    found: list[Plugin] = []
    for point in sorted(entry_points(group=PLUGIN_GROUP), key=lambda point: point.name):
        package = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unnamed package"
        problem = ""
        try:
            importlib.import_module(point.module)
        except Exception as error:  # whatever it is, it must not cost those of other packages
            problem = (
                f"the plugin {point.name!r} of {package} could not be imported: {point.module} raised "
                f"{type(error).__name__}: {error}"
            )
            warnings.warn(problem, stacklevel=2)
        found.append(Plugin(point.name, point.module, package, problem))
    return tuple(found)


def loaded_plugins() -> tuple[Plugin, ...]:
    """Those that `load_plugins` has imported so far."""
    is_loaded = load_plugins.cache_info().currsize > 0
    return tuple(plugin for plugin in load_plugins() if not plugin.problem) if is_loaded else ()


def origin(function: Callable[..., Any]) -> str | None:
    """Where a function of a table comes from, if it is not the library's own: its module, and the package of that."""
    module = function.__module__
    if module.split(".")[0] == __name__.split(".")[0]:
        return None
    owners = (plugin for plugin in load_plugins() if plugin.module.split(".")[0] == module.split(".")[0])
    return f"{module}:{function.__qualname__}" + next((f", of {plugin.package}" for plugin in owners), "")


def own_name(function: Callable[..., Any]) -> str:
    """What a function is called in its own module; `custom` for a callable without a name."""
    return getattr(function, "__name__", "custom")


def closest(name: str, known: Any) -> str:
    """The phrase ', did you mean ...?' for a misspelt name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f", did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def _value(kind: str, entry: Entry[Any, Any], name: str, config: Any, overrides: Mapping[str, Any]) -> Any:
    if name in overrides:
        return overrides[name]
    if name in {config_field.name for config_field in fields(config)}:
        return getattr(config, name)
    default = entry.hyper_parameters[name]
    if default is inspect.Parameter.empty:
        raise ValueError(
            f"the {kind} {entry.name!r} needs {name!r}, which {type(config).__name__} does not have: "
            f"pass loss_kwargs={{{name!r}: ...}}"
        )
    return default
