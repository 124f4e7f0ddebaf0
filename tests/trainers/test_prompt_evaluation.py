"""Evaluation on held-out prompts: the policy's answers, greedy and sampled, and what is counted of them."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from online_training import make_online_trainer, make_prompts

from burnish.generation.base import Prompt
from burnish.runtime.rundir import read_events
from burnish.trainers.prompt_evaluation import EVALUATION_ROUND, final_answer
from burnish.types import Completion

HELD_OUT = make_prompts(5)
IGNORED = ("runtime", "per_second")


def kept(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if not any(word in name for word in IGNORED)}


class Scripted:
    """Answers from a table: for each prompt its greedy answer, and its sampled ones."""

    def __init__(self, greedy: list[str], sampled: list[list[str]]):
        self.greedy, self.sampled = greedy, sampled

    def update_policy(self, model, *, version):
        self.version = version

    def generate(self, prompts, params, *, num_samples, seed, round_index):
        assert round_index == EVALUATION_ROUND
        answers = []
        for prompt in prompts:
            texts = [self.greedy[prompt.key]] if params.is_greedy else self.sampled[prompt.key]
            assert len(texts) == num_samples
            answers += [self._completion(prompt, text) for text in texts]
        return answers

    def _completion(self, prompt: Prompt, text: str) -> Completion:
        from conftest import make_tokenizer

        ids = torch.tensor(make_tokenizer()(text)["input_ids"])
        return Completion(
            prompt_ids=prompt.ids,
            token_ids=ids,
            logps=torch.full(ids.shape, -1.0),
            kept_mass=torch.ones(ids.shape),
            loss_mask=torch.ones(ids.shape, dtype=torch.bool),
            finish_reason="length" if text.endswith("…") else "stop",
        )


def is_wanted(completions, wanted, **_):
    """1 if the answer has the number, 0 if not, None if it says nothing."""
    texts = [completion[0]["content"] for completion in completions]
    return [None if not text else float(str(number) in text) for text, number in zip(texts, wanted, strict=True)]


GREEDY = ["1", "2", "7", "", "5"]  # right answers are 1, 2, 3, 4, 5
SAMPLED = [
    ["1", "1", "it is 1", "9"],  # 3 of 4, and the majority
    ["2", "8", "8", "7"],  # 1 of 4, the majority says 8
    ["9", "8", "7", "6"],  # none; no majority, the first one counts
    ["4", "", "4", "9"],  # 2 of 4, one unscored
    ["5", "6", "6", "5…"],  # 2 of 4, a tie of two: the first one given is right
]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_numbers_by_hand(tmp_path, size):
    """Whatever the lots: greedy 3 of 5 right; sampled 8 of 20; maj@4 on prompts 0, 3 and 4."""
    trainer = make_online_trainer(
        tmp_path,
        reward_funcs=is_wanted,
        generator=Scripted(GREEDY, SAMPLED),
        eval_dataset=HELD_OUT,
        per_device_eval_batch_size=size,
    )
    metrics = trainer.evaluate()
    expected = {
        "accuracy_greedy": 3 / 5,
        "reward_greedy": 3 / 4,  # the answer that says nothing is not scored
        "accuracy": 8 / 20,
        "reward": (3 / 4 + 1 / 4 + 0 + 2 / 3 + 2 / 4) / 5,
        "rewards/is_wanted/mean": 8 / 19,
        "pass@2": (1 + 1 / 2 + 0 + 5 / 6 + 5 / 6) / 5,
        "pass@4": 4 / 5,
        "maj@4": 3 / 5,
        "completions/clipped_ratio": 1 / 20,
        "frac_unscored": 1 / 20,
    }
    for name, value in expected.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, abs=1e-6), name
    assert "eval_pass@1" not in metrics


def test_intervals_are_those_of_prompts(tmp_path):
    """Answers to one prompt are not independent: five prompts, not twenty answers, carry the standard error."""
    trainer = make_online_trainer(
        tmp_path, reward_funcs=is_wanted, generator=Scripted(GREEDY, SAMPLED), eval_dataset=HELD_OUT
    )
    trainer.evaluate()
    rates = torch.tensor([3 / 4, 1 / 4, 0, 2 / 4, 2 / 4], dtype=torch.float64)
    estimate = trainer.estimates["eval_accuracy"]
    assert estimate.weight == 5
    assert estimate.mean == pytest.approx(0.4)
    assert estimate.standard_error == pytest.approx(float(rates.std()) / math.sqrt(5), rel=1e-9)
    greedy = trainer.estimates["eval_accuracy_greedy"]
    assert greedy.standard_error == pytest.approx(math.sqrt(0.6 * 0.4 / 4), rel=1e-9)


def test_a_reward_that_fails_on_held_out_answers_is_told(tmp_path):
    """Such answers count as wrong, and nobody would know why."""

    def fails(completions, solution):
        return [float(answer == right) for answer, right in zip(completions, solution, strict=True) if 1 / len(right)]

    trainer = make_online_trainer(
        tmp_path / "run",
        reward_funcs=fails,
        rows=[{**row, "solution": "4"} for row in make_prompts()],
        eval_dataset=[{**row, "solution": ""} for row in HELD_OUT],
        on_reward_error="unscored",
        eval_strategy="steps",
        eval_steps=1,
        max_steps=1,
    )
    trainer.train()
    (line,) = [line for line in trainer.state.log_history if "eval_accuracy" in line]
    assert (line["eval_accuracy"], line["eval_frac_unscored"]) == (0, 1)
    failed = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["kind"] == "reward_failed"]
    assert [event["num_answers"] for event in failed] == [5, 20]
    assert all("fails raised ZeroDivisionError" in event["message"] for event in failed)


def test_the_same_numbers_twice(tmp_path):
    """What changes between two evaluations is the policy alone."""
    trainer = make_online_trainer(tmp_path, eval_dataset=HELD_OUT, max_steps=2, solved_reward=0.8, learning_rate=1e-2)
    first = kept(trainer.evaluate())
    assert kept(trainer.evaluate()) == first
    trainer.train()
    after = kept(trainer.evaluate())
    assert after.keys() >= first.keys()
    assert after["eval_reward"] != first["eval_reward"]
    assert 0 < first["eval_accuracy"] < 1


def test_evaluation_leaves_the_training_alone(tmp_path):
    """Weights after three steps are bit for bit the same with an evaluation before each."""
    plain = make_online_trainer(tmp_path / "1", dtype=torch.float32)
    watched = make_online_trainer(
        tmp_path / "2",
        dtype=torch.float32,
        eval_dataset=HELD_OUT,
        eval_strategy="steps",
        eval_steps=1,
        eval_on_start=True,
    )
    plain.train()
    watched.train()
    mine, theirs = watched.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    evaluations = [line for line in watched.state.log_history if "eval_reward" in line]
    assert [line["step"] for line in evaluations] == [0, 1, 2, 3]


def test_only_greedy_and_only_sampled(tmp_path):
    greedy = make_online_trainer(tmp_path / "1", eval_dataset=HELD_OUT, num_generations_eval=0).evaluate()
    sampled = make_online_trainer(
        tmp_path / "2", eval_dataset=HELD_OUT, eval_greedy=False, num_generations_eval=1
    ).evaluate()
    assert {"eval_accuracy_greedy", "eval_reward_greedy"} <= greedy.keys()
    assert "eval_accuracy" not in greedy
    assert "eval_accuracy" in sampled
    assert "eval_accuracy_greedy" not in sampled
    assert not any("@" in name for name in sampled)


def test_a_temperature_of_its_own(tmp_path):
    """A low temperature is nearly greedy: its accuracy and reward are those of the greedy answers."""
    options = {"eval_dataset": HELD_OUT, "eval_temperature": 1e-3, "num_generations_eval": 2}
    metrics = make_online_trainer(tmp_path, **options).evaluate()
    assert metrics["eval_reward"] == pytest.approx(metrics["eval_reward_greedy"], abs=1e-6)


def test_several_sets_each_under_its_name(tmp_path):
    trainer = make_online_trainer(tmp_path, eval_dataset={"near": HELD_OUT[:2], "far": HELD_OUT[2:]}, max_steps=1)
    metrics = trainer.evaluate()
    assert {"eval_near_reward", "eval_far_reward"} <= metrics.keys()
    assert set(trainer.data_reports) >= {"train"}


def test_rows_that_are_not_prepared_yet(tmp_path):
    from datasets import Dataset

    trainer = make_online_trainer(tmp_path, eval_dataset=HELD_OUT)
    assert kept(trainer.evaluate(Dataset.from_list(HELD_OUT))) == kept(trainer.evaluate())


def test_evaluation_needs_prompts(tmp_path):
    with pytest.raises(ValueError, match="evaluation needs eval_dataset: give one"):
        make_online_trainer(tmp_path).evaluate()


@pytest.mark.parametrize(
    ("answer", "final"),
    [
        ("So it is 7.", "7"),
        ("3 + 4 = 7", "7"),
        ("7.0", "7"),
        (" Yes \n", "yes"),
        ([{"role": "assistant", "content": "It is  Blue"}], "it is blue"),
        ("", ""),
    ],
)
def test_what_an_answer_comes_to(answer, final):
    assert final_answer(answer) == final
