"""Texts of a length, curves of accuracy, charts and command lines of the benchmarks."""

from __future__ import annotations

import json
import math
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import make_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "arms"))
import _axes
import _compare
import _record
import _rewards
import _rewards_page
import _svg
import dpo_measure
import dpo_prepare
import inputs
import phases
import reward_measure
import reward_prepare


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_exact_texts_have_the_length_and_differ(tokenizer):
    def count(text: str) -> int:
        return len(inputs.token_ids(text, tokenizer))

    pool = inputs.endless(["the quick brown fox", "jumps over"], tokenizer, least=400)
    found = list(inputs.exact_texts(pool, 20, tokenizer, render="<{}>".format, count=count))
    assert len(found) > 10
    assert {count(text) for text in found} == {20}
    assert len(set(found[:2])) == 2


def test_exact_rows_tokenise_as_prompt_then_answer(tokenizer):
    rows = [{"prompt": "Say é and more, please. ", "chosen": "é — yes<|im_end|>", "rejected": "no, never<|im_end|>"}]
    job = {"num_steps": 2, "pairs": 2, "prompt_tokens": 32, "answer_tokens": 12}
    made = dpo_prepare.exact_rows(rows, job, tokenizer)
    assert len(made) == 4
    for row in made:
        prompt = inputs.token_ids(row["prompt"], tokenizer)
        for side in ("chosen", "rejected"):
            whole = inputs.token_ids(row["prompt"] + row[side], tokenizer)
            assert (len(prompt), len(whole), whole[:32]) == (32, 44, prompt)
            assert whole[-1] == tokenizer.eos_token_id


def test_useful_tokens_count_a_prompt_once():
    """Prompt 2, answers 1 and 3: 2 + 1 + 3 useful, 1 + 3 trained."""
    chosen = dpo_measure.Row([1, 2, 3], [False, False, True])
    rejected = dpo_measure.Row([1, 2, 4, 5, 6], [False, False, True, True, True])
    found = dpo_measure.describe_rows([chosen], [rejected])
    assert (found["useful_tokens"], found["trained_tokens"]) == (6, 4)
    assert found["digest"] != dpo_measure.describe_rows([rejected], [chosen])["digest"]


def test_useful_tokens_of_a_reward_model_count_a_common_beginning_once():
    """Common beginning 2; 4 + 3 - 2 = 5."""
    found = reward_measure.describe_rows([[1, 2, 3, 4]], [[1, 2, 5]])
    assert found["useful_tokens"] == 5
    assert found["digest"] != reward_measure.describe_rows([[1, 2, 5]], [[1, 2, 3, 4]])["digest"]


def test_a_reward_margin_next_to_zero_is_compared_as_the_scores_it_comes_of():
    """Means of 0.25 and margins of 0.01 and 0.0101: scores 0.255 and 0.245, and 0.25505 and 0.24495."""
    line = {"loss": 0.7, "accuracy": 0.5, "grad_norm": 6.0, "mean_reward": 0.25, "margin": 0.01}
    found, other = reward_measure.compared(line), reward_measure.compared({**line, "margin": 0.0101})
    assert found["scores/means"] == pytest.approx([0.255, 0.245])
    (difference,) = _compare.differences(found, other, ["scores/means"])
    assert difference.relative == pytest.approx(0.00005 / ((0.255**2 + 0.245**2) / 2) ** 0.5)


def test_rows_of_a_reward_model_are_never_cut(tokenizer):
    short = {"prompt": "Say yes. ", "chosen": "yes<|im_end|>", "rejected": "no<|im_end|>"}
    long = {**short, "rejected": "no, never, not at all, whatever you say<|im_end|>"}
    longest = len(inputs.token_ids(short["prompt"] + short["chosen"], tokenizer))
    assert reward_prepare.short_rows([long, short], {"max_length": longest}, tokenizer) == [short]


class Library:
    """Two functions of something that is measured."""

    def score(self, model: str) -> str:
        return model

    def draw(self) -> None:
        pass


