"""YAML without surprises, with the line of every key.

`1e-6` is a number, `no` is text, a key that stands twice is reported, and nothing but plain values is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]

_INT = re.compile(r"[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+)$")
_FLOAT = re.compile(
    r"[-+]?(?:(?:\.[0-9][0-9_]*|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)


class YamlError(ValueError):
    """Text that is no YAML, or more than plain values; the message has the line."""


@dataclass(frozen=True)
class Document:
    """What a YAML text says.

    Attributes:
        value: its value: dicts, lists, text, numbers, booleans, None.
        lines: the line of each key and item, by path from the top; lines count from 1.
        duplicates: path and line of each key that stands twice in its mapping.
    """

    value: Any
    lines: dict[KeyPath, int]
    duplicates: tuple[tuple[KeyPath, int], ...]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - replaces the class attribute of YAML 1.1


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<$"), ["<"])


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """Decimal whatever its leading zeros; 0x and 0o as they say."""
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text, 0) if "x" in text or "o" in text else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def parse_yaml(text: str) -> Document:
    """Parse one document.

    Raises:
        YamlError: the text is no YAML, has tags of Python objects, or contains itself; the message has the line.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        raise YamlError(_explain(error)) from error
    finally:
        loader.dispose()
    lines: dict[KeyPath, int] = {}
    duplicates: list[tuple[KeyPath, int]] = []
    for path, line in [] if node is None else _keys(node, (), frozenset()):
        if path in lines:
            duplicates.append((path, line))
        lines.setdefault(path, line)
    return Document(value, lines, tuple(duplicates))


def parse_value(text: str) -> Any:
    """One value, as on the right of `--set key=value`.

    Raises:
        YamlError: as in `parse_yaml`, also for a key that stands twice.

    >>> parse_value("1e-6"), parse_value("no"), parse_value("[a, 2]")
    (1e-06, 'no', ['a', 2])
    """
    document = parse_yaml(text)
    for path, _ in document.duplicates:
        raise YamlError(f"the key {path[-1]!r} stands twice")
    return document.value


def _keys(node: yaml.Node, path: KeyPath, parents: frozenset[int]) -> Iterator[tuple[KeyPath, int]]:
    """Every key and item under a node, depth first."""
    if id(node) in parents:
        raise YamlError(f"line {node.start_mark.line + 1}: an alias inside the value that it stands for")
    inside = parents | {id(node)}
    if isinstance(node, yaml.MappingNode):
        children = [
            (key.value if isinstance(key, yaml.ScalarNode) else str(key.tag), key, value) for key, value in node.value
        ]
    elif isinstance(node, yaml.SequenceNode):
        children = [(index, item, item) for index, item in enumerate(node.value)]
    else:
        return
    for key, place, value in children:
        yield (*path, key), place.start_mark.line + 1
        yield from _keys(value, (*path, key), inside)


def _explain(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        return f"{place}{error.problem or error.context}"
    return str(error)
