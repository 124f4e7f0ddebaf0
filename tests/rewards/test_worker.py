"""Functions that hang, crash and fork, in workers."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import misbehaving
import numpy as np
import psutil
import pytest
import torch
from reward_rounds import make_answers
from transformers import TrainerState

from burnish.rewards import RewardError, Scorer
from burnish.rewards.builtin import number
from burnish.rewards.worker import target_of

HERE = Path(__file__).parent
SLOW = {"sleeps", "spins", "holds the lock", "sleeps in C", "forks"}


def worker_processes() -> list[psutil.Process]:
    """Children of this process, zombies too, but for what the interpreter runs itself."""
    return [child for child in psutil.Process().children(recursive=True) if "serve(" in " ".join(cmdline(child))]


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def score(function, answers=None, **settings):
    with Scorer(function, **settings) as scorer:
        return scorer.score(make_answers() if answers is None else answers, num_tokens=8, trainer_state=TrainerState())


# Who gets a worker.


def test_what_a_new_process_can_import():
    def closure(completions):
        return []

    assert target_of(misbehaving.fine).qualname == "fine"
    assert target_of(partial(misbehaving.everything, bonus=2)).settings == {"bonus": 2}
    assert target_of(number).module == "burnish.rewards.builtin"
    others = [
        closure,
        lambda completions: [],
        partial(misbehaving.fine, []),
        [].append,
        misbehaving.FAULTS["exits"],
        abs,
    ]
    assert [target_of(function) for function in others] == [None] * len(others)


def test_isolation_decides():
    here, there = os.getpid(), misbehaving.pids
    _, log = score([there, lambda completions, log_extra: misbehaving.pids(completions, log_extra)])
    assert log.columns["pid"][0] != here
    assert log.columns["lambda/pid"] == [here] * 4
    assert score(there, isolation="none")[1].columns["pid"] == [here] * 4
    assert score(there, isolation="process")[1].columns["pid"][0] != here
    with pytest.raises(ValueError, match=r"'lambda' cannot be imported by a worker.*Move it to a module"):
        Scorer(lambda completions: [], isolation="process")


def test_built_in_functions_that_cannot_hang_need_no_worker():
    scorer = Scorer(["number", "exact_match"], isolation="process")
    scorer.score(make_answers(), num_tokens=8)
    assert worker_processes() == []


def test_a_regular_expression_of_the_user_always_gets_one():
    answers = make_answers(["aaaa", "a" * 60, "b"])
    table, log = score("format", answers, options={"format": {"pattern": "(a+)+"}}, isolation="none")
    assert table.rewards[:, 0].tolist() == [1, 1, 0]
    assert log.events == ()


@pytest.mark.slow
def test_a_regular_expression_that_never_ends_costs_one_answer():
    answers = make_answers(["aaaa", "a" * 60 + "b", "b"])
    table, log = score("format", answers, options={"format": {"pattern": "(a+)+"}}, timeout=0.5, on_error="unscored")
    assert table.rewards[[0, 2], 0].tolist() == [1, 0]
    assert table.rewards[1].isnan().all()
    assert [(event["kind"], event["rows"]) for event in log.events] == [("timeout", [100])]


# What goes there and comes back.


@pytest.mark.parametrize("vector", [np.arange(3), pytest.param(torch.arange(3), marks=pytest.mark.slow)])
def test_arguments_and_logs_pass(vector):
    answers = make_answers(vector=[vector] * 4, nested=[{"a": [1, None]}] * 4)
    table, log = score(partial(misbehaving.everything, bonus=2), answers)
    assert table.rewards[:, 0].tolist() == [2] * 4
    names = ["answer", "completion_ids", "log_extra", "log_metric", "nested", "prompts", "trainer_state"]
    assert log.columns["names"] == [[*names, "vector"]] * 4
    assert log.metrics["step"].total.item() == 0


def test_coroutine_functions_run_in_workers():
    assert score(misbehaving.asynchronous)[0].rewards[:, 0].tolist() == [1] * 4


def test_a_worker_serves_many_rounds_and_is_closed():
    with Scorer(misbehaving.pids) as scorer:
        pids = {scorer.score(make_answers(), num_tokens=8)[1].columns["pid"][0] for _ in range(3)}
        assert len(pids) == len(worker_processes()) == 1
    assert worker_processes() == []
    scorer.score(make_answers(), num_tokens=8)
    del scorer
    assert worker_processes() == []


def test_arguments_that_cannot_be_sent_are_an_error():
    with pytest.raises(RewardError, match=r"cannot be sent to its worker.*reward_isolation='none'"):
        score(partial(misbehaving.everything), make_answers(column=[lambda: 0] * 4))


def test_a_module_that_cannot_be_imported_there(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("import os\nif os.environ.get('HERE') is None: raise OSError('no')\n" + DEF)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HERE", "1")
    import only_here

    monkeypatch.delenv("HERE")
    with pytest.raises(RewardError, match=r"cannot be imported in a worker: its module raised OSError: no"):
        score(only_here.fine)
    assert worker_processes() == []


DEF = "def fine(completions):\n    return [1.0] * len(completions)\n"


def test_results_that_are_none():
    with pytest.raises(RewardError, match=r"returned <generator .*, of type generator"):
        score(misbehaving.returns_generator)


@pytest.mark.slow
def test_replies_have_a_limit():
    with pytest.raises(RewardError, match="returned more than 64 MB"):
        score(misbehaving.logs_much)


# Hangs and crashes.


def answers_with(mode):
    return make_answers(["ok", "bad", "ok", "ok", "ok"], mode=[mode] * 5)


@pytest.mark.parametrize(
    "mode", [pytest.param(m, marks=pytest.mark.slow if m in SLOW else ()) for m in misbehaving.FAULTS]
)
def test_a_fault_costs_one_answer(mode):
    start = time.perf_counter()
    table, log = score(misbehaving.fails_on, answers_with(mode), timeout=0.5, on_error="unscored")
    assert time.perf_counter() - start < 8
    scores = table.rewards[:, 0].tolist()
    assert math.isnan(scores.pop(1))
    assert scores == [1] * 4
    assert [(event["event"], event["rows"]) for event in log.events] == [("reward_failed", [100])]
    assert log.events[0]["answer"] == "'bad'"
    assert worker_processes() == []
    assert not [p for p in psutil.process_iter() if "# forked-by-a-reward" in " ".join(cmdline(p))]


@pytest.mark.parametrize(
    ("mode", "problem"),
    [
        ("raises", r"raised KeyError: 'answer' \(.*misbehaving.py:\d+ in _raises\)"),
        ("segfaults", "it was ended by SIGSEGV"),
        ("exits", "it ended with exit code 3"),
        ("floods", "it ended with exit code 4"),
        pytest.param(
            "holds the lock",
            r"has not come back after .* s, and its worker was stopped \(.*:\d+ in fullmatch\)",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_fault_names_function_row_prompt_and_answer(mode, problem):
    with pytest.raises(RewardError, match=f"the reward 'fails_on' .*{problem}") as raised:
        score(misbehaving.fails_on, answers_with(mode), timeout=0.5)
    assert "  at row 100\n  prompt: 'Question 0'\n  answer: 'bad'\n" in str(raised.value)


def test_output_has_a_limit(capfd):
    answers = answers_with("floods")
    score(misbehaving.fails_on, answers, on_error="unscored")
    assert 60_000 < len(capfd.readouterr().err) < 5 * 66_000


@pytest.mark.slow
def test_after_many_hangs_nothing_is_left():
    num_threads = len(psutil.Process().threads())
    with Scorer(misbehaving.fails_on, timeout=0.05, on_error="unscored") as scorer:
        for _ in range(20):
            table, _ = scorer.score(make_answers(["bad"], mode=["sleeps"]), num_tokens=8)
            assert table.rewards.isnan().all()
        table, _ = scorer.score(make_answers(["ok"], mode=["sleeps"]), num_tokens=8)
        assert table.rewards.tolist() == [[1]]
        assert len(worker_processes()) == 1
    assert worker_processes() == []
    assert len(psutil.Process().threads()) <= num_threads + 2
    assert len(os.listdir("/proc/self/fd")) < 100


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from misbehaving import {function}
from burnish.rewards import Scorer
from reward_rounds import make_answers
print("top of the script", flush=True)
answers = make_answers(["bad"], mode=["sleeps"])
print(Scorer({function}, timeout=600).score(answers, num_tokens=8)[0].rewards.tolist())
"""


def run_script(tmp_path, function, **settings) -> subprocess.Popen[str]:
    (tmp_path / "script.py").write_text(SCRIPT.format(here=str(HERE), function=function))
    command = [sys.executable, "-W", "error", "script.py"]
    return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, **settings)


@pytest.mark.slow
def test_a_script_without_a_guard_runs_once(tmp_path):
    output, _ = run_script(tmp_path, "fine").communicate(timeout=60)
    assert output == "top of the script\n[[3.0]]\n"


@pytest.mark.slow
def test_a_worker_ends_with_the_training_process(tmp_path):
    """Even if the training process is killed while the worker sleeps in C."""
    script = run_script(tmp_path, "fails_on", start_new_session=True)
    try:
        assert script.stdout.readline() == "top of the script\n"
        workers: list[psutil.Process] = []
        deadline = time.monotonic() + 30
        while not workers and time.monotonic() < deadline:
            workers = psutil.Process(script.pid).children()
            time.sleep(0.05)
        script.send_signal(signal.SIGKILL)
        gone, alive = psutil.wait_procs(workers, timeout=5)
        assert (len(gone), alive) == (1, [])
    finally:
        script.kill()
        script.communicate()
