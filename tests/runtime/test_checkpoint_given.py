"""A path that is no sound checkpoint: the error says what it is instead, and what to give."""

from __future__ import annotations

import pytest

from burnish.runtime.checkpoint import MANIFEST, verify, what_is_wrong


@pytest.fixture
def run(tmp_path):
    """A run directory with a model beside its checkpoints, of which the second has lost its manifest."""
    for name in ("checkpoint-1", "checkpoint-2", "model"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-1" / MANIFEST).write_text("{}")
    return tmp_path / "run"


def said(path):
    return what_is_wrong(path, verify(path))


def test_what_was_given_is_named(run):
    assert said(run / "checkpoint-9").startswith(f"there is no checkpoint {run / 'checkpoint-9'}")
    assert said(run) == f"{run} is no checkpoint but has 2 of them: give one, such as {run / 'checkpoint-2'}."
    assert said(run / "model").startswith(f"{run / 'model'} is no checkpoint of Burnish")
    assert "is damaged: MANIFEST.json is missing: the save did not finish" in said(run / "checkpoint-2")
    assert f"checkpoint {run / 'checkpoint-1'} is damaged: MANIFEST.json cannot be read" in said(run / "checkpoint-1")
