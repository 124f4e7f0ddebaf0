"""What is wrong with the adapter of a run file, against schema.json; imports neither torch nor PEFT."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema

from burnish.cli.validate import Problem, load_schema, wrong_value
from burnish.compat import MODEL_CONFIG_FIELDS
from burnish.registry import closest

DEFAULT_KIND = "lora"


def adapter_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """An unknown kind, unknown fields, wrong types, and PEFT if it is not there."""
    given = document.get("peft")
    if not isinstance(given, Mapping):
        return
    if importlib.util.find_spec("peft") is None:
        yield Problem(("peft",), "needs the package peft: pip install 'burnish[peft]'")
    kinds, refused = load_schema()["x-peft"], load_schema()["x-peft-refused"]
    kind = str(given.get("type", DEFAULT_KIND))
    if kind not in kinds:
        why = f", which is not supported, since {refused[kind]};" if kind in refused else closest(kind, kinds) or ";"
        yield Problem(("peft", "type"), f"is {kind!r}{why} known: {', '.join(kinds)}")
        return
    schema = kinds[kind]
    for name in given:
        if name not in schema["properties"] and name != "type":
            yield Problem(("peft", name), _unknown_field(str(name), kind, schema["properties"]))
    for error in jsonschema.Draft202012Validator(schema).iter_errors(dict(given)):
        yield Problem(("peft", *error.absolute_path), wrong_value(error))


def _unknown_field(name: str, kind: str, known: Mapping[str, Any]) -> str:
    place = MODEL_CONFIG_FIELDS.get(name)
    if place == "peft":
        return "is TRL's, and says nothing here: remove it"
    if place is not None:
        return f"is TRL's name; here it is {place!r}"
    near = closest(name, known) or f"; it has: {', '.join(known)}"
    return f"is no field of {kind}{near}"
