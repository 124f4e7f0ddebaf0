"""Functions and classes of users that are named in a file: `module:name`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from importlib import machinery
from pathlib import Path
from typing import Any

from burnish.registry import closest


def look_in(directory: str | Path) -> None:
    """Look for modules in this directory first, as Python does in that of a script."""
    place = str(Path(directory).expanduser().absolute())
    if place not in sys.path:
        sys.path.insert(0, place)


def import_function(name: str, *, option: str) -> Any:
    """The function `module:function`, of a module here or among the installed packages; see `import_named`."""
    return import_named(name, option=option)


def import_named(name: str, *, option: str) -> Any:
    """What `module:name` names, of a module here, beside the run file, or among the installed packages.

    Args:
        name: module and function or class, with a colon between them.
        option: what it is for, for messages.

    Raises:
        ValueError: the text has another form, or the module has nothing of that name.
        ImportError: there is no such module, or it cannot be imported.
    """
    module_name, colon, member = name.partition(":")
    if not (module_name and colon and member):
        raise ValueError(f"{option}={name!r}; a function is written module:function, as in my_module:my_function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    if (problem := missing_module(name)) is not None:
        raise ModuleNotFoundError(f"{option} {name!r}: {problem}", name=module_name)
    importlib.invalidate_caches()  # the file may be younger than the last look into its directory
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does
        raised = f"importing {module_name} raised {type(error).__name__}: {error}"
        raise ImportError(f"{option} {name!r}: {raised}", name=module_name) from error
    if member not in vars(module):
        known = members(module_name, callable)
        raise ValueError(
            f"{option} {name!r}: {module_name} has no {member!r}{closest(member, known) or ';'} it has: "
            f"{', '.join(known) or 'no functions'}"
        )
    return vars(module)[member]


def missing_module(name: str) -> str | None:
    """That there is no module for `module:name`, in a sentence with what comes near, or None; imports nothing."""
    package = name.partition(":")[0].partition(".")[0]
    places = [str(Path.cwd()), *sys.path]
    if package in sys.modules or machinery.PathFinder.find_spec(package, places) is not None:
        return None
    beside = {path.stem for place in places[:3] if Path(place).is_dir() for path in Path(place).glob("*.py")}
    return f"there is no module {package!r} here or among the installed packages{closest(package, sorted(beside))}"


def members(module: str, wanted: Callable[[Any], bool]) -> list[str]:
    """The public names of an imported module whose values are `wanted`; its own, if it defines any."""
    found = {
        name: value for name, value in vars(sys.modules[module]).items() if wanted(value) and not name.startswith("_")
    }
    own = [name for name, value in found.items() if inspect.getmodule(value) is sys.modules[module]]
    return sorted(own or found)
