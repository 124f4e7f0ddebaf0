from __future__ import annotations

import io

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from burnish.metrics import Estimate
from burnish.report.console import (
    Answer,
    ProgressLine,
    Sample,
    answers_table,
    evaluation_line,
    final_table,
    progress_line,
)
from burnish.trainers.sampling import EvalAnswer, EvalAnswers, answers_line

LOGS = {"loss": 0.65, "rewards/margins": -0.0912, "rewards/accuracies": 0.75, "num_skipped_steps": 0}


def shown(renderable, width=80):
    screen = io.StringIO()
    Console(file=screen, width=width).print(renderable)
    return screen.getvalue()


@pytest.mark.parametrize(
    ("step", "logs", "seconds", "line"),
    [
        (0, {}, None, "step 0/30"),
        (12, LOGS, 9.5, "step 12/30 · loss 0.6500 · margin -0.091 · accuracy 0.75 · 9.5 s a step · 2 min 51 s left"),
        (30, {"num_skipped_steps": 2}, 12.3, "step 30/30 · 2 steps skipped · 12 s a step"),
    ],
)
def test_progress_line(step, logs, seconds, line):
    assert progress_line(step, 30, logs, seconds) == line


def test_evaluation_line():
    line = evaluation_line(5, {"eval_loss": 0.5, "eval_rewards/margins": 1.0, "eval_runtime": 3.0, "epoch": 1.0})
    assert line == "step 5 · eval_loss 0.5000 · eval_rewards/margins 1.0000"


def test_table_of_numbers_fits_80_columns():
    before = {"eval_rewards/accuracies": Estimate(0.5, 80.0, 0.0), "eval_loss": Estimate(0.6931, 80.0, 0.0)}
    after = {"eval_rewards/accuracies": Estimate(0.9, 80.0, 0.03), "eval_loss": Estimate(0.3, 80.0, 0.02)}
    text = shown(final_table(before, after, [], "runs/x", ["burnish resume runs/x"]))
    assert "0.500 [0.393, 0.607]" in text
    assert "0.900 [0.815, 0.948]" in text
    assert "eval 80 pairs" in text
    assert "Run directory: runs/x" in text
    assert "  burnish resume runs/x\n" in text


def test_texts_of_models_are_inert():
    sample = Sample("[red]why[/red]?", Answer("a[/] \x1b[2Jb", is_cut=False), Answer("\u202eevil", is_cut=True))
    text = shown(final_table({}, {}, [sample], "[bold]x", []))
    assert "[red]why[/red]?" in text
    assert "a[/] [2Jb" in text
    assert "evil … (cut)" in text
    assert "[bold]x" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_unknown_and_empty_answers():
    text = shown(final_table({}, {}, [Sample("q", None, Answer(" ", is_cut=False))], "x", []))
    assert "not known" in text
    assert "(empty)" in text
    assert "No held-out rows" in text


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_of_a_run(tmp_path, is_terminal):
    screen = io.StringIO()
    progress = ProgressLine(Console(file=screen, width=120, force_terminal=is_terminal))
    args, control = TrainingArguments(str(tmp_path)), TrainerControl()
    state = TrainerState(max_steps=2, is_world_process_zero=True)
    for step in (1, 2):
        progress.on_step_begin(args, state, control)
        state.global_step = step
        progress.on_step_end(args, state, control)
        progress.on_log(args, state, control, logs={**LOGS, "note": "text"})
    progress.on_log(args, state, control, logs={"eval_loss": 0.5})
    progress.on_train_end(args, state, control)
    progress.on_log(args, state, control, logs={"eval_loss": 0.4})
    text = screen.getvalue()
    assert "step 2/2 · loss 0.6500" in text
    assert "eval_loss 0.5000" in text
    assert "eval_loss 0.4000" not in text
    if not is_terminal:
        assert text.count("\n") == 3


def test_other_processes_are_silent(tmp_path):
    screen = io.StringIO()
    progress = ProgressLine(Console(file=screen, force_terminal=True))
    args, control = TrainingArguments(str(tmp_path)), TrainerControl()
    state = TrainerState(max_steps=2, is_world_process_zero=False)
    progress.on_step_begin(args, state, control)
    progress.on_step_end(args, state, control)
    progress.on_log(args, state, control, logs=LOGS)
    assert screen.getvalue() == ""


def test_text_without_spaces_is_wrapped_and_not_cut():
    sample = Sample("q", None, Answer("睡眠很重要" * 20, is_cut=False))
    text = shown(final_table({}, {}, [sample], "x", []))
    assert text.count("睡眠") + text.count("睡\n") >= 18
    assert "…" not in text


def test_answers_of_an_evaluation_beside_what_they_were_compared_with():
    answers = tuple(EvalAnswer(n, f"prompt {n}", "mine\x1b[2J", 3, n == 0, "theirs", 0.5) for n in range(5))
    found = EvalAnswers(10, "eval", "the reference", Estimate(0.5, 5, 0.1), answers)
    text = shown(answers_table(found, answers_line(found)), width=200)
    assert "step 10 · eval: 5 prompts answered, 1 answers cut, win rate 0.500 [0.170, 0.830] against the ref" in text
    assert text.count("policy, score 0.5") == 3
    assert "mine[2J … (cut)" in text
    assert "prompt 3" not in text
    alone = EvalAnswers(10, "eval", None, None, (EvalAnswer(0, "p", "", 1, is_cut=False),))
    text = shown(answers_table(alone, answers_line(alone)))
    assert "compared with" not in text
    assert "(empty)" in text
