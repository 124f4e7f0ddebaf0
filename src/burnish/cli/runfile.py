"""A run file: one YAML file that says everything about a run. Strict, and checked without importing torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from burnish.cli.adapters import DEFAULT_KIND, adapter_problems
from burnish.cli.functions import config_problems
from burnish.cli.rules import REDACTED, rule_problems
from burnish.cli.sources import RECIPE, recipe_names, rewards_of, source_problems, train_sources
from burnish.cli.validate import (
    Problem,
    is_function_name,
    load_schema,
    own_method_problem,
    schema_problems,
    training_schema,
)
from burnish.cli.yamlfile import Document, KeyPath, YamlError, parse_value, parse_yaml
from burnish.registry import closest, has_plugins, load_plugins, loaded_plugins
from burnish.runtime.functions import look_in


class RunFileError(ValueError):
    """A run file that cannot be run; the message numbers every problem, with its key and line."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        many = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        numbered = [f"{number:>3}. {problem}" for number, problem in enumerate(problems, start=1)]
        super().__init__("\n".join([f"{source}: {many}", *numbered]))


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """What a run file says, with the defaults of everything but `training`.

    Attributes:
        source: where it was read from.
        method: a name of `burnish.cli.methods.METHODS`, or `module:Trainer`.
        model, ref_model: as `DPOTrainer` takes them.
        peft: the adapter to train, `type` and fields, or None.
        rewards: what scores the answers, of methods that draw their own.
        train: source of the rows, or names with one each.
        streaming: read them as they are needed.
        eval: source of the held-out rows, or names with one each, or None.
        eval_rows: hold out so many rows of `train`, or None.
        samples: so many prompts are answered before and after.
        max_new_tokens: the longest such answer.
        import_from: where modules that it names are looked for first; None for packaged recipes.
        training: options of the method's configuration, those that are given.
    """

    source: str
    method: str
    model: str
    ref_model: str | None
    peft: Mapping[str, Any] | None
    rewards: tuple[str, ...]
    train: str | Mapping[str, str]
    streaming: bool
    eval: str | Mapping[str, str] | None
    eval_rows: int | None
    samples: int
    max_new_tokens: int
    import_from: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def as_dict(self) -> dict[str, Any]:
        """The run file again, with paths that hold wherever it is read."""
        return {
            "method": self.method,
            "model": _absolute(self.model),
            "ref_model": _absolute(self.ref_model),
            "peft": None if self.peft is None else dict(self.peft),
            "rewards": [_absolute_reward(reward) for reward in self.rewards] or None,
            "data": {
                "train": _absolute(self.train),
                "streaming": self.streaming,
                "eval": _absolute(self.eval),
                "eval_rows": self.eval_rows,
            },
            "samples": self.samples,
            "max_new_tokens": self.max_new_tokens,
            **({"import_from": self.import_from} if self._names_code() else {}),
            "training": dict(self.training),
        }

    def _names_code(self) -> bool:
        options = [item for value in self.training.values() for item in (value if isinstance(value, list) else [value])]
        named = (self.method, *self.rewards, *options)
        return any(isinstance(item, str) and is_function_name(item) for item in named)


def load_runfile(path: str | Path, overrides: Sequence[str] = ()) -> RunFile:
    """Read and check a run file.

    Args:
        path: a YAML file, or `recipe:NAME` for one of this package.
        overrides: texts `key=value`, the value in YAML; `data.train=rows.jsonl`, `training.beta=0.2`, or
            for an option of `training` `beta=0.2`.

    Raises:
        RunFileError: with every problem of the file and the overrides.
    """
    examined = examine(path, overrides)
    if examined.problems:
        raise RunFileError(examined.source, examined.problems)
    return examined.runfile()


