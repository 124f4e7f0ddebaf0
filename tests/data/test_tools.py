"""Tools and template variables of a row."""

import json

import pytest

from burnish.data.errors import RowProblem
from burnish.data.tools import read_template_kwargs, read_tools

TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    },
}


def test_nulls_that_tables_fill_in_are_dropped():
    """Two tools of different parameters in one table: each has the other's keys, as null."""
    filled = json.loads(json.dumps(TOOL))
    filled["function"]["parameters"]["properties"]["day"] = None
    filled["function"]["strict"] = None
    assert read_tools([filled]) == (TOOL,)


@pytest.mark.parametrize("value", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]])
def test_tools_as_values_and_as_json(value):
    assert read_tools(value) == (TOOL,)


@pytest.mark.parametrize("value", [None, [], "", {}, "[]", {"type": None}])
def test_no_tools(value):
    assert read_tools(value) == ()


def test_bare_and_built_in_tools_stay_as_they_are():
    tools = [{"name": "look", "parameters": {}}, {"type": "code_interpreter"}]
    assert read_tools(tools) == tuple(tools)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("look", "is text, but no JSON"),
        ('[{"name": "look"', "is text, but no JSON"),
        ('{"name": "look"}', "is dict, not a list"),
        (5, "is int, not a list"),
        ([5], "tool 0 is int"),
        ([TOOL, None], "tool 1 is NoneType"),
        ([{"type": "function"}], "tool 0 has no name"),
        ([{"type": "function", "function": "look"}], "tool 0 has no function"),
        ([{"type": "function", "function": {"name": "look\ud800"}}], "lone surrogate"),
    ],
)
def test_bad_tools_are_named(value, problem):
    with pytest.raises(RowProblem) as caught:
        read_tools(value)
    assert caught.value.column == "tools"
    assert problem in caught.value.problem


def test_template_variables():
    assert read_template_kwargs({"enable_thinking": False, "date": None}) == {"enable_thinking": False}
    assert read_template_kwargs('{"enable_thinking": false, "date": null}') == {"enable_thinking": False}
    assert read_template_kwargs(None) == read_template_kwargs({"a": None}) == read_template_kwargs("{}") == {}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("thinking", "is text, but no JSON"),
        ("[1]", "is list, not a mapping"),
        (5, "is int, not a mapping"),
        ({"tokenize": True}, "sets tokenize"),
        ({"a": 1, "add_generation_prompt": True}, "sets add_generation_prompt"),
        ({"tools": []}, "sets tools"),
        ({"conversation": []}, "sets conversation"),
        ({"chat_template": "{{ messages }}"}, "sets chat_template"),
        ({"eos_token": "</s>"}, "sets eos_token"),
        ({"a": {"b": float("inf")}}, "not finite"),
    ],
)
def test_bad_template_variables_are_named(value, problem):
    with pytest.raises(RowProblem) as caught:
        read_template_kwargs(value)
    assert caught.value.column == "chat_template_kwargs"
    assert problem in caught.value.problem
