"""Adapters on disk: PEFT's own files, in safetensors, which `PeftModel.from_pretrained(base, directory)` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from burnish.models.adapters import DEFAULT, plain_model, quiet_peft, trained_adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter_directory(path: str) -> bool:
    """The directory holds a saved adapter."""
    return (Path(path) / CONFIG).is_file()


def base_name(path: str) -> str:
    """The model that a saved adapter belongs to, as its configuration names it.

    Raises:
        ValueError: it names none.
    """
    name = _settings(path).get("base_model_name_or_path")
    if not name:
        raise ValueError(
            f"{Path(path) / CONFIG} does not say which model the adapter belongs to, which existed only in memory: "
            "load both, and give PeftModel.from_pretrained(model, directory, is_trainable=True)"
        )
    return name


def base_revision(path: str) -> dict[str, str]:
    """The revision of that model as a keyword for loading it; {} if the adapter's configuration names none."""
    revision = _settings(path).get("revision")
    return {"revision": revision} if revision else {}


def holds_copy(path: str, module: str) -> bool:
    """A saved adapter holds a trained copy of a module of its model."""
    return module in (_settings(path).get("modules_to_save") or ())


def _settings(path: str) -> dict[str, Any]:
    return json.loads((Path(path) / CONFIG).read_text(encoding="utf-8"))


def attach_adapter(model: PreTrainedModel, path: str) -> PeftModel:
    """A saved adapter on its model, ready to be trained further; what it was trained on is not changed.

    Raises:
        ValueError: its weights are no safetensors.
    """
    from peft import PeftModel

    if not (Path(path) / WEIGHTS).is_file():
        raise ValueError(
            f"{path} has no {WEIGHTS}, and other files of weights are pickles, which are not read: load the adapter "
            "yourself and save it anew with save_pretrained"
        )
    with quiet_peft():
        return PeftModel.from_pretrained(model, path, is_trainable=True)


def save_adapter(model: PeftModel, directory: str) -> None:
    """Write the adapter that is trained, as PEFT does: one of another name than `default` into a folder of its name."""
    model.save_pretrained(
        directory, selected_adapters=[trained_adapter(model)], save_embedding_layers=_is_resized(model)
    )


def load_adapter_weights(model: PeftModel, directory: Path) -> None:
    """Put what `save_adapter` wrote into the adapter that is trained, in place; nothing else is touched.

    Raises:
        ValueError: the files are of another adapter.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    name = trained_adapter(model)
    folder = directory if name == DEFAULT else directory / name
    weights = load_file(folder / WEIGHTS)
    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=_is_resized(model))
    differ = {n for n in {**own, **weights} if n not in own or n not in weights or own[n].shape != weights[n].shape}
    if differ:
        raise ValueError(
            f"the adapter in {folder} does not fit the model's adapter {name!r}: {len(differ)} weights differ in name "
            f"or shape, such as {min(differ)}. Resume with the peft_config that the checkpoint was made with."
        )
    set_peft_model_state_dict(model, weights, adapter_name=name)


def _is_resized(model: PeftModel) -> bool:
    """The vocabulary is not that of the model on disk, so that the adapter is nothing without the embeddings."""
    from transformers import AutoConfig

    config: Any = plain_model(model).config
    if not config._name_or_path:
        return False
    try:
        original = AutoConfig.from_pretrained(config._name_or_path, local_files_only=True)
    except (OSError, ValueError):
        return False
    return original.get_text_config().vocab_size != config.get_text_config().vocab_size
