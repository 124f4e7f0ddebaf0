"""What is told of a round: the table on the console at each log line, and every answer in the run directory."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from online_training import make_online_trainer, make_prompts, near_wanted

from burnish.generation.cache import GrowingRows
from burnish.generation.placed import PlacedRows
from burnish.runtime.rundir import read_events
from burnish.trainers.round_table import round_table

ROW = {"row": 1, "prompt": "1 + 1 =", "completion": "2", "rewards/number": 1.0, "reward": 1.0, "advantage": 0.5}
ROW |= {"finish_reason": "stop"}


def shown(renderable, width=100) -> str:
    screen = io.StringIO()
    Console(file=screen, width=width).print(renderable)
    return screen.getvalue()


def cells(text: str) -> list[list[str]]:
    """The cells of each line between the bars of a table."""
    return [[cell.strip() for cell in line[1:-1].split("│")] for line in text.splitlines() if line.startswith("│")]


def test_the_table_by_hand():
    rows = [
        ROW,
        {**ROW, "completion": "", "rewards/number": None, "advantage": -0.25, "finish_reason": "length"},
        {**ROW, "row": 7, "prompt": "2 + 2 =", "completion": "5", "rewards/number": 0.0, "advantage": 0.0},
    ]
    text = shown(round_table(rows, "3 of 8 answers"))
    assert text.splitlines()[0].strip() == "3 of 8 answers"
    assert cells(text) == [
        ["1 + 1 =", "2", "1", "+0.5"],
        ["", "(empty) … (cut)", "–", "-0.25"],
        ["2 + 2 =", "5", "0", "+0"],
    ]
    assert all(header in text for header in ("prompt", "answer", "number", "advantage"))


def test_several_rewards_have_a_total_and_notes_a_column():
    row = {**ROW, "rewards/short": 0.3, "reward": 1.3, "extra/found": "two"}
    text = shown(round_table([row], "x"))
    assert cells(text) == [["1 + 1 =", "2", "1", "0.3", "1.3", "+0.5", "found: two"]]
    assert all(header in text for header in ("number", "short", "reward", "notes"))


def test_many_rewards_are_lines_of_one_column():
    row = {**ROW, "rewards/short": None, "rewards/long_name": -2.0, "reward": -1.0}
    assert cells(shown(round_table([row], "x"))) == [
        ["1 + 1 =", "2", "number 1", "+0.5"],
        ["", "", "short –", ""],
        ["", "", "long_name -2", ""],
        ["", "", "reward -1", ""],
    ]


def test_texts_are_inert_and_long_ones_lose_their_middle():
    row = {**ROW, "prompt": "[red]p[/] \x1b[2J", "completion": "a" * 300 + "b" * 300 + "the end"}
    text = shown(round_table([row], "x"), width=2000)
    assert "[red]p[/] [2J" in text
    assert "\x1b" not in text
    assert "the end" in text
    assert "a … b" in text


def watched(tmp_path, **options) -> tuple[str, Path]:
    """What a run of three steps shows, and its directory."""
    screen = io.StringIO()
    trainer = make_online_trainer(tmp_path / "run", **options)
    trainer.round_report.console = Console(file=screen, width=160)
    trainer.train()
    return screen.getvalue(), tmp_path / "run"


def test_a_table_at_each_log_line_shows_the_rounds_first_answers(tmp_path):
    text, run_dir = watched(tmp_path, log_completions=True, num_completions_to_print=3)
    for step in (1, 2, 3):
        path = f"completions/step-{step:06d}.parquet"
        assert f"3 of 16 answers of the round of step {step}, all in {path}" in text
        rows = parquet.read_table(run_dir / path).to_pylist()
        for row in rows[:3]:
            assert f"{row['rewards/near_wanted']:.3g} │ {row['advantage']:+.3g}" in " ".join(text.split())
        assert text.count(rows[0]["prompt"]) >= 1
    assert text.count("of 16 answers") == 3


@pytest.mark.parametrize(
    ("options", "num_tables"),
    [({}, 0), ({"logging_steps": 2}, 1), ({"num_iterations": 3}, 1)],
    ids=["off", "log lines", "passes over a round"],
)
def test_a_round_is_shown_once_at_a_log_line(tmp_path, options, num_tables):
    text, _ = watched(tmp_path, log_completions=bool(options), **options)
    assert text.count("of 16 answers") == num_tables


def test_every_answer_of_a_round_is_in_the_run_directory(tmp_path):
    """Prompts, answers, rewards, advantages and notes of 16 answers, checked against the functions themselves."""
    seen = []

    def noted(completions, completion_ids, wanted, log_extra, **_):
        seen.append([answer[0]["content"] for answer in completions])
        log_extra("prompt", wanted)  # a name that is taken
        return [None if len(ids) % 2 else 0.5 for ids in completion_ids]

    options = {"reward_funcs": [near_wanted, noted], "reward_weights": [1.0, 2.0], "scale_rewards": "none"}
    _, run_dir = watched(tmp_path, max_steps=2, **options)
    for step, texts in enumerate(seen, 1):
        rows = parquet.read_table(run_dir / "completions" / f"step-{step:06d}.parquet").to_pylist()
        assert [row["completion"] for row in rows] == texts
        prompts = make_prompts()
        for start in range(0, 16, 4):
            group = rows[start : start + 4]
            (index,) = {row["row"] for row in group}
            assert {row["prompt"] for row in group} == {prompts[index]["prompt"][0]["content"]}
            assert {row["extra/prompt"] for row in group} == {str(prompts[index]["wanted"])}
            totals = [row["rewards/near_wanted"] + 2 * (row["rewards/noted"] or 0.0) for row in group]
            assert [row["reward"] for row in group] == pytest.approx(totals, abs=1e-6)
            expected = [total - sum(totals) / 4 for total in totals]
            assert [row["advantage"] for row in group] == pytest.approx(expected, abs=1e-5)
        assert {row["rewards/noted"] for row in rows} == {None, 0.5}
        assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    assert len(seen) == 2


def test_an_advantage_of_single_tokens_is_shown_as_their_mean(tmp_path):
    """A reward for the first token of an answer: its advantage is not that of the others, and padding is not counted."""

    def first_token(completion_ids, **_):
        return [[(0, 1, float(ids[0] % 3))] for ids in completion_ids]

    trainer = make_online_trainer(tmp_path, reward_funcs=first_token, advantage="token")
    batch = trainer._generate_and_score_completions(trainer._draw_prompts(4))
    lengths = batch.loss_mask.sum(1)
    assert batch.advantages.shape == batch.loss_mask.shape
    assert lengths.min() < lengths.max()
    for row, advantages, mask in zip(trainer.round_report.latest, batch.advantages, batch.loss_mask, strict=True):
        assert row["advantage"] == pytest.approx(advantages[mask].mean().item(), abs=1e-6)


# Self-checks while it runs.


def nothing(completions, **_):
    return [None] * len(completions)


def always_right(completions, **_):
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("code", "options", "told"),
    [
        ("no_rewards", {"reward_funcs": nothing}, "no reward function scored any answer of this round"),
        ("no_signal", {"reward_funcs": always_right}, "all answers have the same reward (mean 1)"),
        (
            "near_greedy",
            {"temperature": 0.01, "max_completion_length": 24, "min_new_tokens": 24},
            "sampling is nearly greedy, or the policy collapsed. Raise temperature",
        ),
    ],
    ids=["no_rewards", "no_signal", "near_greedy"],
)
def test_a_round_that_teaches_nothing_is_told_once_and_counted(tmp_path, caplog, code, options, told):
    """The warning is shown at the first round, and is an event of both."""
    with caplog.at_level(logging.WARNING):
        _, run_dir = watched(tmp_path, max_steps=2, **options)
    messages = [record.getMessage() for record in caplog.records if told in record.getMessage()]
    assert [message.partition(": ")[0] for message in messages] == ["step 1"]
    alarms = [event for event in read_events(run_dir / "events.jsonl") if event["kind"] == "alarm"]
    assert [event["step"] for event in alarms if event["code"] == code] == [1, 2]
    assert next(event["message"] for event in alarms if event["code"] == code) == messages[0]


def test_a_healthy_run_raises_no_alarm(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        _, run_dir = watched(tmp_path, max_steps=2)
    assert not [event for event in read_events(run_dir / "events.jsonl") if event["kind"] == "alarm"]
    assert not caplog.records
    engines = [event["message"] for event in read_events(run_dir / "events.jsonl") if event["kind"] == "engine"]
    assert engines == [f"answers are decoded with cache rows: {PlacedRows.sentence}"]


def test_a_cache_of_ones_own_choice(tmp_path):
    _, run_dir = watched(tmp_path, max_steps=1, generation_cache="dynamic")
    engines = [event["message"] for event in read_events(run_dir / "events.jsonl") if event["kind"] == "engine"]
    assert engines == [f"answers are decoded with cache dynamic: {GrowingRows.sentence}"]
    with pytest.raises(ValueError, match="generation_cache='static'; allowed: auto, shared, rows, dynamic"):
        watched(tmp_path, generation_cache="static")
