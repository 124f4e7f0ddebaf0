"""From a name, a path, a GGUF file or a module to a policy that is ready to train.

Some small models come inside a Python package as a GGUF file. Their short names resolve to that file, dequantised
once into a cache of safetensors; where the package is absent, to the hub.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from burnish.models.adapter_files import attach_adapter, base_name, base_revision, is_adapter_directory
from burnish.models.adapters import is_adapted, plain_model
from burnish.models.embedded import EMBEDDED, PATH_STARTS, EmbeddedModel
from burnish.models.introspect import configured_end_ids, is_placed
from burnish.models.vision import is_vision_config, load_processor

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

TOKENIZER = "tokenizer_config.json"
HUB_OPTIONS = ("trust_remote_code", "revision", "token", "cache_dir", "subfolder", "local_files_only", "code_revision")


def resolve_model(name: str) -> str:
    """A directory or hub name that `from_pretrained` takes.

    Args:
        name: a short name of `EMBEDDED`, a path to a .gguf file, a directory, or a hub name.

    Raises:
        FileNotFoundError: a path to nothing.
        ImportError: the package `gguf` is needed and absent.
    """
    if name in EMBEDDED:
        return _resolve_embedded(name, EMBEDDED[name])
    if name.endswith(".gguf"):
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise FileNotFoundError(f"model {name!r}: there is no file {path}")
        stamp = path.stat()
        return str(_dequantised(path, f"{path.stem}-{stamp.st_size}-{stamp.st_mtime_ns}"))
    if name.startswith(PATH_STARTS):
        directory = Path(name).expanduser()
        if not directory.exists():
            raise FileNotFoundError(f"model {name!r}: there is no directory {directory.absolute()}")
        return str(directory)
    return name


def load_policy(
    model: str | os.PathLike[str] | PreTrainedModel | PeftModel,
    *,
    trust_remote_code: bool = False,
    init_kwargs: dict[str, Any] | None = None,
    quantization_config: Any = None,
    option: str = "model_init_kwargs",
) -> PreTrainedModel | PeftModel:
    """A causal model: the given one, or loaded by name, in float32 unless `init_kwargs` has another dtype.

    A checkpoint of a model that reads images is loaded as that model. A directory with a saved adapter is loaded with
    the model that it belongs to.

    Args:
        model: a name, a path, or a model.
        trust_remote_code: run Python code that comes with the model.
        init_kwargs: keywords for `from_pretrained`.
        quantization_config: one of them: as transformers takes it.
        option: what `init_kwargs` is called in an error.

    Raises:
        TypeError: not a name, a path or a transformers model.
        ValueError: options of loading for a model that is loaded.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

    quantised = {} if quantization_config is None else {"quantization_config": quantization_config}
    if isinstance(model, PreTrainedModel) or is_adapted(cast("Any", model)):
        if init_kwargs or quantised:
            given = option if init_kwargs else "quantization_config"
            raise ValueError(f"{given} is for models given by name; this model is loaded already")
        return cast("PreTrainedModel | PeftModel", model)
    if not isinstance(model, str | os.PathLike):
        raise TypeError(
            f"model is {type(model).__name__}; give a name, a path, or a transformers PreTrainedModel (a causal model) "
            "or PeftModel"
        )
    kwargs = {"trust_remote_code": trust_remote_code, **with_dtype(init_kwargs), **quantised}
    path = resolve_model(os.fspath(model))
    if is_adapter_directory(path):
        of_base = {**base_revision(path), **kwargs}
        base = load_policy(base_name(path), trust_remote_code=trust_remote_code, init_kwargs=of_base)
        return attach_adapter(cast("PreTrainedModel", base), path)
    config = _load_config(path, _hub_options(kwargs))
    auto_class: Any = AutoModelForImageTextToText if is_vision_config(config) else AutoModelForCausalLM
    return auto_class.from_pretrained(path, **kwargs)