@dataclass(frozen=True)
class Examined:
    """A run file with what is wrong with it.

    Attributes:
        source: where it was read from.
        document: its value with the overrides in their places.
        problems: a sentence each, in the order of the file.
        broken: the keys that are wrong by themselves; options of `training` by their own name.
    """

    source: str
    document: Any
    problems: tuple[str, ...]
    broken: frozenset[str]

    def runfile(self) -> RunFile:
        """What it says, if nothing is wrong with it."""
        return _make(self.source, self.document)


def examine(path: str | Path, overrides: Sequence[str] = ()) -> Examined:
    """Read a run file and find every problem of it; see `load_runfile`.

    Where there are problems, installed packages are asked whether they know the names.

    Raises:
        RunFileError: it cannot be read at all.
    """
    found = _examine(path, overrides)
    if found.problems and has_plugins() and not loaded_plugins():
        load_plugins()
        return _examine(path, overrides)
    return found


def _examine(path: str | Path, overrides: Sequence[str]) -> Examined:
    source = str(path)
    document = _read(source)
    if (place := _import_from(source, document.value)) is not None:
        look_in(place)
    merged, lines, problems = _override(document, overrides)
    problems += [Problem(key, f"stands twice, again in line {line}") for key, line in document.duplicates]
    problems += schema_problems(merged)
    broken = {_short(problem) for problem in problems}
    if isinstance(merged, Mapping) and (problem := own_method_problem(merged.get("method"))):
        problems.append(Problem(("method",), problem))
    elif isinstance(merged, Mapping):
        problems += [*rule_problems(merged, broken), *source_problems(merged, broken), *adapter_problems(merged)]
        problems += [] if problems else config_problems(merged)
    placed = [(_line(problem.path, lines), problem) for problem in problems]
    in_order = sorted(placed, key=lambda item: (item[0], item[1].key))
    sentences = tuple(_sentence(line, problem) for line, problem in in_order)
    return Examined(source, merged, sentences, frozenset(_short(problem) for problem in problems))


def _import_from(source: str, document: Any) -> str | None:
    """Where modules are looked for first: what the file says, else its own directory."""
    given = document.get("import_from") if isinstance(document, Mapping) else None
    if isinstance(given, str):
        return str(Path(given).expanduser().absolute())
    return None if source.startswith(RECIPE) else str(Path(source).expanduser().absolute().parent)


def _read(source: str) -> Document:
    try:
        return parse_yaml(_text(source))
    except YamlError as error:
        raise RunFileError(source, [f"this is no YAML of plain values: {error}"]) from error