def test_phases_are_sums_of_calls_and_the_rest_is_the_update(monkeypatch):
    """Clock of 1 s a look: each counted call takes 1 s. Two steps, with two calls of `rescore` in each."""
    looks = iter(range(100))
    monkeypatch.setattr(phases, "time", SimpleNamespace(perf_counter=lambda: float(next(looks))))
    library, found = Library(), phases.Phases("generate", "score", "rescore")
    found.watch(library, "draw", "generate")
    found.watch(library, "score", {"reward": "score", "value": "rescore", "policy": None}.get)
    for _ in range(2):
        library.draw()
        assert [library.score(name) for name in ("value", "reward", "value", "policy")][-1] == "policy"
    assert found.of_steps([5.0, 7.0]) == {
        "generate": [1.0, 1.0],
        "score": [1.0, 1.0],
        "rescore": [2.0, 2.0],
        "update": [1.0, 3.0],
    }
    library.draw()
    with pytest.raises(RuntimeError, match="3 calls do not divide into 2 steps"):
        found.of_steps([5.0, 7.0])


def run_of(*sampled: float, seconds: list[float] | None = None) -> _rewards.Run:
    curve = {5 * number: {"sampled": [value], "greedy": [value / 2]} for number, value in enumerate(sampled)}
    return _rewards.Run(name="Burnish, seed 1", seed=1, curve=curve, seconds=seconds or [])


def test_steps_to_an_accuracy():
    slow, fast, never = run_of(0.1, 0.4, 0.7), run_of(0.1, 0.6), run_of(0.1, 0.2, 0.3)
    assert [_rewards.first_step_at(run, "sampled", 0.6) for run in (slow, fast, never)] == [10, 5, None]
    assert _rewards.median_steps([slow, fast, never], "sampled", 0.6) == 10
    assert math.isinf(_rewards.median_steps([slow, never, never], "sampled", 0.6))


def test_products_and_full_runs_are_shown():
    """10 steps of 3 s and of 1 s: half a minute, ten seconds; the run itself took 10 x 6 s."""
    run = run_of(0.1, 0.4, 0.7, seconds=[6.0] * 10)
    table = _rewards_page.products([run], {"TRL": 3.0, "Burnish": 1.0}, [0.6])
    assert table.splitlines()[2] == "| 0.60 sampled | 10 | 0.5 | 0.2 | 3.00 |"
    assert table.splitlines()[3] == "| 0.60 greedy | not reached | - | - | 3.00 |"
    assert "| step 10, 1.0 min | not reached |" in _rewards_page.full_runs([run], [0.6])


def test_a_run_directory_is_read(tmp_path):
    lines = [
        {"step": 0, "time": 1.0, "eval_accuracy": 0.2, "eval_accuracy_greedy": 0.5},
        {"step": 1, "time": 2.0, "loss": 0.1},
        {"step": 5, "time": 3.0, "eval_accuracy": 0.6, "eval_accuracy_greedy": 0.7},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    run = _rewards.read_run_directory(tmp_path)
    assert run.curve == {
        0: {"sampled": [0.2], "greedy": [0.5]},
        5: {"sampled": [0.6], "greedy": [0.7]},
    }
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(ValueError, match="eval_strategy=steps"):
        _rewards.read_run_directory(tmp_path)


def test_axes_of_charts():
    log = _svg.Axis.over([64, 1024], 0, 100, log=True)
    assert [log.pixel(value) for value in (64, 256, 1024)] == [0, pytest.approx(50), 100]
    assert log.ticks() == [64, 128, 256, 512, 1024]
    linear = _svg.Axis.over([2.0, 7.3], 0, 73, log=False)
    assert linear.pixel(1.0) == pytest.approx(10)
    assert linear.ticks() == [0, 2, 4, 6]


def test_a_chart_is_well_formed_and_draws_every_point():
    chart = _svg.Chart("a < b", "tokens", "s", [_svg.Line("TRL & co", [(1, 2), (2, 3)]), _svg.Line("none", [])])
    root = ElementTree.fromstring(_svg.grid([chart, _svg.Chart("empty", "x", "y", [])]))
    assert len(root.findall(".//{*}circle")) == 2
    assert {"a < b", "TRL & co"} <= {element.text for element in root.iter() if element.text}


def test_model_sizes_are_what_the_axis_says():
    for point in _axes.AXES["size"].points:
        assert _axes.num_parameters(point.geometry) / 1e6 == pytest.approx(point.value, abs=0.5)


def test_a_command_line_names_no_place(monkeypatch):
    given = ["/work/x/benchmarks/vs_trl.py", "dpo", "--data=/home/me/a.jsonl", "--peer-python", "/opt/py/bin/python"]
    monkeypatch.setattr(sys, "argv", given)
    assert _record.command_line() == "python benchmarks/vs_trl.py dpo --data=a.jsonl --peer-python python"
