from __future__ import annotations

import pytest

from burnish.runtime.record import read_record
from burnish.runtime.rundir import RunDirectory


def test_a_run_directory_is_read_back(tmp_path):
    with RunDirectory.open(tmp_path / "run", config={"training": {"beta": 0.1}}, manifest={"seed": 3}) as run:
        run.metric(1, {"loss": 0.5})
        run.event("data", data_set="train", lines=["a"])
        run.event("lint", message="b")
    record = read_record(tmp_path / "run")
    assert record.config == {"training": {"beta": 0.1}}
    assert record.manifest == {"seed": 3}
    assert record.metrics[0]["loss"] == 0.5
    assert [event["lines"] for event in record.of_kind("data")] == [["a"]]


def test_no_run(tmp_path):
    assert read_record(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "content"), [("run.yaml", "a: [1"), ("run.yaml", "- 1"), ("manifest.json", "{"), ("manifest.json", "[]")]
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    RunDirectory.open(tmp_path, config={}, manifest={}).close()
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        read_record(tmp_path)
