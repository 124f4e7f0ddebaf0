"""Rows of a file are read anew by code that reads them otherwise: the cache of `datasets` does not look into it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import burnish

READ = "import sys; from burnish.data.sources import load_rows; print(load_rows(sys.argv[1])[0]['chosen'])"


@pytest.mark.slow
def test_another_version_does_not_take_the_rows_of_the_one_before(tmp_path):
    shutil.copytree(Path(burnish.__file__).parent, tmp_path / "src" / "burnish")
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected\na,b,c\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "HF_DATASETS_CACHE": str(tmp_path / "cache")}

    def read() -> str:
        command = [sys.executable, "-c", READ, str(tmp_path / "rows.csv")]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()

    assert read() == "b"
    reader = tmp_path / "src" / "burnish" / "data" / "sources.py"
    code = reader.read_text()
    assert "else value or None" in code
    reader.write_text(code.replace("else value or None", "else value.upper() or None"))
    assert read() == "B"
