from __future__ import annotations

from dataclasses import fields
from enum import Enum
from typing import Any, Literal

import jsonschema
import pytest

from burnish.cli.schema import CHOICES, REGENERATE, SCHEMA_PATH, make_schema, schema_text, type_schema
from burnish.cli.validate import load_schema
from burnish.trainers.config import PolicyConfig
from burnish.trainers.dpo import DPOConfig
from burnish.trainers.reward import RewardConfig

OPTIONS = load_schema()["$defs"]["dpo"]["properties"]


class Colour(Enum):
    RED = "red"


def test_schema_json_is_fresh():
    fresh = SCHEMA_PATH.read_text(encoding="utf-8") == schema_text()
    assert fresh, f"schema.json is older than the configurations: run `{REGENERATE}`"


def test_schema_is_a_json_schema():
    jsonschema.Draft202012Validator.check_schema(make_schema())


def test_every_option_is_there_with_a_sentence():
    assert set(OPTIONS) == {field.name for field in fields(DPOConfig) if field.init}
    assert all(option["description"] for option in OPTIONS.values())


@pytest.mark.parametrize("name", OPTIONS)
def test_every_default_is_allowed(name):
    option = OPTIONS[name]
    jsonschema.validate(option["default"], option)


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_those_of_the_configuration(name, tmp_path):
    config = next(c for c in (PolicyConfig, RewardConfig) if name in {item.name for item in fields(c)})
    for value in CHOICES[name]:
        config(output_dir=str(tmp_path), **{name: value})
    with pytest.raises(ValueError, match=name):
        config(output_dir=str(tmp_path), **{name: "something else"})


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (Colour | str, {"enum": ["red"]}),
        (list[float], {"type": "array", "items": {"type": "number"}}),
        (dict[str, bool], {"type": "object", "additionalProperties": {"type": "boolean"}}),
        (dict[str, Any], {"type": "object"}),
        (str | Literal[False], {"anyOf": [{"type": "string"}, {"enum": [False]}]}),
        (Any, {}),
    ],
)
def test_type_schema(annotation, schema):
    assert type_schema(annotation) == schema


def test_type_schema_refuses_what_it_does_not_know():
    with pytest.raises(TypeError, match="allowed"):
        type_schema(set[int])


def test_resolved_options_of_a_run_are_a_valid_run_file(tmp_path):
    """run.yaml holds `DPOConfig.resolved()`; each value must be one that the schema takes."""
    resolved = DPOConfig(output_dir=str(tmp_path), max_steps=3).resolved()
    document = {"model": "a", "data": {"train": "b"}, "training": resolved}
    assert [error.message for error in jsonschema.Draft202012Validator(load_schema()).iter_errors(document)] == []
