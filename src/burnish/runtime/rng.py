"""The state of every random number generator of a process, in types that `save_tree` writes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def rng_state() -> dict[str, Any]:
    """The generators of `random`, numpy (the global one), torch on the CPU, and every CUDA and MPS device.

    Generators that belong to an object, such as a sampler's, are saved by that object.
    """
    return {
        "python": random.getstate(),
        "numpy": _plain(np.random.get_state(legacy=False)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def restore_rng_state(tree: dict[str, Any]) -> None:
    """Put every generator where `rng_state` found it: the next numbers are the ones that came then.

    Raises:
        ValueError: the state is of other devices or of another kind of numpy generator; nothing is changed.
    """
    _check(tree)
    random.setstate(tree["python"])
    np.random.set_state(_arrays(tree["numpy"]))
    torch.set_rng_state(tree["torch"])
    if tree["cuda"]:
        torch.cuda.set_rng_state_all(tree["cuda"])
    if tree["mps"] is not None:
        torch.mps.set_rng_state(tree["mps"])


def _check(tree: dict[str, Any]) -> None:
    saved = {
        "CUDA devices": len(tree["cuda"]),
        "MPS devices": int(tree["mps"] is not None),
        "numpy generator": tree["numpy"]["bit_generator"],
    }
    here = {
        "CUDA devices": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "MPS devices": int(torch.backends.mps.is_available()),
        "numpy generator": np.random.get_state(legacy=False)["bit_generator"],
    }
    differences = [f"{name}: {saved[name]} saved, {here[name]} here" for name in saved if saved[name] != here[name]]
    if differences:
        raise ValueError(
            "The saved state of the random generators does not fit this process:\n"
            + "\n".join(differences)
            + "\nAn exact continuation needs the same devices.\n"
            "Fix: resume where the run began, or with the same CUDA_VISIBLE_DEVICES."
        )


def _plain(value: Any) -> Any:
    """The nested state of numpy, with an array as its dtype and a list of integers."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "words": [int(word) for word in value]}
    if isinstance(value, np.generic):
        return value.item()
    return value


def _arrays(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"dtype", "words"}:
        return np.array(value["words"], dtype=value["dtype"])
    if isinstance(value, dict):
        return {key: _arrays(item) for key, item in value.items()}
    return value
