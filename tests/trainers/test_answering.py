"""Answers and win rates at the evaluations of real, tiny runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pyarrow import parquet

from burnish import DPOConfig, DPOTrainer
from burnish.runtime.rundir import read_events, read_metrics
from burnish.trainers.judging import JudgeError
from burnish.trainers.sampling import preferred_ids
from conftest import make_model, make_rows, make_tokenizer
from ranks import launch

pytestmark = pytest.mark.gallery  # a gallery: make test has one of each kind elsewhere


def make_trainer(
    path, *, rows=None, eval_rows=None, ref_model=None, model=None, peft_config=None, **options
) -> DPOTrainer:
    settings = {
        "output_dir": str(path),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "cpu_tuning": "off",
        "generate_during_eval": True,
        "num_eval_samples": 5,
        "eval_max_new_tokens": 8,
        "seed": 5,
    }
    return DPOTrainer(
        model or make_model(),
        args=DPOConfig(**{**settings, **options}),
        ref_model=ref_model,
        train_dataset=make_rows(12) if rows is None else rows,
        eval_dataset=make_rows(9) if eval_rows is None else eval_rows,
        processing_class=make_tokenizer(),
        peft_config=peft_config,
    )


def longer(prompts, first, second):
    return [0.5 if len(a) == len(b) else len(a) > len(b) for a, b in zip(first, second, strict=True)]


def events(path: Path, kind: str = "answers") -> list[dict]:
    return [event for event in read_events(path / "events.jsonl") if event["kind"] == kind]


def greedy(model, tokenizer, prompt: str, num_tokens: int) -> str:
    """A loop of argmax over the model's own logits."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    for _ in range(num_tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_answers_are_the_policys_own_and_are_kept(tmp_path):
    trainer = make_trainer(tmp_path / "run", num_eval_samples=3)
    trainer.train()
    found = trainer.eval_answers["eval"]
    assert (found.step, found.against, found.win_rate) == (2, None, None)
    assert len(found.answers) == 3
    model, tokenizer = trainer.model.eval(), trainer.tokenizer
    for answer in found.answers:
        prompt = tokenizer.apply_chat_template(
            make_rows(9)[answer.row_id]["prompt"], add_generation_prompt=True, tokenize=False
        )
        assert answer.completion == greedy(model, tokenizer, prompt, 8)
        assert answer.prompt == tokenizer.decode(tokenizer(prompt)["input_ids"], skip_special_tokens=True)
    tables = sorted(path.name for path in (tmp_path / "run" / "completions").iterdir())
    assert tables == ["step-000001-eval.parquet", "step-000002-eval.parquet"]
    rows = parquet.read_table(tmp_path / "run" / "completions" / tables[1]).to_pylist()
    assert [row["completion"] for row in rows] == [answer.completion for answer in found.answers]
    assert [event["path"] for event in events(tmp_path / "run")] == [f"completions/{name}" for name in tables]
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval_loss" in line]
    assert lines[1]["eval_completions/mean_length"] == sum(a.num_tokens for a in found.answers) / 3
    assert lines[1]["eval_completions/clipped_ratio"] == pytest.approx(sum(a.is_cut for a in found.answers) / 3)
    assert "eval_win_rate" not in lines[1]


def test_a_policy_that_is_its_own_reference_ties(tmp_path):
    """Greedy and sampled: both draw with the same random numbers, so that the answers are equal."""

    def never(prompts, first, second):
        raise AssertionError

    for temperature in (0.0, 1.0):
        trainer = make_trainer(tmp_path / str(temperature), judge=never, eval_temperature=temperature)
        metrics = trainer.evaluate()
        assert metrics["eval_win_rate"] == 0.5
        assert trainer.estimates["eval_win_rate"].weight == 5
        assert all(answer.score == 0.5 for answer in trainer.eval_answers["eval"].answers)


