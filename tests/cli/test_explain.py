"""`burnish explain`: every name that a run file can hold is explained by the docstring that it is run by."""

import inspect

import pytest
from typer.testing import CliRunner

from burnish.cli.app import app
from burnish.cli.explain import HOMES, catalogue, explain
from burnish.cli.methods import METHODS
from burnish.cli.validate import load_schema

ROWS = [(home.key, name, home.load()[name]) for home in HOMES for name in home.load()]


@pytest.mark.parametrize(("key", "name", "entry"), ROWS, ids=[f"{row[0]}:{row[1]}" for row in ROWS])
def test_row_says_its_docstring_its_options_and_its_key(key, name, entry):
    said = explain(name)
    assert inspect.getdoc(entry.function) in said
    assert key in said
    assert all(option in said for option in entry.hyper_parameters)


@pytest.mark.parametrize("method", METHODS)
def test_method_says_its_rooms_and_its_losses(method):
    said = explain(method)
    assert "burnish.trainers.base: PolicyTrainer: connects the rooms" in said
    assert "Losses (loss_type): " in said
    assert "learning_rate" not in said.split("Options that matter most")[0]


@pytest.mark.parametrize("method", METHODS)
def test_options_of_methods_are_explained_with_their_default(method):
    options = load_schema()["$defs"][method]["properties"]
    for name in list(options)[:: len(options) // 10]:
        assert method in explain(name)


def test_a_name_of_several_things_is_explained_as_each():
    said = explain("grpo")
    assert "grpo: a method." in said
    assert "grpo: one of the policy losses." in said


def test_metric_is_explained():
    assert "moved further than the clip allows" in explain("val/clipfrac_avg")


def test_catalogue_names_every_method_and_row():
    said = catalogue()
    assert all(name in said for name in [*METHODS, *(name for _, name, _ in ROWS)])


def test_unknown_name_is_an_error_with_what_comes_near():
    found = CliRunner().invoke(app, ["explain", "simpoo"])
    assert found.exit_code != 0
    assert "nothing is called 'simpoo', did you mean 'simpo'" in found.output
