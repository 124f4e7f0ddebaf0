"""How large a model is, from the headers of its files; imports no torch and reads no weights."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.models.embedded import EMBEDDED
from burnish.models.gguf import read_gguf_header

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
OTHER_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
MAX_HEADER = 100 << 20
# Names of the same number in different families; the first that is there counts.
NAMES: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "inner": ("intermediate_size", "n_inner", "ffn_dim"),
    "heads": ("num_attention_heads", "n_head"),
    "vocabulary": ("vocab_size",),
}
GGUF_NAMES: Mapping[str, str] = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "vocab_size": "vocab_size",
}


class ModelFileError(ValueError):
    """The files of a model are incomplete or damaged; the message says which."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes that activations depend on: layers, hidden, of the MLP (of all chosen experts), of queries, of keys."""

    layers: int
    hidden: int
    inner: int
    query: int
    key: int
    vocabulary: int


@dataclass(frozen=True)
class ModelSize:
    """How large a model is.

    Attributes:
        num_parameters: weights, a tied one counted once.
        source: where that number is from.
        shape: None for a configuration that does not say it in a known way.
        reads_images: whether it is a vision-language model.
    """

    num_parameters: int
    source: str
    shape: ModelShape | None
    reads_images: bool = False


def read_model_size(name: str) -> ModelSize | None:
    """The size of a model by short name, .gguf file or directory; None for one that is not on this machine.

    Raises:
        ModelFileError: it is here, and incomplete or damaged.
    """
    embedded = EMBEDDED[name].path if name in EMBEDDED else None
    path = embedded or Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return _gguf_size(path)
    return _directory_size(path) if (path / CONFIG).is_file() else None


def model_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape that a configuration says, of its text part if it has several."""
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, Mapping) else config
    found: dict[str, Any] = {
        name: next((config[key] for key in keys if config.get(key)), None) for name, keys in NAMES.items()
    }
    layers, hidden, inner, heads, vocabulary = (found[name] for name in NAMES)
    if not all(isinstance(number, int) for number in (layers, hidden, heads, vocabulary)):
        return None
    head = config.get("head_dim") or hidden // heads
    if config.get("num_experts_per_tok"):
        inner = config["num_experts_per_tok"] * (config.get("moe_intermediate_size") or inner or 0)
    return ModelShape(
        layers=layers,
        hidden=hidden,
        inner=inner or 4 * hidden,
        query=heads * head,
        key=(config.get("num_key_value_heads") or heads) * head,
        vocabulary=vocabulary,
    )


def _directory_size(path: Path) -> ModelSize:
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFileError(f"{path / CONFIG} is no JSON: {error}") from error
    if not isinstance(config, Mapping):
        raise ModelFileError(f"{path / CONFIG} is no mapping")
    shape, files = model_shape(config), _weight_files(path)
    if files:
        num_parameters = sum(map(_num_parameters, files))
        return ModelSize(num_parameters, f"the header of {files[0].name}", shape, "vision_config" in config)
    if not any((path / name).is_file() for name in OTHER_WEIGHTS):
        raise ModelFileError(f"{path} has no weights: there is no {WEIGHTS} and no {INDEX}")
    if shape is None:
        raise ModelFileError(f"{path / CONFIG} does not say how many layers the model has")
    return ModelSize(_estimate(shape, config), f"{CONFIG}, estimated", shape, "vision_config" in config)


def _weight_files(path: Path) -> list[Path]:
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if not (path / INDEX).is_file():
        return []
    try:
        names = sorted(set(json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelFileError(f"{path / INDEX} is no index of weights: {error}") from error
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise ModelFileError(f"{path} lacks {len(missing)} of {len(names)} files of weights: {missing[0]}")
    return [path / name for name in names]


def _num_parameters(path: Path) -> int:
    """Numbers in all tensors of a safetensors file, whose length must be what its header says."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
        try:
            header: Any = json.loads(file.read(length)) if length <= MAX_HEADER else None
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            end = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
            num_parameters = sum(math.prod(entry["shape"]) for entry in tensors)
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ModelFileError(f"{path} is no sound safetensors file: its header cannot be read") from error
    size = path.stat().st_size
    if size != end:
        raise ModelFileError(f"{path} has {size:,} bytes, and its header says {end:,}: it was not copied whole")
    return num_parameters


def _gguf_size(path: Path) -> ModelSize:
    try:
        header = read_gguf_header(path)
    except ValueError as error:
        raise ModelFileError(str(error)) from error
    family = header.metadata.get("general.architecture", "")
    config = {name: header.metadata.get(f"{family}.{key}") for name, key in GGUF_NAMES.items()}
    return ModelSize(header.num_parameters, f"the header of {path.name}", model_shape(config))


def _estimate(shape: ModelShape, config: Mapping[str, Any]) -> int:
    """Embedding, head and layers of a gated decoder."""
    embeddings = shape.vocabulary * shape.hidden * (1 if config.get("tie_word_embeddings", True) else 2)
    attention = shape.hidden * (2 * shape.query + 2 * shape.key)
    return embeddings + shape.layers * (attention + 3 * shape.hidden * shape.inner + 2 * shape.hidden) + shape.hidden