def with_dtype(init_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Keywords for `from_pretrained` with a dtype: that of its former name `torch_dtype`, else float32, if unset.

    Raises:
        ValueError: a name that is no dtype.

    >>> with_dtype({"torch_dtype": "bfloat16"})
    {'dtype': 'bfloat16'}
    """
    given = dict(init_kwargs or {})
    named = {"dtype": given.pop("torch_dtype", torch.float32), **given}
    if not isinstance(dtype := named["dtype"], str) or dtype == "auto":
        return named
    name = dtype.removeprefix("torch.")
    if not isinstance(vars(torch).get(name), torch.dtype):
        raise ValueError(f"dtype={dtype!r} is no dtype of torch; allowed: float32, bfloat16, float16, float64, or auto")
    return {**named, "dtype": name}


def place(model: nn.Module, device: torch.device) -> None:
    """Move a model to the device on which it will run, in place, so that what is tried out on it is tried out there.

    A quantised model, or one whose parts were given devices when it was loaded, stays where it is.
    """
    if not is_placed(model):
        model.to(device)


def load_tokenizer(
    model: str | os.PathLike[str] | PreTrainedModel | PeftModel,
    *,
    trust_remote_code: bool = False,
    init_kwargs: Mapping[str, Any] | None = None,
) -> PreTrainedTokenizerBase | ProcessorMixin:
    """The tokenizer that belongs to a model; the processor if the model reads images.

    Beside a saved adapter lies the tokenizer that it was trained with, if any; else it is that of its model.

    Args:
        model: as `load_policy` takes it.
        trust_remote_code: run Python code that comes with the tokenizer.
        init_kwargs: keywords that the model is loaded with; `revision`, `cache_dir` and the like are its tokenizer's,
            too.

    Raises:
        ValueError: a model that exists only in memory does not say which tokenizer it needs, or none lies beside it.
    """
    from transformers import AutoTokenizer

    is_name = isinstance(model, str | os.PathLike)
    name = os.fspath(model) if is_name else plain_model(model).config._name_or_path
    if not name:
        raise ValueError("a model that exists only in memory has no tokenizer: pass processing_class=<tokenizer>")
    path = resolve_model(name)
    options = {"trust_remote_code": trust_remote_code, **_hub_options(init_kwargs)}
    of_model = path
    if is_adapter_directory(path):
        of_model, options = resolve_model(base_name(path)), {**base_revision(path), **options}
    path = path if (Path(path) / TOKENIZER).is_file() else of_model
    config = _load_config(of_model, options) if is_name else plain_model(model).config
    if is_vision_config(config):
        return load_processor(path, config=config, **options)
    try:
        return AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        if not Path(path).is_dir() or (Path(path) / TOKENIZER).is_file():
            raise
        raise ValueError(
            f"no tokenizer lies in {path}: pass processing_class=<tokenizer>, or save it there with save_pretrained"
        ) from error


def load_end_token_ids(
    model: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    trust_remote_code: bool = False,
    init_kwargs: dict[str, Any] | None = None,
) -> tuple[int, ...]:
    """The `end_token_ids` of the policy that `load_policy` would load, without its weights."""
    from transformers import GenerationConfig

    path = resolve_model(os.fspath(model))
    options = _hub_options(init_kwargs)
    if is_adapter_directory(path):
        path, options = resolve_model(base_name(path)), {**base_revision(path), **options}
    config = _load_config(path, {"trust_remote_code": trust_remote_code, **options})
    options.pop("trust_remote_code", None)
    try:
        generation = GenerationConfig.from_pretrained(path, **options)
    except OSError:  # a model without the file takes what its configuration says
        generation = GenerationConfig.from_model_config(config)
    return configured_end_ids(generation, tokenizer)


def cache_directory() -> Path:
    """Where dequantised models are kept: $BURNISH_CACHE, else ~/.cache/burnish."""
    return Path(os.environ.get("BURNISH_CACHE", Path.home() / ".cache" / "burnish"))


def _hub_options(init_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those of the keywords that say where a model comes from."""
    return {name: value for name, value in (init_kwargs or {}).items() if name in HUB_OPTIONS}


def _load_config(path: str, options: dict[str, Any]) -> PreTrainedConfig:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path, **options)


def _resolve_embedded(name: str, model: EmbeddedModel) -> str:
    return model.hub_name if model.path is None else str(_dequantised(model.path, f"{name}-{model.version}"))


def _dequantised(gguf: Path, key: str) -> Path:
    """The safetensors directory made of a GGUF file, made now if it is not there; safe against a crash midway."""
    target = cache_directory() / "models" / key
    if (target / "config.json").is_file():
        return target
    if importlib.util.find_spec("gguf") is None:
        raise ImportError(
            f"{gguf.name} is a GGUF file, and reading it needs the package gguf: pip install 'burnish[gguf]'"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=target.parent))
    try:
        _convert(gguf, temporary)
        if not target.exists():
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _convert(gguf: Path, directory: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    weights = model.state_dict()
    plain_config = type(model.config).from_dict(
        {
            key: value
            for key, value in model.config.to_dict().items()
            if key not in ("quantization_config", "_name_or_path")
        }
    )
    plain = AutoModelForCausalLM.from_config(plain_config, dtype=torch.float32)
    plain.load_state_dict(weights)
    plain.generation_config = model.generation_config
    plain.save_pretrained(directory)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(directory)
