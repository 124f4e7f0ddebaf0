"""What a row gives its chat template beside the messages: tools, calls of tools, template variables.

Each may be a nested value or, since tables fill nested values of different rows up with nulls, its JSON as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.data.errors import RowProblem
from burnish.data.plain import is_nothing, read_nested

Nested = Mapping[str, Any]

TOOLS_COLUMN = "tools"
TEMPLATE_COLUMN = "chat_template_kwargs"
TOOL_FIX = "A tool is {'type': 'function', 'function': {'name': ..., 'description': ..., 'parameters': ...}}."
CALL_FIX = "A call is {'type': 'function', 'function': {'name': ..., 'arguments': {...}}}."
# Arguments of apply_chat_template that decide what a rendering is, names that it passes on under its own names,
# and tokens that are the tokenizer's affair.
RESERVED_VARIABLES = frozenset(
    [
        *("self", "conversation", "conversations", "messages", "tools", "chat_template", "sanitize_control_tokens"),
        *("add_generation_prompt", "continue_final_message", "tokenize", "tokenizer_kwargs", "padding", "truncation"),
        *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        *("bos_token", "eos_token", "pad_token", "unk_token"),
    ]
)


def read_tools(value: Any) -> tuple[Nested, ...]:
    """The tools that a row's model may call, as JSON schemas; () for none.

    Args:
        value: a list of schemas, each a mapping or its JSON, or the JSON of the list.

    Raises:
        RowProblem: no list, or a tool without a name.
    """
    if is_nothing(value):
        return ()
    tools = read_nested(TOOLS_COLUMN, value)
    if not isinstance(tools, list):
        fix = f"Give a list of tools. {TOOL_FIX}"
        raise RowProblem(TOOLS_COLUMN, f"is {type(tools).__name__}, not a list", value=value, fix=fix)
    return tuple(_read_tool(index, tool) for index, tool in enumerate(tools))


def read_template_kwargs(value: Any) -> Nested:
    """The variables that a row gives its chat template, as `enable_thinking`; {} for none.

    Args:
        value: a mapping, or its JSON; what is None is left out.

    Raises:
        RowProblem: no mapping, or a name that is not the row's to set.
    """
    if value is None or value == "":
        return {}
    variables = read_nested(TEMPLATE_COLUMN, value)
    if not isinstance(variables, Mapping):
        fix = "Give a mapping such as {'enable_thinking': False}."
        raise RowProblem(TEMPLATE_COLUMN, f"is {type(variables).__name__}, not a mapping", value=value, fix=fix)
    if reserved := sorted(RESERVED_VARIABLES.intersection(variables)):
        fix = "Remove the key: it is set here, from the columns of the row, or by the tokenizer."
        raise RowProblem(TEMPLATE_COLUMN, f"sets {reserved[0]}", value=variables[reserved[0]], fix=fix)
    return {name: item for name, item in variables.items() if item is not None}


def read_tool_calls(column: str, calls: Any, *, where: str) -> list[Nested]:
    """The calls of a turn, each as `{"type": "function", "function": {"name", "arguments"}}`, arguments a mapping.

    Args:
        column: the turn's column, for errors.
        calls: a list, or its JSON, of such calls or of bare `{"name", "arguments"}`; arguments may be JSON.
        where: which turn, for errors, with a blank at its end.

    Raises:
        RowProblem: no list, no name, or arguments that are no mapping.
    """
    given = read_nested(column, calls, where=where)
    if not isinstance(given, list) or not given:
        shown = type(given).__name__ if given != [] else "empty"
        raise RowProblem(column, f"{where}is {shown}, not a list of calls", value=calls, fix=CALL_FIX)
    return [_read_call(column, call, f"{where}item {index} ") for index, call in enumerate(given)]


def _read_tool(index: int, tool: Any) -> Nested:
    place = f"tool {index} "
    if isinstance(tool, str):
        tool = read_nested(TOOLS_COLUMN, tool, where=place)
    if not isinstance(tool, Mapping):
        raise RowProblem(TOOLS_COLUMN, f"{place}is {type(tool).__name__}, not a mapping", value=tool, fix=TOOL_FIX)
    if "function" not in tool and tool.get("type", "function") != "function":
        return tool  # built into the model, as {"type": "code_interpreter"}
    function = tool.get("function", tool)
    if not isinstance(function, Mapping):
        raise RowProblem(TOOLS_COLUMN, f"{place}has no function", value=function, fix=TOOL_FIX)
    _check_name(TOOLS_COLUMN, function, where=place, fix=TOOL_FIX)
    return tool


def _read_call(column: str, call: Any, where: str) -> Nested:
    if isinstance(call, str):
        call = read_nested(column, call, where=where)
    if not isinstance(call, Mapping):
        raise RowProblem(column, f"{where}is {type(call).__name__}, not a mapping", value=call, fix=CALL_FIX)
    is_wrapped = "function" in call
    function = call["function"] if is_wrapped else {key: call[key] for key in ("name", "arguments") if key in call}
    if not isinstance(function, Mapping):
        raise RowProblem(column, f"{where}has no function", value=function, fix=CALL_FIX)
    _check_name(column, function, where=where, fix=CALL_FIX)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = read_nested(column, arguments, where=f"arguments of {where}") if arguments.strip() else {}
    if not isinstance(arguments, Mapping):
        problem = f"arguments of {where}are {type(arguments).__name__}, not a mapping"
        raise RowProblem(column, problem, value=arguments, fix=CALL_FIX)
    others = {key: item for key, item in call.items() if key not in ("function", "name", "arguments")}
    return {"type": "function", **others, "function": {**function, "arguments": arguments}}


def _check_name(column: str, function: Nested, *, where: str, fix: str) -> None:
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise RowProblem(column, f"{where}has no name", value=name, fix=fix)
