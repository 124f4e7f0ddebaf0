from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import burnish

SLOW_MODULES = ("torch", "transformers", "datasets", "accelerate", "numpy", "yaml", "rich", "typer")


def run_python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_burnish_imports_nothing_heavy():
    code = f"import burnish, sys; print([m for m in {SLOW_MODULES} if m in sys.modules], burnish.__version__)"
    assert run_python(code) == f"[] {burnish.__version__}"


def test_asking_for_the_names_imports_nothing_heavy():
    assert run_python("import burnish, sys; dir(burnish); print('torch' in sys.modules)") == "False"


@pytest.mark.parametrize("name", burnish.__all__)
def test_every_public_name_exists_and_says_what_it_is(name):
    """In `__all__`, in dir(), importable from here and from its home, with a docstring."""
    value = getattr(burnish, name)
    assert name in dir(burnish)
    assert value.__doc__
    assert value.__doc__.strip()


def test_public_names_are_sorted_and_unique():
    assert list(burnish.__all__) == sorted(set(burnish.__all__))


def test_a_name_that_is_not_there():
    with pytest.raises(
        AttributeError,
        match=r"module 'burnish' has no attribute 'DPOTrianer'; public names: Answers, Completion, DPOConfig",
    ):
        _ = burnish.DPOTrianer


def test_star_import():
    namespace = {}
    exec("from burnish import *", namespace)
    assert set(burnish.__all__) <= namespace.keys()
    assert {"DPOTrainer", "TokenBatch"} <= namespace.keys()


def test_version_is_that_of_the_distribution():
    assert burnish.__version__ == importlib.metadata.version("burnish")


def test_the_package_says_that_it_is_typed():
    assert (Path(burnish.__file__).parent / "py.typed").is_file()
