from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import burnish

SOURCE = Path(burnish.__file__).parent
ROOT = SOURCE.parent.parent
MODULES = sorted(
    ".".join(["burnish", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
)
# Each room may import those of lower rank, and its own; rooms of the same rank do not know each other.
RANKS = [
    {"types", "registry"},
    {"losses", "advantages", "gae", "importance", "intervals", "metrics"},
    {"data", "models", "runtime"},
    {"generation", "rewards"},
    {"rollout"},
    {"trainers"},
    {"testing"},
    {"report"},
    {"cli"},
]
FOR_EVERYBODY = {"compat"}  # versions and TRL's names; imports only the registry
PURE = {"types", "registry", "losses", "advantages", "gae", "importance", "intervals", "metrics"}
PURE_IMPORTS = {"torch", "jaxtyping", "burnish"} | set(sys.stdlib_module_names)


def rank_of(room: str) -> int:
    return next(rank for rank, rooms in enumerate(RANKS) if room in rooms)


def rank_of_import(room: str) -> int:
    """Its rank; what everybody may import is below all."""
    return -1 if room in FOR_EVERYBODY else rank_of(room)


def path_of(module: str) -> Path:
    place = SOURCE.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def imports_of(module: str) -> set[str]:
    """Every module that is named in an import statement, at the top, in a function, or for types only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path_of(module).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_of(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("burnish.")}


def test_every_room_has_a_rank():
    rooms = {name.split(".")[1] for name in MODULES if name != "burnish"} - FOR_EVERYBODY - {"recipes", "__main__"}
    assert rooms <= set.union(*RANKS)


def test_imports_go_downward():
    """Types and registry do not know each other; what everybody may import knows the registry at most."""
    upward = []
    for module in (name for name in MODULES if name not in ("burnish", "burnish.__main__")):
        room, others = module.split(".")[1], rooms_of(imports_of(module))
        if room in FOR_EVERYBODY | {"recipes"}:
            below = {"registry"}
        else:
            below = {other for other in others if rank_of_import(other) < rank_of(room)} | {room}
        upward += [f"{module} imports from {other}, which is not below it" for other in others - below]
    assert upward == []


def test_the_pure_core_knows_torch_and_nothing_else():
    modules = [name for name in MODULES if name.split(".")[1:2] and name.split(".")[1] in PURE]
    assert len(modules) > 20
    for module in modules:
        assert {name.split(".")[0] for name in imports_of(module)} <= PURE_IMPORTS, module
        assert rooms_of(imports_of(module)) <= PURE, module


def test_reports_read_and_never_write():
    """What trainers write goes through runtime: no file of report/ opens anything for writing."""
    writers = {"write_text", "write_bytes", "mkdir", "unlink", "rename", "touch", "rmtree"}
    for path in (SOURCE / "report").rglob("*.py"):
        called = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not called & writers, path.name


IMPORT_EACH_ALONE = """
import importlib, sys
failed = {}
for name in %r:
    for loaded in [m for m in sys.modules if m == "burnish" or m.startswith("burnish.")]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = repr(error)
print(failed)
"""


@pytest.mark.gallery
def test_every_module_imports_alone():
    """Each with no other module of ours loaded, so that no cycle hides behind an order of imports."""
    names = [name for name in MODULES if not name.endswith("__main__")]
    command = [sys.executable, "-W", "error", "-c", IMPORT_EACH_ALONE % names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("{}", 0), done.stderr
