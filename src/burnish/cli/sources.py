"""Whether the model and the data that a run file names are there, as far as that can be seen without the network."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import machinery, resources
from pathlib import Path
from sys import path as import_path
from typing import Any

from burnish.cli.validate import Problem, is_function_name, load_schema
from burnish.registry import closest

RECIPE = "recipe:"
PATH_STARTS = ("./", "../", "/", "~", ".\\", "..\\")


def source_problems(document: Mapping[str, Any], broken: set[str]) -> Iterator[Problem]:
    """Files, recipes, models and modules that are not there. `broken` are keys that are wrong by themselves."""
    data = document.get("data")
    for path, source in data_sources(data if isinstance(data, Mapping) else {}):
        if ".".join(path) not in broken and (message := _data_problem(source)):
            yield Problem(path, message)
    for key in ("model", "ref_model"):
        name = document.get(key)
        if isinstance(name, str) and name and (message := _model_problem(name)):
            yield Problem((key,), message)
    yield from _function_problems(document)


def recipe_names(folder: str, ending: str) -> list[str]:
    """Names of packaged recipes (`""`, `.yaml`) or of their data sets (`data`, `.jsonl`)."""
    root = resources.files("burnish.recipes")
    place = root / folder if folder else root
    return sorted(item.name.removesuffix(ending) for item in place.iterdir() if item.name.endswith(ending))


def data_sources(data: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The key and the source of all rows that the mapping `data` names."""
    for key in ("train", "eval"):
        value = data.get(key)
        named = value.items() if isinstance(value, Mapping) else [(None, value)]
        for name, source in named:
            if isinstance(source, str) and source:
                yield ("data", key, *([] if name is None else [str(name)])), source


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


def _function_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    training = document.get("training")
    value = training.get("loss_type") if isinstance(training, Mapping) else None
    items = value if isinstance(value, list) else [value]
    for index, item in enumerate(items):
        if not (isinstance(item, str) and is_function_name(item)):
            continue
        package = item.partition(":")[0].partition(".")[0]
        if machinery.PathFinder.find_spec(package, [str(Path.cwd()), *import_path]) is None:
            key = ("training", "loss_type", index) if isinstance(value, list) else ("training", "loss_type")
            yield Problem(key, f"is {item!r}, but there is no module {package!r} here or among the installed packages")
