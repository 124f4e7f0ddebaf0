"""Functions of users that are named in a file: `module:function`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any


def import_function(name: str, *, option: str) -> Any:
    """The function `module:function`, of a module here or among the installed packages.

    Args:
        name: module and function, with a colon between them.
        option: what it is for, for messages.

    Raises:
        ValueError: the text has another form, or the module has no such function.
        ImportError: there is no such module.
    """
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise ValueError(f"{option}={name!r}; a function is written module:function, as in my_module:my_function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    module = importlib.import_module(module_name)
    if function_name not in vars(module):
        functions = ", ".join(
            sorted(n for n, value in vars(module).items() if callable(value) and not n.startswith("_"))
        )
        raise ValueError(
            f"{option} {name!r}: {module_name} has no {function_name!r}; it has: {functions or 'no functions'}"
        )
    return vars(module)[function_name]
