"""Whether the model and the data that a run file names are there, as far as that can be seen without the network."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from burnish.cli.functions import named_functions
from burnish.cli.methods import method_of, unread_keys
from burnish.cli.validate import Problem, is_function_name, load_schema
from burnish.cli.yamlfile import KeyPath
from burnish.models.embedded import PATH_STARTS
from burnish.registry import closest
from burnish.runtime.functions import missing_module

RECIPE = "recipe:"


def source_problems(document: Mapping[str, Any], broken: set[str]) -> Iterator[Problem]:
    """Files, recipes, models and modules that are not there. `broken` are keys that are wrong by themselves."""
    data = document.get("data")
    for path, source in data_sources(data if isinstance(data, Mapping) else {}):
        if ".".join(map(str, path)) not in broken and (message := _data_problem(source)):
            yield Problem(path, message)
    for key in ("model", "ref_model"):
        name = document.get(key)
        if isinstance(name, str) and name and (message := _model_problem(name)):
            yield Problem((key,), message)
    critic = _training(document).get("value_model_path")
    if isinstance(critic, str) and (message := _model_problem(critic)):
        yield Problem(("training", "value_model_path"), message)
    yield from _reward_problems(document)
    yield from _function_problems(document)


def recipe_names(folder: str, ending: str) -> list[str]:
    """Names of packaged recipes (`""`, `.yaml`) or of their data sets (`data`, `.jsonl`)."""
    root = resources.files("burnish.recipes")
    place = root / folder if folder else root
    return sorted(item.name.removesuffix(ending) for item in place.iterdir() if item.name.endswith(ending))


def train_sources(given: Any) -> tuple[str | dict[str, str], dict[str, float] | None]:
    """What `data.train` says: a source, or several by name; and their weights, if a list gives them.

    >>> train_sources([{"path": "a/rows.jsonl", "weight": 2}, {"path": "owner/texts", "name": "b", "weight": 1}])
    ({'rows': 'a/rows.jsonl', 'b': 'owner/texts'}, {'rows': 2, 'b': 1})
    """
    if not isinstance(given, list):
        return given, None
    named = {_source_name(item): item for item in given}
    weights = {name: item["weight"] for name, item in named.items() if "weight" in item}
    return {name: item["path"] for name, item in named.items()}, weights or None


def unnamed_problem(given: Any) -> str | None:
    """What is wrong with a list of sources that by itself is well-formed: names that are the same, missing weights."""
    if not isinstance(given, list):
        return None
    names = [_source_name(item) for item in given]
    if again := next((name for name in names if names.count(name) > 1), None):
        return f"has two sources called {again!r}: give each a name of its own"
    without = [name for name, item in zip(names, given, strict=True) if "weight" not in item]
    if without and len(without) < len(given):
        return f"has weights, but none for {', '.join(without)}: give all of them one, or none"
    return None


def _source_name(item: Mapping[str, Any]) -> str:
    """`name`, else what the path ends in, without kind and revision."""
    path: str = item["path"]
    last = Path(path.removeprefix(RECIPE).partition("@")[0]).name
    kinds = load_schema()["x-file-kinds"]
    plain = last.removesuffix(".gz")
    return item.get("name") or (plain.rpartition(".")[0] if plain.endswith(tuple(kinds)) else last)


def data_sources(data: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """The key and the source of all rows that the mapping `data` names."""
    for key in ("train", "eval"):
        value: Any = data.get(key)
        if isinstance(value, list):
            paths = [item.get("path") if isinstance(item, Mapping) else None for item in value]
            named = [((index, "path"), path) for index, path in enumerate(paths)]
        else:
            named = [((name,), path) for name, path in value.items()] if isinstance(value, Mapping) else [((), value)]
        for place, source in named:
            if isinstance(source, str) and source:
                yield ("data", key, *place), source


def _data_problem(source: str) -> str | None:
    if source.startswith(RECIPE):
        name, known = source.removeprefix(RECIPE), recipe_names("data", ".jsonl")
        return (
            None
            if name in known
            else f"there is no recipe data set {name!r}{closest(name, known) or ';'} known: {', '.join(known)}"
        )
    path = Path(source).expanduser()
    kinds = load_schema()["x-file-kinds"]
    if path.name.removesuffix(".gz").endswith(tuple(kinds)):
        return None if path.is_file() else f"there is no file {source!r}{_similar(path)}; looked for {path.absolute()}"
    if source.startswith(PATH_STARTS) or path.exists():
        return f"{source!r} is no data file: its name must end in {', '.join(kinds)}"
    return None


def _similar(path: Path) -> str:
    """The phrase ', did you mean ...' for a file beside the one that is missing, or nothing."""
    folder = path.parent
    near = (
        difflib.get_close_matches(path.name, [item.name for item in folder.iterdir()], n=1) if folder.is_dir() else []
    )
    return f", did you mean {str(folder / near[0])!r}" if near else ""


def _model_problem(name: str) -> str | None:
    path = Path(name).expanduser()
    if name.endswith(".gguf"):
        return None if path.is_file() else f"there is no file {name!r}{_similar(path)}; looked for {path.absolute()}"
    if path.is_dir():
        return None if (path / "config.json").is_file() else f"{name!r} is a directory without config.json, so no model"
    if path.exists():
        return f"{name!r} is a file; a model is a directory, a .gguf file, or a name"
    if name.startswith(PATH_STARTS):
        return f"there is no directory {name!r}; looked for {path.absolute()}"
    known = load_schema()["x-models"]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
    return (
        f"is {name!r}, did you mean {near[0]!r}? Short names: {', '.join(known)}"
        if near and name not in known
        else None
    )


def rewards_of(document: Mapping[str, Any]) -> list[Any]:
    """What scores the answers, as a list; none if the key is not there."""
    given = document.get("rewards")
    return [] if given is None else given if isinstance(given, list) else [given]


def reward_columns(document: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Reward, parameter and column of what the built-in rewards of a run file read beside prompt and answer."""
    for reward in rewards_of(document):
        for parameter in _known_rewards().get(reward, {}).get("columns", ()) if isinstance(reward, str) else ():
            given = _reward_settings(document, reward).get(parameter)
            yield reward, parameter, given if isinstance(given, str) else parameter


