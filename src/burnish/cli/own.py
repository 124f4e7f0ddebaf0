"""A trainer of the user's as the method of a run file: `method: my_module:MyTrainer`."""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass
from typing import Any

from burnish.registry import closest
from burnish.runtime.functions import import_named, members


def own_problem(name: str) -> str | None:
    """What keeps `module:Trainer` from being a method, in a sentence, or None; imports torch and the module."""
    try:
        found = import_named(name, option="method")
    except (ImportError, ValueError) as error:
        return str(error)
    return _class_problem(name, found)


def _class_problem(name: str, found: Any) -> str | None:
    from burnish.trainers.base import PolicyTrainer
    from burnish.trainers.config import PolicyConfig

    module = name.partition(":")[0]
    if not (inspect.isclass(found) and issubclass(found, PolicyTrainer)):
        kind = "a class" if inspect.isclass(found) else f"a {type(found).__name__}"
        trainers = members(module, lambda item: inspect.isclass(item) and issubclass(item, PolicyTrainer))
        has = f"those of {module}: {', '.join(trainers)}" if trainers else f"{module} has none"
        return (
            f"method {name!r} is {kind}, and no trainer{closest(name.partition(':')[2], trainers) or ''}. Allowed: a "
            f"subclass of PolicyTrainer, OnlineTrainer, DPOTrainer, GRPOTrainer, …; {has}"
        )
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        return f"method {name!r} does not define {missing}: def loss(self, model, batch) -> LossOutput: ..."
    config = found.config_class
    if not (inspect.isclass(config) and issubclass(config, PolicyConfig) and is_dataclass(config)):
        return f"method {name!r}: its config_class is {config!r}; allowed: a dataclass that inherits from PolicyConfig"
    return None
