from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from burnish.registry import Table, closest


@dataclass
class Config:
    beta: float = 0.1
    gamma: float = 0.5
    names: list[str] = field(default_factory=list)


@pytest.fixture
def table() -> Table:
    table = Table("test loss", per="pair", couples_rows=False)

    @table.register("linear", paper="0000.00001")
    def linear(x, *, beta):
        return beta * x

    @table.register("affine", per="token")
    def affine(x, *, beta, gamma, offset=3.0):
        return beta * x + gamma + offset

    @table.register("bare")
    def bare(x):
        return -x

    @table.register("margin", couples_rows=True)
    def margin(x, *, margin):
        return x - margin

    return table


def test_register_returns_the_function(table):
    def double(x):
        return 2 * x

    assert table.register("double")(double) is double
    assert table["double"].function is double


def test_facts_have_the_defaults_of_the_table(table):
    assert table["linear"].facts == {"per": "pair", "couples_rows": False}
    assert table["affine"].facts == {"per": "token", "couples_rows": False}
    assert (table["linear"].paper, table["affine"].paper) == ("0000.00001", None)
    assert list(table) == ["linear", "affine", "bare", "margin"]


def test_bind_reads_the_config(table):
    """0.25 x 4 = 1; 0.25 x 4 + 2 + 3 = 6."""
    linear, affine = table.bind(["linear", "affine"], Config(beta=0.25, gamma=2.0))
    assert (linear.name, linear.function(4)) == ("linear", 1.0)
    assert (affine.name, affine.function(4), affine.facts["per"]) == ("affine", 6.0, "token")
    assert linear.paper == "0000.00001"


def test_overrides_win_over_config_and_default(table):
    """1 x 4 + 0.5 + 10 = 14.5."""
    (affine,) = table.bind(["affine"], Config(), {"beta": 1.0, "offset": 10.0})
    assert affine.function(4) == 14.5


def test_bind_does_not_change_the_table(table):
    table.bind(["linear"], Config(beta=9.0))
    assert table["linear"].function(1, beta=2.0) == 2.0


def test_unknown_name_says_what_is_near_and_what_is_known(table):
    with pytest.raises(ValueError, match=r"unknown test loss 'linea', did you mean 'linear'\?; known: affine, bare"):
        table.bind(["linea"], Config())
    with pytest.raises(ValueError, match=r"unknown test loss 'zzz'; known: affine, bare, linear, margin"):
        table.bind(["zzz"], Config())


def test_neither_a_name_nor_a_function(table):
    with pytest.raises(TypeError, match=r"\['hinge'\] is of type list: give one name or one function"):
        table.bind([["hinge"]], Config())


def test_unread_option(table):
    """An option away from its default that the chosen loss does not read is a lie; the message names who reads it."""
    with pytest.raises(
        ValueError, match=r"gamma=0.7 is set, but the test loss \['linear'\] does not read it.*0.5.*: affine"
    ):
        table.bind(["linear"], Config(gamma=0.7))
    assert len(table.bind(["linear", "affine"], Config(gamma=0.7))) == 2
    assert len(table.bind(["linear"], Config(gamma=0.5))) == 1


def test_options_of_other_rooms_are_none_of_the_table_business(table):
    assert len(table.bind(["bare"], Config(names=["set"]))) == 1


def test_unread_loss_kwargs(table):
    with pytest.raises(ValueError, match=r"loss_kwargs \['delta'\] are read by none of \['linear'\].*\['beta'\]"):
        table.bind(["linear"], Config(), {"delta": 1})


def test_hyper_parameter_without_a_value(table):
    with pytest.raises(ValueError, match=r"'margin' needs 'margin', which Config does not have: pass loss_kwargs"):
        table.bind(["margin"], Config())
    (bound,) = table.bind(["margin"], Config(), {"margin": 2.0})
    assert bound.function(5) == 3.0


def test_a_callable_is_a_row_with_default_facts(table):
    def mine(x, *, beta, slope=2.0):
        return beta * slope * x

    (bound,) = table.bind([mine], Config(beta=0.5))
    assert (bound.name, bound.function(3), bound.paper) == ("mine", 3.0, None)
    assert bound.facts == {"per": "pair", "couples_rows": False}
    assert list(table) == ["linear", "affine", "bare", "margin"]


def test_a_function_of_the_table_is_its_row(table):
    """However it is given: by `module:function` a run file gives the function itself."""
    function = table["affine"].function
    assert table.entry(function) is table["affine"]
    (bound,) = table.bind([function], Config())
    assert (bound.name, bound.facts) == ("affine", table["affine"].facts)


def test_a_callable_reads_options_that_no_row_would(table):
    def mine(x, *, gamma):
        return gamma * x

    (bound,) = table.bind([mine], Config(gamma=0.7))
    assert bound.function(10) == 7.0


def test_a_callable_without_a_name(table):
    def scale(factor, x):
        return factor * x

    (bound,) = table.bind([partial(scale, 3)], Config())
    assert (bound.name, bound.function(2)) == ("custom", 6)


def test_a_loss_twice_in_one_choice(table):
    """Two entries of one name would share one line in the metrics."""
    with pytest.raises(ValueError, match=r"\['linear', 'linear'\] has a name twice"):
        table.bind(["linear", "linear"], Config())
    with pytest.raises(ValueError, match=r"has a name twice"):
        table.bind([lambda x: x, lambda x: 2 * x], Config())


def test_duplicate_name(table):
    with pytest.raises(ValueError, match=r"test loss 'linear' is registered already"):
        table.register("linear")


def test_unknown_fact(table):
    with pytest.raises(ValueError, match=r"'new' states \['couples'\]; known facts: \['couples_rows', 'per'\]"):
        table.register("new", couples=True)
    assert "new" not in list(table)


def test_entries_are_frozen_and_list_their_hyper_parameters(table):
    entry = table["affine"]
    assert set(entry.hyper_parameters) == {"beta", "gamma", "offset"}
    assert entry.hyper_parameters["offset"] == 3.0
    assert replace(entry, name="other").name == "other"
    with pytest.raises(AttributeError):
        entry.name = "other"


@pytest.mark.parametrize(
    ("name", "phrase"),
    [("sigmid", ", did you mean 'sigmoid'?"), ("quite different", ""), ("", "")],
)
def test_closest(name, phrase):
    assert closest(name, ["sigmoid", "hinge"]) == phrase


def test_a_parameter_that_follows_a_metric_is_no_setting():
    table = Table("test loss", follows={})

    @table.register("shifted", follows={"delta": "reward"})
    def shifted(x, *, beta, delta):
        return beta * x - delta

    assert set(table["shifted"].hyper_parameters) == {"beta"}
    (bound,) = table.bind(["shifted"], Config(), {"beta": 2.0})
    assert bound.function(3.0, delta=1.0) == 5.0
    with pytest.raises(ValueError, match=r"\['delta'\] are read by none"):
        table.bind(["shifted"], Config(), {"beta": 2.0, "delta": 1.0})