def is_classifier_name(name: str) -> bool:
    """Whether a reward is the name or path of a model, which has a slash in it or is a directory."""
    is_path = "/" in name or Path(name).expanduser().is_dir()
    return is_path and name not in _known_rewards() and not is_function_name(name)


def _training(document: Mapping[str, Any]) -> Mapping[str, Any]:
    training = document.get("training")
    return training if isinstance(training, Mapping) else {}


def _known_rewards() -> dict[str, Any]:
    return load_schema()["x-rewards"]


def _reward_settings(document: Mapping[str, Any], reward: str) -> Mapping[str, Any]:
    options = _training(document).get("reward_options")
    settings = options.get(reward) if isinstance(options, Mapping) else None
    return settings if isinstance(settings, Mapping) else {}


def _reward_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """A method that draws its own answers needs rewards, another one has no use for them; and their names."""
    method, rewards = method_of(document), rewards_of(document)
    if method is None:
        return
    if method.draws_answers and not rewards:
        names = ", ".join(_known_rewards())
        yield Problem(("rewards",), f"is missing: what scores the answers? module:function, or of {names}")
    defaults = load_schema()["properties"]
    for key, reason in unread_keys(method.name).items():
        if document.get(key, defaults[key]["default"]) not in (None, [], defaults[key]["default"]):
            yield Problem((key,), f"has no effect: {method.name} {reason}. Remove it")
    for index, reward in enumerate(rewards):
        if isinstance(reward, str) and (message := _reward_problem(reward, _reward_settings(document, reward))):
            yield Problem(("rewards", index) if isinstance(document.get("rewards"), list) else ("rewards",), message)


def _reward_problem(name: str, settings: Mapping[str, Any]) -> str | None:
    """A built-in name, module:function, or the name or path of a classifier, which has a slash in it."""
    known = _known_rewards()
    if name in known:
        unset = [setting for setting in known[name]["settings"] if setting not in settings]
        needs = ", ".join(f"{setting}: ..." for setting in unset)
        return f"is {name!r}, which needs training.reward_options: {{{name}: {{{needs}}}}}" if unset else None
    if name.startswith(PATH_STARTS) and not (path := Path(name).expanduser()).is_dir():
        return (
            f"there is no directory {name!r}; looked for {path.absolute()}. A reward model is trained into it with: "
            f"burnish train recipe:reward --set output_dir={name}"
        )
    if is_function_name(name) or is_classifier_name(name):
        return None
    if ":" in name:
        return f"is {name!r}; a function is written module:function, as in my_rewards:length"
    return f"is {name!r}{closest(name, known) or ';'} known: {', '.join(known)}; or module:function, or a classifier"


def _function_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    rewards = {("rewards", index): reward for index, reward in enumerate(rewards_of(document))}
    for key, item in {**named_functions(_training(document)), **rewards}.items():
        if isinstance(item, str) and is_function_name(item) and (problem := missing_module(item)):
            yield Problem(key, f"is {item!r}, but {problem}")
