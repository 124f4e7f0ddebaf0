"""Everything that is wrong with a run file, in one pass, against schema.json; imports no torch."""

from __future__ import annotations

import difflib
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import jsonschema

from burnish.compat import MODEL_CONFIG_FIELDS
from burnish.registry import Plugin, closest, loaded_plugins
from burnish.runtime.functions import import_named

if TYPE_CHECKING:
    from jsonschema import ValidationError

    from burnish.cli.yamlfile import KeyPath

TYPE_NAMES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
LIMITS = {
    "minimum": "{} or more",
    "exclusiveMinimum": "above {}",
    "maximum": "{} or less",
    "exclusiveMaximum": "below {}",
    "minLength": "at least {} character",
    "minItems": "at least {} item",
    "minProperties": "at least {} entry",
}
MAX_SHOWN_CHOICES = 8


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and the key where it is."""

    path: KeyPath
    message: str

    @property
    def key(self) -> str:
        """The key as on the left of `--set`; the document itself is 'the file'."""
        return ".".join(map(str, self.path)) or "the file"


def load_schema() -> dict[str, Any]:
    """schema.json of this package; once plugins are loaded, the schema with their rows."""
    plugins = loaded_plugins()
    return _schema_with(plugins) if plugins else _stored_schema()


@functools.cache
def _stored_schema() -> dict[str, Any]:
    return json.loads((resources.files("burnish.cli") / "schema.json").read_text(encoding="utf-8"))


@functools.cache
def _schema_with(plugins: tuple[Plugin, ...]) -> dict[str, Any]:
    del plugins  # what they registered is in the tables
    from burnish.cli.schema import make_schema

    return make_schema()


def training_schema(document: Any) -> dict[str, Any]:
    """The schema of `training` for the document's method; of the first method if it names none that exists."""
    methods = load_schema()["$defs"]
    method = document.get("method") if isinstance(document, Mapping) else None
    if isinstance(method, str) and is_function_name(method) and own_method_problem(method) is None:
        return _own_training(method, own_class(method))
    return methods[method] if isinstance(method, str) and method in methods else next(iter(methods.values()))


def own_class(name: str) -> Any:
    """The class of `module:Trainer`, which can be loaded."""
    return import_named(name, option="method")


@functools.cache
def _own_training(name: str, trainer: Any) -> dict[str, Any]:
    del trainer  # of the same name another one, if the module was loaded anew
    from burnish.cli.methods import Method
    from burnish.cli.schema import training_of

    return training_of(Method(name, name))


def own_method_problem(name: Any) -> str | None:
    """What keeps `module:Trainer` from being a method, or None: of other names too, which the schema knows."""
    if not (isinstance(name, str) and is_function_name(name)):
        return None
    from burnish.cli.own import own_problem

    return own_problem(name)


def document_schema(document: Any) -> dict[str, Any]:
    """The schema of a document: with a trainer of the user's as its method, that of its options."""
    schema, method = load_schema(), document.get("method") if isinstance(document, Mapping) else None
    if not (isinstance(method, str) and is_function_name(method)):
        return schema
    training = {"type": "object"} if own_method_problem(method) else _own_training(method, own_class(method))
    return {**schema, "allOf": [{"properties": {"training": training}}]}


def schema_problems(document: Any) -> list[Problem]:
    """Unknown and missing keys, wrong types, values out of range or not among the choices."""
    validator = jsonschema.Draft202012Validator(document_schema(document))
    problems: dict[tuple[KeyPath, str], Problem] = {}
    for error in validator.iter_errors(_checkable(document)):
        for problem in _problems_of(error, document):
            problems.setdefault((problem.path, problem.message), problem)
    return [*problems.values(), *_not_finite(document, ())]


def _checkable(document: Any) -> Any:
    """The document without options of TRL that are set to 'off': they are accepted, and change nothing."""
    if not isinstance(document, Mapping) or not isinstance(training := document.get("training"), Mapping):
        return document
    unbuilt = training_schema(document)["x-unbuilt"]
    kept = {key: value for key, value in training.items() if key not in unbuilt or value not in unbuilt[key]}
    return {**document, "training": kept}


def _problems_of(error: ValidationError, document: Any) -> Iterator[Problem]:
    path: KeyPath = tuple(error.absolute_path)
    given: Any = error.instance
    schema: Any = error.schema
    if error.validator == "additionalProperties":
        for key in [key for key in given if key not in schema.get("properties", {})]:
            known = schema.get("properties", {})
            yield Problem((*path, key), _unknown_key(key, given[key], path, document, known))
    elif error.validator == "required":
        for key in [key for key in schema["required"] if key not in given]:
            yield Problem((*path, key), f"is missing. {schema['properties'][key]['description']}")
    elif path[:2] == ("training", "loss_type"):
        yield from _loss_problems(error.instance, training_schema(document))
    elif inner := [item for item in error.context or () if item.path]:
        for item in inner:
            yield from _problems_of(item, document)
    else:
        yield Problem(path, wrong_value(error))


