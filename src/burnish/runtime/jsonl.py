"""Strict JSON, a line at a time: a crash tears at most the last line, and the reader says so."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

from burnish.runtime.checkpoint import sync_directory

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Records(list[dict[str, Any]]):
    """The records of a JSON Lines file; `torn` holds the lines that a crash left unreadable."""

    def __init__(self, records: list[dict[str, Any]], *, torn: tuple[str, ...]):
        super().__init__(records)
        self.torn = torn


class Appender:
    """One JSON line per call, in the hands of the operating system when the call returns."""

    def __init__(self, path: Path):
        self._path = path
        self._descriptor: int | None = None

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record.

        Raises:
            OSError: it could not be written; names the file.
        """
        line = (json.dumps(plain(record), allow_nan=False) + "\n").encode()
        try:
            if self._descriptor is None:
                line = (b"" if _ends_in_newline(self._path) else b"\n") + line
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError as error:
            self.close()  # the next call looks at how the file ends, and begins a line of its own
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def close(self) -> None:
        """Let go of the file; the next `append` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_metrics(path: Path | str) -> Records:
    """The lines of a metrics.jsonl, NaN and infinities as numbers again; empty if there is no file.

    Returns:
        A list whose attribute `torn` holds the lines that could not be read, as a crash leaves the last one.
    """
    return _read(Path(path), lambda record: {name: _number(value) for name, value in record.items()})


def read_events(path: Path | str) -> Records:
    """The lines of an events.jsonl, as in `read_metrics`; numbers that are not finite stay strings."""
    return _read(Path(path), lambda record: record)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: first beside it, synced, then renamed over it."""
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def plain(value: Any, *, of_non_finite: Callable[[float], Any] | None = None) -> Any:
    """`value` in the types of JSON, as a copy: enums as values, numpy numbers as numbers, the rest as text.

    Args:
        value: anything.
        of_non_finite: what NaN and infinities become; by default "NaN", "Infinity" and "-Infinity".
    """
    if isinstance(value, Enum):
        return plain(value.value, of_non_finite=of_non_finite)
    if isinstance(value, Mapping):
        return {str(key): plain(item, of_non_finite=of_non_finite) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(item, of_non_finite=of_non_finite) for item in value), key=str)
    if isinstance(value, list | tuple):
        return [plain(item, of_non_finite=of_non_finite) for item in value]
    return _plain_scalar(value, of_non_finite or _name_of_non_finite)


def _plain_scalar(value: Any, of_non_finite: Callable[[float], Any]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else of_non_finite(float(value))
    if isinstance(value, FunctionType | BuiltinFunctionType | type):
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)


def _name_of_non_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _number(value: Any) -> Any:
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The record of one line, or None if a crash tore it."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _read(path: Path, decode: Callable[[dict[str, Any]], dict[str, Any]]) -> Records:
    lines = path.read_bytes().splitlines() if path.exists() else []
    parsed = [(line, parse_line(line)) for line in lines if line.strip()]
    return Records(
        [decode(record) for _, record in parsed if record is not None],
        torn=tuple(line.decode("utf-8", "replace") for line, record in parsed if record is None),
    )


def _ends_in_newline(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
