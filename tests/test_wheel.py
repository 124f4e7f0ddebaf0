"""A built wheel installs, and works outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_wheel_works_outside_the_checkout(tmp_path):
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT), cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "burnish/py.typed",
        "burnish/cli/schema.json",
        "burnish/recipes/dpo.yaml",
        "burnish/recipes/data/spoken-train.jsonl",
        "burnish/recipes/data/spoken-heldout.jsonl",
    } <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "examples"))]
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    run(*pip, cwd=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = run(sys.executable, "-c", "import burnish; print(burnish.__file__)", cwd=elsewhere, PYTHONPATH=str(site))
    assert Path(where.strip()).is_relative_to(site)
    command = [sys.executable, "-m", "burnish.cli.app", "check", "recipe:dpo"]
    run(*command, cwd=elsewhere, PYTHONPATH=str(site))
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from conftest import make_model, make_tokenizer
from burnish import DPOConfig, DPOTrainer
trainer = DPOTrainer(make_model(), args=DPOConfig(output_dir="run", max_steps=2, save_strategy="no", report_to="none",
    cpu_tuning="off", disable_tqdm=True), train_dataset="recipe:spoken-heldout", processing_class=make_tokenizer())
trainer.train()
assert trainer.state.global_step == 2
"""
    run(sys.executable, "-c", script, str(ROOT / "tests"), cwd=elsewhere, PYTHONPATH=str(site))
