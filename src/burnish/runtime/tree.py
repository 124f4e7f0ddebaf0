"""Trees of plain values and tensors on disk, without pickle: what an exact continuation of a run is made of.

The structure is JSON, the tensors are safetensors; types, integer keys, tuples and NaN come back bit for bit.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

_SURROGATE = re.compile("[\ud800-\udfff]")
_OS_ERROR = re.compile(r"os error (\d+)")
_NATIVE = {  # what every reader of safetensors knows; other dtypes travel as bytes
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
}  # fmt: skip


class CheckpointError(OSError):
    """A checkpoint could not be written or read; the message says which, why, and what to do."""

    def __init__(self, message: str, *, errno: int | None = None):
        super().__init__(message)
        self.errno = errno


def save_tree(directory: Path | str, name: str, tree: Any) -> None:
    """Write nested dicts, lists and tuples of None, bool, int, float, str and tensors, without pickle.

    The structure goes to `<name>.json`, the tensors to `<name>.safetensors`. Tensors are stored by value:
    those that share memory come back separate, a parameter as a plain tensor. Not atomic by itself.

    Raises:
        TypeError: a value or key of another type; names its path in the tree.
        CheckpointError: the files cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    text = json.dumps(_encode(tree, name, tensors, storages), allow_nan=False)
    path = Path(directory, name)
    try:
        save_file(tensors, f"{path}.safetensors")
        Path(f"{path}.json").write_text(text, encoding="ascii")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot write the state {path}: {error}", errno=errno_of(error)) from error


def load_tree(directory: Path | str, name: str, *, device: torch.device | str = "cpu") -> Any:
    """Read what `save_tree` wrote, bit for bit, with every tensor in fresh memory on `device`.

    Raises:
        CheckpointError: a file is missing or damaged, or the two files are not of one save.
    """
    path = Path(directory, name)
    try:
        stored = load_file(f"{path}.safetensors")
        return _decode(json.loads(Path(f"{path}.json").read_bytes()), stored, torch.device(device))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        message = f"Cannot read the state {path}: {error!r}\nFix: resume from another checkpoint."
        raise CheckpointError(message, errno=errno_of(error)) from error


def _encode(value: Any, path: str, tensors: dict[str, torch.Tensor], storages: set[int]) -> Any:
    kind = type(value)
    if kind in (list, tuple):
        items = [_encode(item, f"{path}[{index}]", tensors, storages) for index, item in enumerate(value)]
        return items if kind is list else {"tuple": items}
    if kind is dict:
        if wrong := [key for key in value if type(key) not in (str, int)]:
            raise TypeError(f"{path} has the key {wrong[0]!r}, a {type(wrong[0]).__name__}; str and int are allowed.")
        items = [(key, _encode(item, f"{path}[{key!r}]", tensors, storages)) for key, item in value.items()]
        return {"dict": [[_encode_scalar(key, path), item] for key, item in items]}
    if kind in (torch.Tensor, torch.nn.Parameter):
        return _encode_tensor(value.detach(), path, tensors, storages)
    return _encode_scalar(value, path)


def _encode_scalar(value: Any, path: str) -> Any:
    """JSON's own values as they are; what JSON would change (big integers, NaN, surrogates) as hex digits."""
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        return value if abs(value) < 1 << 63 else {"int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
    if kind is str:
        return {"str": value.encode("utf-8", "surrogatepass").hex()} if _SURROGATE.search(value) else value
    raise TypeError(
        f"{path} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold without pickle.\n"
        "Allowed: dict, list, tuple, None, bool, int, float, str, torch.Tensor, and no subclass of them.\n"
        "Fix: convert it first, such as float(x) for a numpy number or dict(x) for an OrderedDict."
    )


def _encode_tensor(tensor: torch.Tensor, path: str, tensors: dict[str, torch.Tensor], storages: set[int]) -> Any:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        kind = "quantized" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}"
        raise TypeError(f"{path} is a tensor that is {kind}; only dense tensors with values are saved.")
    plain = tensor.resolve_conj().resolve_neg().cpu().contiguous()
    stored = plain if plain.dtype in _NATIVE else plain.reshape(-1).view(torch.uint8)
    if stored.untyped_storage().data_ptr() in storages:
        stored = stored.clone()
    storages.add(stored.untyped_storage().data_ptr())
    key = str(len(tensors))
    tensors[key] = stored
    return {"tensor": key, "dtype": str(plain.dtype), "shape": list(plain.shape)}


def _decode(node: Any, stored: Mapping[str, torch.Tensor], device: torch.device) -> Any:
    if isinstance(node, list):
        return [_decode(item, stored, device) for item in node]
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        return _decode_tensor(node, stored, device)
    ((kind, content),) = node.items()
    if kind == "dict":
        return {_decode(key, stored, device): _decode(item, stored, device) for key, item in content}
    if kind == "tuple":
        return tuple(_decode(item, stored, device) for item in content)
    return _SCALARS[kind](content)


def _decode_tensor(node: Mapping[str, Any], stored: Mapping[str, torch.Tensor], device: torch.device) -> torch.Tensor:
    dtype = _dtypes()[node["dtype"]]
    tensor = stored[node["tensor"]].to(device, copy=True)
    if dtype not in _NATIVE:
        tensor = tensor.view(dtype).reshape(node["shape"])
    if tensor.dtype != dtype or list(tensor.shape) != node["shape"]:
        raise ValueError(f"tensor {node['tensor']} is {tensor.dtype} {list(tensor.shape)}, not {node}")
    return tensor


_SCALARS: dict[str, Callable[[str], int | float | str]] = {
    "int": lambda text: int(text, 16),
    "float": lambda text: struct.unpack(">d", bytes.fromhex(text))[0],
    "str": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
}


@cache
def _dtypes() -> dict[str, torch.dtype]:
    return {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


def errno_of(error: BaseException) -> int | None:
    """The operating system's number of an error, also of one that safetensors wraps."""
    if isinstance(error, OSError):
        return error.errno
    match = _OS_ERROR.search(str(error))
    return int(match[1]) if match else None
