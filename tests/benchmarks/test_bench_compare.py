"""The gate, the medians and the verdicts of the benchmarks; all without a library to measure."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import _compare
import _methods
import _paired
import _processes
import _report
import _table_page
import _table_rows


def process(seconds: list[float], *, peak: float = 3.0, phases: dict[str, list[float]] | None = None) -> dict:
    """A result of an arm: 1 GB of models, a step to warm up, 10 useful tokens a step."""
    own = {"phases": phases} if phases else {}
    return {
        "seconds": [99.0, *seconds],
        "cpu_seconds": [99.0, *(2 * value for value in seconds)],
        "page_faults": [0, *(1 for _ in seconds)],
        "steps": [{"useful_tokens": 10, "trained_tokens": 4, "drawn_tokens": 8}] * (1 + len(seconds)),
        "loaded_bytes": 1e9,
        "peak_bytes": peak * 1e9,
        **own,
    }


def test_a_difference_is_relative_and_that_of_the_worst_row():
    (row,) = _compare.differences({"logps": [1.0, -2.0]}, {"logps": [1.0, -2.5]}, ["logps"])
    assert (row.peer, row.ours, row.relative) == (-2.0, -2.5, pytest.approx(0.2))


def test_where_there_is_a_number_a_token_all_of_them_are_the_measure():
    """Root mean square of 3 and 4 and 0: 5 / sqrt(3); off by 0.5, although the worst one alone is infinitely so."""
    theirs, own = {"tokens/values": [3.0, 4.0, 0.0]}, {"tokens/values": [3.0, 4.0, 0.5]}
    (row,) = _compare.differences(theirs, own, ["tokens/values"])
    assert (row.peer, row.ours, row.relative) == (0.0, 0.5, pytest.approx(0.5 * 3**0.5 / 5))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["loss", "tokens/values"])
def test_what_is_not_finite_is_never_equal(name, value):
    (row,) = _compare.differences({name: [value, 1.0]}, {name: [value, 1.0]}, [name])
    assert row.relative > _compare.GATE


def test_the_gate_judges_float32_alone(capsys):
    steps = {"TRL": {"loss": 1.0}, "Burnish": {"loss": 1.001}}
    _paired.judge(steps, ["loss"], precision="bfloat16")
    assert "NOT EQUAL" not in capsys.readouterr().out
    with pytest.raises(_paired.NotEqualError, match="Burnish: loss"):
        _paired.judge(steps, ["loss"], precision="float32")
    assert "NOT EQUAL" in capsys.readouterr().out


def test_other_tokens_are_found_by_step():
    steps = [{"digest": "a"}, {"digest": "b"}]
    with pytest.raises(_paired.NotEqualError, match=r"steps \[2\]"):
        _paired.check_tokens({"TRL": [{"steps": steps}], "Burnish": [{"steps": [steps[0], {"digest": "c"}]}]})


def test_ratios_are_of_rounds_and_leave_the_warm_up_out():
    """Round 1: 39 / 13 = 3; round 2: 8 / 4 = 2: steps of a round are not of one size. Memory above the models: (3 - 1) / (5 - 1) = 1/2."""
    processes = {
        "TRL": [process([20.0, 9.0, 10.0], peak=5), process([8.0], peak=5)],
        "Burnish": [process([2.0, 2.0, 9.0], peak=3), process([4.0], peak=3)],
    }
    ours = _compare.summarise(processes, baselines=["TRL"])[1]
    assert ours.speedups["TRL"] == _compare.Spread(2.5, 2.0, 3.0)
    assert ours.above_share == _compare.Spread(0.5, 0.5, 0.5)
    assert ours.cores.median == 2.0
    assert ours.tokens_per_second.median == pytest.approx((30 / 13 + 10 / 4) / 2)


def test_a_case_has_the_defaults_of_its_method_and_refuses_other_options():
    job = _paired.Case(method="grpo", options={"new_tokens": 8}, steps=3).job()
    assert (job["new_tokens"], job["num_generations"], job["num_steps"]) == (8, 8, 4)
    with pytest.raises(ValueError, match=r"unknown options of grpo: .'pairs'"):
        _paired.Case(method="grpo", options={"pairs": 2}).job()


def test_every_method_has_its_scripts_its_peer_and_a_page():
    for name, method in _methods.METHODS.items():
        assert all((_processes.ARMS / f"{name}_{part}.py").is_file() for part in ("prepare", "trl", "burnish"))
        requirements = (_processes.HERE / method.peer.requirements).read_text()
        assert "trl==" in requirements
        case = _paired.Case(method=name)
        assert method.describe(_report.options_of(case))
        assert _report.file_stem(case).startswith(f"vs-trl-{name}-float32-")


def comparison() -> _paired.Comparison:
    """TRL 12 s a step, tuned 6 s, Burnish 3 s, of which 2 s are the update."""
    own = {"generate": [9.0, 1.0], "score": [0.0, 0.0], "update": [9.0, 2.0]}
    theirs = {"generate": [9.0, 4.0], "score": [0.0, 0.0], "update": [9.0, 8.0]}
    tuned = {"generate": [9.0, 1.0], "score": [0.0, 0.0], "update": [9.0, 5.0]}
    return _paired.Comparison(
        case=_paired.Case(method="grpo"),
        first_steps={},
        processes={
            "TRL": [process([12.0], peak=5, phases=theirs)],
            "TRL, tuned": [process([6.0], peak=5, phases=tuned)],
            "Burnish": [process([3.0], peak=2, phases=own)],
        },
    )


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (_table_rows.whole_step, (4.0, 2.0)),
        (_table_rows.phase_of_step("update"), (4.0, 2.5)),
        (_table_rows.phase_of_step("generate"), (4.0, 1.0)),
        (_table_rows.memory_above, (0.25, None)),
    ],
)
def test_outcomes_of_a_comparison(measure, expected):
    outcome = measure(comparison())
    assert (outcome.stock, outcome.tuned) == expected


@pytest.mark.parametrize(
    ("name", "stock", "tuned", "verdict"),
    [
        ("grpo-step", 4.0, 2.5, "floor"),
        ("grpo-step", 6.0, 3.5, "aim"),
        ("grpo-step", 9.0, 2.4, "**below the floor**"),
        ("grpo-step", 9.0, None, "not measured"),
        ("memory-dpo", 0.4, None, "floor"),
        ("memory-dpo", 0.2, None, "aim"),
        ("memory-dpo", 0.5, None, "**below the floor**"),
    ],
)
def test_verdicts(name, stock, tuned, verdict):
    row = next(row for row in _table_rows.ROWS if row.name == name)
    assert _table_page.verdict(row, _table_rows.Outcome(stock, tuned)) == verdict


def test_rows_have_names_of_their_own_and_cases_that_exist():
    names = [row.name for row in _table_rows.ROWS]
    assert len(set(names)) == len(names)
    assert {row.case for row in _table_rows.ROWS if isinstance(row.case, str)} == _table_rows.CASES.keys()
    assert all(len(row.floor) == len(row.aim) for row in _table_rows.ROWS)


def test_products_of_a_step_count_each_token_once():
    """10 tokens x (1 + 1 + 1) in the trunk, 8 x (2 + 2 + 2) in the head, and 10 x 1 + 8 x 2 for the reference = 104."""
    roof = {"trunk": dict.fromkeys(("forward", "input", "weight"), 1.0)}
    roof["head"] = dict.fromkeys(("forward", "input", "weight"), 2.0)
    found = comparison()
    del found.processes["Burnish"][0]["steps"][1]["trained_tokens"]
    assert _table_rows.product_seconds(found, roof) == 104.0
    assert _table_rows.product_share(found, roof) == 52.0


def test_tables_show_every_arm_and_phase():
    found = comparison()
    table = _report.format_table(_report.summaries(found))
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| TRL", "| TRL, tuned", "| Burnish"]
    assert table.splitlines()[-1].endswith("| 4.00 | 2.00 | 0.25 |")
    assert _report.format_phases(found.processes).splitlines()[-1] == (
        "| Burnish | 1.00 | 0.00 | 2.00 | 8 | 4.00 | 0.00 | 4.00 |"
    )
