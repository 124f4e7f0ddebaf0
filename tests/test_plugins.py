"""Installed packages add rows to the tables through the entry point `burnish.plugins`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from burnish.cli.explain import explain
from burnish.cli.runfile import examine
from burnish.losses import preference_losses
from burnish.registry import has_plugins, load_plugins, origin

LOSS = '''
from torch.nn.functional import relu

from burnish import preference_loss


@preference_loss("far_apart", paper="0000.00000")
def far_apart(pair, *, beta):
    """max(0, 5 - beta * logratio_diff)."""
    return relu(5 - beta * pair.logratio_diff)
'''


def install(folder: Path, package: str, module: str, source: str) -> None:
    """A package as an installer lays it out: its module, and its metadata with the entry point."""
    (folder / f"{module}.py").write_text(source)
    metadata = folder / f"{package.replace('-', '_')}-1.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
    (metadata / "entry_points.txt").write_text(f"[burnish.plugins]\n{module} = {module}\n")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A directory of installed packages; what was imported from it is forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins.cache_clear()
    before = set(sys.modules)
    yield tmp_path
    load_plugins.cache_clear()
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]


def test_without_any_there_is_nothing_to_load(folder):
    assert not has_plugins()
    assert load_plugins() == ()


def test_a_row_of_an_installed_package_is_found_by_its_name(folder):
    install(folder, "far-losses", "losses_of_far", LOSS)
    assert has_plugins()
    assert "losses_of_far" not in sys.modules
    assert preference_losses["far_apart"].paper == "0000.00000"
    assert origin(preference_losses["far_apart"].function) == "losses_of_far:far_apart, of far-losses 1.5"
    assert origin(preference_losses["sigmoid"].function) is None


def test_explain_says_where_a_row_comes_from(folder):
    install(folder, "far-losses", "losses_of_far", LOSS)
    said = explain("far_apart")
    assert "max(0, 5 - beta * logratio_diff)" in said
    assert "From: losses_of_far:far_apart, of far-losses 1.5" in said
    assert "From: " not in explain("sigmoid")


def test_a_plugin_that_fails_is_named_and_costs_no_other(folder):
    install(folder, "a-broken-one", "broken_losses", "import a_package_that_is_not_there\n")
    install(folder, "far-losses", "losses_of_far", LOSS)
    words = r"the plugin 'broken_losses' of a-broken-one 1.5 could not be imported: broken_losses raised ModuleNotFound"
    with pytest.warns(UserWarning, match=words):
        assert preference_losses["far_apart"].name == "far_apart"
    with pytest.raises(ValueError, match=rf"unknown preference loss 'farapart', did you mean 'far_apart'.*{words}"):
        preference_losses["farapart"]


def test_a_plugin_that_takes_a_name_of_the_library_is_one_that_fails(folder):
    install(folder, "thief", "stolen_losses", LOSS.replace("far_apart", "sigmoid"))
    with pytest.warns(UserWarning, match="preference loss 'sigmoid' is registered already"):
        load_plugins()
    assert origin(preference_losses["sigmoid"].function) is None


def test_a_run_file_may_name_a_row_of_an_installed_package(folder):
    install(folder, "far-losses", "losses_of_far", LOSS)
    (folder / "rows.jsonl").write_text("{}\n")
    (folder / "run.yaml").write_text(
        f"model: smollm2-135m\ndata: {{train: {folder}/rows.jsonl}}\ntraining: {{loss_type: far_apart, beta: 0.2}}\n"
    )
    assert examine(folder / "run.yaml").problems == ()
    (wrong,) = examine(folder / "run.yaml", ["loss_type=farapart"]).problems
    assert "did you mean 'far_apart'" in wrong