def _unknown_key(key: Any, value: Any, path: KeyPath, document: Any, known_here: Mapping[str, Any]) -> str:
    if not isinstance(key, str):
        return f"keys are text, this one is {_given(key)}: put it in quotes, or remove it"
    training = training_schema(document)
    if path == ("training",) and key in training["x-unbuilt"]:
        off = training["x-unbuilt"][key][0]
        return f"is not built yet, so {_shown(value)} would have no effect: remove it (that is {_shown(off)})"
    schema = load_schema()
    top, data = schema["properties"], schema["properties"]["data"]["properties"]
    homes = {"": top, "data.": data, "training.": training["properties"]}
    here = "".join(f"{part}." for part in path)
    exact = [prefix + key for prefix, known in homes.items() if key in known]
    if exact:
        return f"does not belong here; it is {exact[0]!r}"
    if (place := MODEL_CONFIG_FIELDS.get(key)) is not None:
        return f"is TRL's name; here it is {place!r}"
    near = closest(key, homes.get(here, known_here)) or _near_elsewhere(key, homes)
    return f"is no known key{near or '; `burnish init dpo --all` prints every key'}"


def _near_elsewhere(key: str, homes: Mapping[str, Mapping[str, Any]]) -> str:
    full = {name: prefix + name for prefix, known in homes.items() for name in known}
    near = difflib.get_close_matches(key, full, n=1, cutoff=0.6)
    return f", did you mean {full[near[0]]!r}?" if near else ""


def wrong_value(error: ValidationError) -> str:
    """What is wrong with a value, and what would be right."""
    schema: Any = error.schema
    if "x-refused" in schema:
        allowed = _shown(schema["enum"][0])
        return f"{_shown(error.instance)} is not supported: {schema['x-refused']}. Allowed: {allowed}"
    variants = schema.get("anyOf", [schema])
    broken = [item for item in error.context or [error] if item.validator != "type"]
    if error.validator in LIMITS or (error.validator == "anyOf" and len(broken) == 1 and broken[0].validator in LIMITS):
        return f"is {_shown(error.instance)}; allowed: {allowed_values(variants)}"
    choices = [item for variant in variants for item in variant.get("enum", ())]
    texts = [choice for choice in choices if isinstance(choice, str)]
    near = closest(error.instance, texts) if isinstance(error.instance, str) else ""
    return f"is {_given(error.instance)}{near or '.'} Allowed: {allowed_values(variants)}"


def allowed_values(variants: Sequence[Mapping[str, Any]]) -> str:
    """What a value may be, for a person."""
    return ", or ".join(filter(None, map(_allowed, variants)))


def _allowed(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        shown = [_shown(item) for item in schema["enum"]]
        rest = f" and {len(shown) - MAX_SHOWN_CHOICES} more" if len(shown) > MAX_SHOWN_CHOICES else ""
        return f"one of {', '.join(shown[:MAX_SHOWN_CHOICES])}{rest}" if len(shown) > 1 else shown[0]
    if "pattern" in schema:
        return schema.get("x-form", "a function as module:function")
    limits = [text.format(schema[name]) for name, text in LIMITS.items() if name in schema]
    kind = TYPE_NAMES.get(schema.get("type", ""), "any value")
    items = f" of {_plural(schema['items'])}" if schema.get("items") else ""
    return f"{kind}{items}{', ' if limits else ''}{' and '.join(limits)}"


def _plural(schema: Mapping[str, Any]) -> str:
    words = {"string": "texts", "integer": "whole numbers", "number": "numbers", "boolean": "true or false"}
    return words.get(schema.get("type", ""), "values")


def _loss_problems(value: Any, schema: Mapping[str, Any]) -> Iterator[Problem]:
    """`loss_type` is a name, a function, or a list of them: each wrong one is named with the closest names."""
    names = list(schema["x-losses"])
    many = isinstance(value, list)
    items = value if many else [value]
    known = f"known: {', '.join(names)}; or module:function"
    if not items:
        yield Problem(("training", "loss_type"), f"is empty; {known}")
    if many and not any(variant.get("type") == "array" for variant in schema["properties"]["loss_type"]["anyOf"]):
        yield Problem(("training", "loss_type"), "is a list, and this method takes one loss: give one name")
        return
    for index, item in enumerate(items):
        path: KeyPath = ("training", "loss_type", index) if many else ("training", "loss_type")
        if not isinstance(item, str):
            yield Problem(path, f"is {_given(item)}; {known}")
        elif ":" in item and not is_function_name(item):
            yield Problem(path, f"is {item!r}; a function is written module:function, as in my_losses:margin")
        elif ":" not in item and item not in names:
            yield Problem(path, f"is {item!r}{closest(item, names) or ';'} {known}")


def is_function_name(text: str) -> bool:
    """Whether a text has the form module:function."""
    module, _, function = text.partition(":")
    return all(part.isidentifier() for part in (*module.split("."), function))


def _not_finite(value: Any, path: KeyPath) -> Iterator[Problem]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _not_finite(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _not_finite(item, (*path, index))
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem(path, f"is {value}; allowed: a finite number")


def _given(value: Any) -> str:
    """A value and what it is, where that can be mistaken."""
    kinds = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    kind = kinds.get(type(value))
    return f"{_shown(value)}, {kind}" if kind else _shown(value)


def _shown(value: Any, *, length: int = 60) -> str:
    """A value as it is written in YAML or JSON, on one line, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= length else f"{text[: length - 1]}…"