def test_win_rate_against_another_reference(tmp_path):
    """Counted by hand from the answers; Wilson's interval of 5."""
    from burnish.intervals import wilson

    trainer = make_trainer(tmp_path / "run", ref_model=make_model(3), judge=longer)
    metrics = trainer.evaluate()
    answers = trainer.eval_answers["eval"].answers
    reference, tokenizer = make_model(3), trainer.tokenizer
    scores = []
    for answer in answers:
        prompt = tokenizer.apply_chat_template(
            make_rows(9)[answer.row_id]["prompt"], add_generation_prompt=True, tokenize=False
        )
        assert answer.compared_with == greedy(reference, tokenizer, prompt, 8)
        mine, other = len(answer.completion), len(answer.compared_with)
        scores.append(0.5 if mine == other else float(mine > other))
    assert [answer.score for answer in answers] == scores
    assert len(set(scores)) > 1
    assert metrics["eval_win_rate"] == pytest.approx(sum(scores) / 5)
    interval = wilson(sum(scores) / 5, 5)
    assert metrics["eval_win_rate/low"] == pytest.approx(interval.low)
    assert metrics["eval_win_rate/high"] == pytest.approx(interval.high)


def test_an_adapted_policy_against_its_base(tmp_path):
    """Before training both are one; afterwards the reference still answers as the base, and the adapter is on again."""
    options = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": True}
    trainer = make_trainer(tmp_path / "run", judge=longer, peft_config=options, learning_rate=0.1)
    assert trainer.evaluate()["eval_win_rate"] == 0.5
    trainer.train()
    found = trainer.eval_answers["eval"]
    assert found.against == "the reference (the policy with its adapter switched off)"
    base, tokenizer = make_model(), trainer.tokenizer
    for answer in found.answers:
        prompt = tokenizer.apply_chat_template(
            make_rows(9)[answer.row_id]["prompt"], add_generation_prompt=True, tokenize=False
        )
        assert answer.compared_with == greedy(base, tokenizer, prompt, 8)
        assert answer.completion == greedy(trainer.model.eval(), tokenizer, prompt, 8)
    assert any(answer.completion != answer.compared_with for answer in found.answers)
    trainer.save_model()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "library_name: peft" in card
    assert "An adapter for a model in memory" in card
    assert "adapter default: LoRA; r 4" in card
    assert "from peft import AutoPeftModelForCausalLM" in card


def test_a_frozen_reference_answers_once_and_a_moving_one_each_time(tmp_path):
    for name, options, calls in [
        ("frozen", {}, [5]),
        ("moving", {"sync_ref_model": True, "ref_model_sync_steps": 1}, [5, 5]),
    ]:
        trainer = make_trainer(tmp_path / name, judge=longer, **options)
        asked: list[int] = []
        own = trainer._answer

        def counting(model, rows, trainer=trainer, asked=asked, own=own):
            if model is trainer.reference.model:
                asked.append(len(rows))
            return own(model, rows)

        trainer._answer = counting
        trainer.train()
        assert [count for count in asked if count] == calls, name


def test_other_prompts_under_the_same_name_are_answered_anew(tmp_path):
    """The reference's answers are kept by prompt, not by the number of a row."""
    trainer = make_trainer(tmp_path / "run", ref_model=make_model(3), judge=longer)
    trainer.evaluate()
    first = {answer.row_id: answer for answer in trainer.eval_answers["eval"].answers}
    rows = [{**row, "prompt": [{"role": "user", "content": f"Another one, {i}"}]} for i, row in enumerate(make_rows(9))]
    trainer.evaluate(trainer._prepare_dataset(rows, "other"))
    second = trainer.eval_answers["eval"].answers
    assert any(a.row_id in first and first[a.row_id].compared_with != a.compared_with for a in second)


def test_a_reference_of_numbers_gives_way_to_the_chosen_answers(tmp_path):
    def columns(rows):
        return [{**row, "ref_chosen_logps": -5.0, "ref_rejected_logps": -6.0} for row in rows]

    rows, held_out = columns(make_rows(12)), columns(make_rows(9))
    trainer = make_trainer(tmp_path / "run", rows=rows, eval_rows=held_out, judge=longer)
    trainer.train()
    found = trainer.eval_answers["eval"]
    assert found.against.startswith("the chosen answers of the data set (reference: columns")
    for answer in found.answers:
        assert answer.compared_with == held_out[answer.row_id]["chosen"][0]["content"]
    assert events(tmp_path / "run")[-1]["against"] == found.against
    trainer.save_model()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "Win rate: against the chosen answers of the data set" in card
    assert "| `eval_win_rate` | " in card


