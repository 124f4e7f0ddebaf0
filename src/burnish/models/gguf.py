"""The header of a GGUF file: its metadata and the shapes of its tensors, without the package gguf or any weights.

Layout: magic, version, number of tensors, number of keys; then each key with its type and value; then each tensor's
name, dimensions, type and offset. All little-endian. Source: the GGUF specification of ggml, version 3.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
MAX_TEXT, MAX_LIST, MAX_DIMENSIONS = 1 << 26, 1 << 32, 8


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself.

    Attributes:
        metadata: its keys; of a list only the number of items.
        shapes: of each tensor, by name.
    """

    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def num_parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(map(math.prod, self.shapes.values()))


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of a file.

    Raises:
        ValueError: the file is no GGUF file of a known version, or ends within its header.
    """
    try:
        with path.open("rb") as file:
            return _read(file)
    except (struct.error, EOFError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is no sound GGUF file: its header ends early, or is damaged ({error})") from error


def _read(file: BinaryIO) -> GgufHeader:
    if file.read(len(MAGIC)) != MAGIC:
        raise KeyError("it does not begin with GGUF")
    version, num_tensors, num_keys = _unpack(file, "I"), _unpack(file, "Q"), _unpack(file, "Q")
    if version not in VERSIONS:
        raise KeyError(f"version {version}; known: {', '.join(map(str, VERSIONS))}")
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = _text(file)
        metadata[key] = _value(file, _unpack(file, "I"))
    shapes: dict[str, tuple[int, ...]] = {}
    for _ in range(num_tensors):
        name, num_dimensions = _text(file), _unpack(file, "I")
        if num_dimensions > MAX_DIMENSIONS:
            raise KeyError(f"a tensor of {num_dimensions} dimensions")
        shapes[name] = tuple(_unpack(file, "Q") for _ in range(num_dimensions))
        file.read(struct.calcsize("<IQ"))  # type and offset
    return GgufHeader(metadata, shapes)


def _unpack(file: BinaryIO, kind: str) -> Any:
    return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]


def _text(file: BinaryIO) -> str:
    length = _unpack(file, "Q")
    if length > MAX_TEXT:
        raise EOFError(f"a text of {length} bytes")
    return file.read(length).decode("utf-8", errors="replace")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == TEXT:
        return _text(file)
    if kind != ARRAY:
        return _unpack(file, SCALARS[kind])
    items, length = _unpack(file, "I"), _unpack(file, "Q")
    if items in SCALARS:
        num_bytes = length * struct.calcsize(f"<{SCALARS[items]}")
        if num_bytes > MAX_LIST:
            raise EOFError(f"a list of {num_bytes} bytes")
        file.seek(num_bytes, 1)
    else:
        for _ in range(length):
            _value(file, items)
    return length