def _text(source: str) -> str:
    if source.startswith(RECIPE):
        name, known = source.removeprefix(RECIPE), recipe_names("", ".yaml")
        if name not in known:
            raise RunFileError(
                source, [f"there is no recipe {name!r}{closest(name, known) or ';'} known: {', '.join(known)}"]
            )
        return (resources.files("burnish.recipes") / f"{name}.yaml").read_text(encoding="utf-8")
    path = Path(source).expanduser()
    if not path.is_file():
        known = ", ".join(RECIPE + name for name in recipe_names("", ".yaml"))
        raise RunFileError(
            source,
            [f"there is no such file (looked for {path.absolute()}); make one with `burnish init dpo`, or use {known}"],
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunFileError(source, [f"is no UTF-8 text: {error.reason} at byte {error.start}"]) from error


def _override(document: Document, overrides: Sequence[str]) -> tuple[Any, dict[KeyPath, int], list[Problem]]:
    """The document with every `key=value` in its place; their keys have line 0."""
    merged, lines, problems = deepcopy(document.value), dict(document.lines), list[Problem]()
    merged = {} if merged is None else merged
    if isinstance(merged, dict) and "training" in merged and merged["training"] is None:
        merged["training"] = {}  # the key with nothing under it
    seen: set[KeyPath] = set()
    for text in overrides:
        key, equals, written = text.partition("=")
        path = _full_path(tuple(key.strip().split(".")), merged)
        try:
            if not equals or not all(path):
                raise YamlError("write --set key=value, such as --set beta=0.2")
            if path in seen:
                raise YamlError("is set twice on the command line")
            _put(merged, path, parse_value(written))
            seen.add(path)
            lines = {known: line for known, line in lines.items() if known[: len(path)] != path}
            lines = {path[:length]: 0 for length in range(1, len(path) + 1)} | lines
        except YamlError as error:
            lines[path] = 0
            problems.append(Problem(path, str(error)))
    return merged, lines, problems


def _full_path(path: tuple[str, ...], document: Any) -> tuple[str, ...]:
    training = training_schema(document)
    is_option = path[0] in training["properties"] or path[0] in training["x-unbuilt"]
    return ("training", *path) if is_option and path[0] not in load_schema()["properties"] else path


def _put(document: Any, path: tuple[str, ...], value: Any) -> None:
    place = document
    for depth, part in enumerate(path[:-1]):
        if isinstance(place, dict) and place.get(part) is None:
            place[part] = {}
        if not isinstance(place, dict) or not isinstance(place[part], dict):
            where = ".".join(path[: depth + 1])
            raise YamlError(f"{where} is no mapping in the file, so it has no keys of its own")
        place = place[part]
    if not isinstance(place, dict):
        raise YamlError("the file is no mapping, so nothing can be set in it")
    place[path[-1]] = value


def _make(source: str, document: Mapping[str, Any]) -> RunFile:
    defaults = {name: option.get("default") for name, option in load_schema()["properties"].items()}
    data = document["data"]
    options = training_schema(document)["properties"]
    given = {name: value for name, value in (document.get("training") or {}).items() if value != REDACTED}
    training = {name: whole(value, options.get(name, {})) for name, value in given.items()}
    train, weights = train_sources(data["train"])
    training |= {} if weights is None else {"dataset_weights": weights}
    return RunFile(
        source=source,
        **{
            name: document.get(name, defaults[name])
            for name in ("method", "model", "ref_model", "samples", "max_new_tokens")
        },
        peft=_adapter(document),
        rewards=tuple(rewards_of(document)),
        train=train,
        streaming=bool(data.get("streaming")),
        eval=data.get("eval"),
        eval_rows=data.get("eval_rows"),
        import_from=_import_from(source, document),
        training=training,
    )


def _adapter(document: Mapping[str, Any]) -> dict[str, Any] | None:
    given = document.get("peft")
    if given is None:
        return None
    fields = load_schema()["x-peft"][str(given.get("type", DEFAULT_KIND))]["properties"]
    return {name: whole(value, fields.get(name, {})) for name, value in given.items()}


def whole(value: Any, option: Mapping[str, Any]) -> Any:
    """`1e2` for a whole number is 100, not 100.0."""
    kinds = {variant.get("type") for variant in option.get("anyOf", [option])}
    return int(value) if isinstance(value, float) and "integer" in kinds and "number" not in kinds else value


def _short(problem: Problem) -> str:
    """The key as rules know it: options of `training` by their own name."""
    path = [str(part) for part in problem.path]
    return path[1] if path[:1] == ["training"] and len(path) > 1 else ".".join(path)


def _line(path: KeyPath, lines: Mapping[KeyPath, int]) -> int:
    """The line of a key, else that of the mapping it is in; 0 for the command line."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1


def _sentence(line: int, problem: Problem) -> str:
    return f"{f'line {line}' if line else '--set'}, {problem.key}: {problem.message}"


def _absolute_reward(name: str) -> str:
    """The path of a classifier as an absolute path; a name of the table or a function as it is."""
    is_named = name in load_schema()["x-rewards"] or is_function_name(name)
    return name if is_named else _absolute(name)


def _absolute(name: str | Mapping[str, str] | None) -> Any:
    """A path that exists as an absolute path; any other name as it is; of several, each by itself."""
    if isinstance(name, Mapping):
        return {key: _absolute(source) for key, source in name.items()}
    if name is None or name.startswith(RECIPE):
        return name
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name