def test_what_a_judge_cannot_tell_is_left_out_and_counted(tmp_path):
    def undecided(prompts, first, second):
        return [None, *[1.0] * (len(prompts) - 1)]

    trainer = make_trainer(tmp_path / "run", ref_model=make_model(3), judge=undecided, max_steps=1)
    trainer.train()
    assert trainer.estimates["eval_win_rate"].weight == 4
    (event,) = events(tmp_path / "run")
    assert event["num_unjudged"] == 1
    assert "1 not judged" in event["message"]
    trainer.judge = type(trainer.judge)(lambda prompts, *_: [None] * len(prompts), "nobody")
    assert "eval_win_rate" not in trainer.evaluate()


def test_several_data_sets_have_answers_of_their_own(tmp_path):
    trainer = make_trainer(tmp_path / "run", eval_rows={"a": make_rows(3), "b": make_rows(7)}, max_steps=1)
    trainer.train()
    assert {name: len(found.answers) for name, found in trainer.eval_answers.items()} == {"eval_a": 3, "eval_b": 5}
    tables = sorted(path.name for path in (tmp_path / "run" / "completions").iterdir())
    assert tables == ["step-000001-eval_a.parquet", "step-000001-eval_b.parquet"]


def test_a_judge_that_fails_ends_the_run_with_its_row(tmp_path):
    trainer = make_trainer(tmp_path / "run", ref_model=make_model(3), judge=lambda *_: [1])
    with pytest.raises(JudgeError, match="returned 1 verdicts on 5 prompts"):
        trainer.train()


def test_training_is_the_same_with_and_without_answers(tmp_path):
    losses = []
    for wanted in (False, True):
        options = {"judge": longer} if wanted else {"num_eval_samples": 32, "eval_max_new_tokens": 128}
        sampled = {"eval_temperature": 1.0} if wanted else {}
        trainer = make_trainer(tmp_path / str(wanted), generate_during_eval=wanted, **options, **sampled)
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "grad_norm" in line])
    assert losses[0] == losses[1]


def test_what_cannot_be_answered_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="there is none: pass one"):
        DPOTrainer(
            make_model(),
            args=DPOConfig(output_dir=str(tmp_path), generate_during_eval=True, report_to="none"),
            train_dataset=make_rows(4),
            processing_class=make_tokenizer(),
        )
    with pytest.raises(ValueError, match="has no 'nothing'"):
        make_trainer(tmp_path, judge="json:nothing")


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"chosen_input_ids": [1], "rejected_input_ids": [2]}, [1]),
        ({"chosen_input_ids": [1], "rejected_input_ids": [2], "tie": True}, [1]),
        ({"completion_input_ids": [[1], [2], [3]], "ranks": [2, 3, 1]}, [3]),
        ({"completion_input_ids": [[1], [2], [3]], "scores": [0.1, 0.9, 0.9]}, [2]),
    ],
)
def test_the_preferred_answer_of_a_row(row, answer):
    assert preferred_ids(row) == answer


@pytest.mark.slow
def test_two_processes_answer_and_judge_as_one(tmp_path):
    """5 prompts: three on the first, two on the second; and 1: none on the second."""
    script = Path(__file__).with_name("sampling_two_processes.py")
    for count in (5, 1):
        results = []
        for processes in (1, 2):
            output = tmp_path / f"{count}-{processes}"
            output.mkdir()
            done = launch(processes, script, output, 4 // processes, count)
            assert done.returncode == 0, done.stderr[-3000:]
            rows = parquet.read_table(output / "run" / "completions" / "step-000002-eval.parquet").to_pylist()
            results.append((json.loads((output / "metrics.json").read_text()), rows))
        assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
        assert results[0][1] == results[1][1]
        assert len(results[0][1]) == count
