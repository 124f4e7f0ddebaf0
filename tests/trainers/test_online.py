"""Rounds in a run: rewards that fail, groups without signal, input that cannot be trained on, other generators."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from online_training import (
    END_TOKENS,
    ending_model,
    make_online_trainer,
    make_prompts,
    near_wanted,
    some_flat,
    step_lines,
)
from training import relative_distance, step_gradients

from burnish import OnlineConfig, OnlineTrainer, forward
from burnish.compat import UNBUILT_GRPO_ARGUMENTS
from burnish.generation.native import NativeGenerator
from burnish.rewards import RewardError
from burnish.rollout.collect import make_answers
from burnish.runtime.rundir import read_events
from burnish.trainers.grpo import GRPOConfig, GRPOTrainer
from burnish.types import Completion, LossOutput
from conftest import make_model, make_tokenizer


def events_in(directory: Path, kind: str) -> list[dict]:
    return [event for event in read_events(directory / "events.jsonl") if event["kind"] == kind]


def weights_of(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def parcels_of(trainer) -> list:
    """The parcels of each optimizer step of the training to come."""
    taken = []
    own = trainer.take_parcels
    trainer.take_parcels = lambda *arguments: taken.append(own(*arguments)) or taken[-1]
    return taken


def drawn_by(trainer) -> list:
    """The prompts of the training to come, in their order."""
    drawn = []
    own = trainer._draw_prompts

    def draw(count):
        rows = own(count)
        drawn.extend(rows)
        return rows

    trainer._draw_prompts = draw
    return drawn


def test_of_a_data_set_of_splits_train_is_drawn_from_and_each_is_evaluated(tmp_path):
    rows = Dataset.from_list(make_prompts(6))
    splits = DatasetDict({"train": rows.select(range(4)), "test": rows.select(range(4, 6))})
    trainer = make_online_trainer(tmp_path / "run", rows=splits, eval_dataset=splits)
    assert len(trainer.prompts) == 4
    assert {name: len(part) for name, part in trainer.eval_dataset.items()} == {"train": 4, "test": 2}


# Rewards.


def test_all_none_is_no_gradient_and_no_nan(tmp_path):
    """Nothing is scored: the weights stay bit for bit what they are, and the run says why."""
    trainer = make_online_trainer(
        tmp_path / "run", reward_funcs=lambda completions, **_: [None] * len(completions), max_steps=2
    )
    before = weights_of(trainer)
    trainer.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(trainer).items())
    for line in step_lines(trainer):
        assert line["frac_unscored"] == line["frac_reward_zero_std"] == line["reward_unscored/lambda"] == 1
        assert line["frac_rows_with_gradient"] == line["loss"] == line["grad_norm"] == 0
        assert "reward" not in line
        assert not any(math.isnan(value) for value in line.values())
    codes = [event["code"] for event in events_in(tmp_path / "run", "alarm")]
    assert codes == ["no_rewards", "no_rewards"]


def some_none(completion_ids, wanted, **_):
    """`near_wanted`, and None for answers of an even number of tokens."""
    scores = near_wanted(completion_ids, wanted)
    return [None if len(ids) % 2 == 0 else score for ids, score in zip(completion_ids, scores, strict=True)]


def test_an_answer_without_a_score_is_in_no_baseline(tmp_path):
    """Its advantage is 0, the others' are those of the group without it."""
    trainer = make_online_trainer(tmp_path, reward_funcs=some_none, max_steps=1, scale_rewards="none")
    rows = trainer._draw_prompts(4)
    batch = trainer._generate_and_score_completions(rows)
    for group in range(4):
        mine = range(4 * group, 4 * group + 4)
        ids = [batch.completion_ids[row][batch.completion_mask[row]].tolist() for row in mine]
        scores = some_none(ids, [rows[group].columns["wanted"]] * 4)
        known = [score for score in scores if score is not None]
        expected = [0.0 if score is None else score - sum(known) / len(known) for score in scores]
        assert batch.advantages[4 * group : 4 * group + 4, 0].tolist() == pytest.approx(expected, abs=1e-6)


def broken(completion_ids, wanted, **_):
    raise KeyError("solution")


def test_a_reward_that_raises_ends_the_run_and_names_everything(tmp_path):
    trainer = make_online_trainer(tmp_path, reward_funcs=[near_wanted, broken])
    with pytest.raises(RewardError) as raised:
        trainer.train()
    message = str(raised.value)
    assert "the reward 'broken' raised KeyError" in message
    assert "prompt: 'Say " in message
    assert "on_reward_error='unscored'" in message
    assert len(message.splitlines()) <= 12


def test_a_reward_that_raises_leaves_its_answers_unscored_if_told_to(tmp_path):
    """The other function's rewards are trained on as if the broken one were not there, and all of it is counted."""
    options = {"max_steps": 2, "on_reward_error": "unscored"}
    trainer = make_online_trainer(tmp_path / "run", reward_funcs=[near_wanted, broken], **options)
    gradients = step_gradients(trainer)
    alone = step_gradients(make_online_trainer(tmp_path / "alone", max_steps=2))
    assert all(relative_distance(mine, other) < 1e-6 for mine, other in zip(gradients, alone, strict=True))
    for line in step_lines(trainer):
        assert line["reward_errors/broken"] == 1
        assert line["reward_errors/near_wanted"] == line["frac_unscored"] == 0
        assert "rewards/broken/mean" not in line
    failures = events_in(tmp_path / "run", "reward_failed")
    assert [(event["reward"], event["num_answers"]) for event in failures] == [("broken", 16)] * 2
    assert "KeyError" in failures[0]["problem"]


def test_several_rewards_are_weighted(tmp_path):
    def tokens(completion_ids, **_):
        return [len(ids) / 8 for ids in completion_ids]

    trainer = make_online_trainer(tmp_path, reward_funcs=[near_wanted, tokens], reward_weights=[1.0, -2.0], max_steps=1)
    trainer.train()
    line = step_lines(trainer)[0]
    expected = line["rewards/near_wanted/mean"] - 2 * line["rewards/tokens/mean"]
    assert line["reward"] == pytest.approx(expected, abs=1e-6)
    assert line["rewards/tokens/mean"] == pytest.approx(line["completions/mean_length"] / 8, abs=1e-6)


def test_rewards_see_columns_state_and_notes(tmp_path):
    seen = []

    def watcher(prompts, completions, completion_ids, wanted, trainer_state, log_metric, log_extra):
        seen.append((trainer_state.global_step, prompts[0], wanted[:5], completions[0][0]["role"]))
        log_metric("own/metric", 2.5)
        log_extra("first_token", [ids[0] for ids in completion_ids])
        return near_wanted(completion_ids, wanted)

    trainer = make_online_trainer(tmp_path, reward_funcs=watcher, max_steps=2, shuffle_dataset=False)
    taken = parcels_of(trainer)
    trainer.train()
    assert seen == [
        (0, make_prompts()[0]["prompt"], [1, 1, 1, 1, 2], "assistant"),
        (1, make_prompts()[4]["prompt"], [5, 5, 5, 5, 1], "assistant"),
    ]
    assert all(line["own/metric"] == 2.5 for line in step_lines(trainer))
    (batch,) = taken[-1]
    shown = [row["extra/first_token"] for row in trainer.round_report.latest]
    assert shown == [str(token) for token in batch.completion_ids[:, 0].tolist()]


def test_dynamic_sampling_replaces_groups_without_signal(tmp_path):
    """Three of five prompts are without signal: with it, every group of every round carries some."""
    plain = make_online_trainer(tmp_path / "1", reward_funcs=some_flat)
    plain.train()
    assert max(line["frac_reward_zero_std"] for line in step_lines(plain)) >= 0.5
    trainer = make_online_trainer(
        tmp_path / "2", reward_funcs=some_flat, dynamic_sampling=True, dynamic_sampling_attempts=12
    )
    taken = parcels_of(trainer)
    trainer.train()
    assert all(line["frac_reward_zero_std"] == 0 for line in step_lines(trainer))
    assert sum(line["dynamic_sampling/replaced_groups"] for line in step_lines(trainer)) >= 3
    assert [len(parcel) for (parcel,) in taken] == [16] * 3
    wanted = {make_prompts()[row]["wanted"] for (parcel,) in taken for row in parcel.row_id.tolist()}
    assert wanted == {1, 2}


def flat_longest(completion_ids, prompts, **_):
    """A span for each answer; those to the prompt with the longest answer are all worth the same."""
    longest: dict[str, int] = {}
    for ids, prompt in zip(completion_ids, map(str, prompts), strict=True):
        longest[prompt] = max(longest.get(prompt, 0), len(ids))
    flat = max(longest, key=lambda prompt: longest[prompt]) if len(longest) > 1 else None
    pairs = zip(completion_ids, map(str, prompts), strict=True)
    return [[(0, 1, 0.5 if prompt == flat else float(ids[0] % 7))] for ids, prompt in pairs]


@pytest.mark.parametrize(
    "options", [{"advantage": "turn"}, {"beta": 0.1, "ref_seed": 1, "use_kl_in_reward": True}], ids=str
)
def test_the_longest_answers_are_replaced_with_their_rewards_of_tokens(tmp_path, options):
    """What is left of the round is narrower than what was scored."""
    options = {"dynamic_sampling": True, "max_completion_length": 40, "max_steps": 2, **options}
    trainer = make_online_trainer(tmp_path, reward_funcs=flat_longest, **options)
    trainer.train()
    for line in step_lines(trainer):
        assert line["dynamic_sampling/replaced_groups"] == 1
        assert line["frac_rows_with_gradient"] > 0.5


def test_rewards_are_where_the_answers_are(tmp_path, monkeypatch):
    """On the CPU, whatever the policy is on: groups are chosen and penalties are taken off there."""
    trainer = make_online_trainer(tmp_path)
    rows = trainer._draw_prompts(4)
    answers = make_answers(rows, trainer._generate(rows), trainer.tokenizer)
    monkeypatch.setattr(GRPOConfig, "device", torch.device("meta"))
    table = trainer._calculate_rewards(answers, 8)
    assert (table.rewards.device.type, table.weights.device.type) == ("cpu", "cpu")
    assert trainer.metric_buffer.state()["reward_errors/near_wanted"].device.type == "meta"


def test_a_curriculum_leaves_out_what_is_always_solved(tmp_path):
    """Prompts that want 3 or more are solved always, so that after one visit only the others are drawn."""

    def easy(completion_ids, wanted, **_):
        return [1.0 if number >= 3 else float(len(ids) % 2) for ids, number in zip(completion_ids, wanted, strict=True)]

    trainer = make_online_trainer(
        tmp_path, reward_funcs=easy, max_steps=6, curriculum_window=[0.0, 0.9], shuffle_dataset=False
    )
    drawn = drawn_by(trainer)
    trainer.train()
    wanted = [row.columns["wanted"] for row in drawn]
    assert wanted[:12] == [1, 2, 3, 4, 5] * 2 + [1, 2]
    assert set(wanted[12:]) == {1, 2}
    assert trainer.prompt_stream.num_left_out > 0


def test_a_curriculum_learns_of_the_rows_that_it_drew(tmp_path):
    """Two rows are dropped, so that the places of rows are not their numbers: prompts that want 1 are never solved."""

    def hard(completion_ids, wanted, **_):
        return [0.0 if number == 1 else float(len(ids) % 2) for ids, number in zip(completion_ids, wanted, strict=True)]

    rows = [{"prompt": None, "wanted": 1}] * 2 + make_prompts(8)
    options = {"curriculum_window": [0.1, 1.0], "shuffle_dataset": False, "on_bad_row": "drop", "max_steps": 4}
    trainer = make_online_trainer(tmp_path, rows=rows, reward_funcs=hard, **options)
    drawn = drawn_by(trainer)
    trainer.train()
    wanted = [row.columns["wanted"] for row in drawn]
    assert wanted[:8] == [1, 2, 3, 4, 5, 1, 2, 3]
    assert 1 not in wanted[8:]


def test_a_prompt_that_comes_twice_in_a_round_has_other_answers(tmp_path):
    """Four prompts a round of a data set of three: the round goes on with the next epoch."""
    trainer = make_online_trainer(tmp_path, rows=make_prompts(3))
    batch = trainer._generate_and_score_completions(trainer._draw_prompts(4))
    groups = {}
    for row, ids, mask in zip(batch.row_id.tolist(), batch.completion_ids, batch.completion_mask, strict=True):
        groups.setdefault(row, []).append(tuple(ids[mask].tolist()))
    (twice,) = [answers for answers in groups.values() if len(answers) == 8]
    assert set(twice[:4]) != set(twice[4:])
    assert len(set(twice)) > 5


# Bad input.


def refused(tmp_path, error=ValueError, *, model="no/such-model", rewards=near_wanted, rows=None, **options) -> str:
    """The message; the model is a name that cannot be loaded, so that it is known before one is."""
    settings = {"output_dir": str(tmp_path), "per_device_train_batch_size": 8, "num_generations": 4, **options}
    with pytest.raises(error) as raised:
        GRPOTrainer(
            model,
            rewards,
            GRPOConfig(**settings),
            train_dataset=make_prompts() if rows is None else rows,
            processing_class=make_tokenizer(),
        )
    message = str(raised.value)
    assert len(message.splitlines()) <= 12
    return message


def test_an_empty_data_set(tmp_path):
    assert "the data set has no rows" in refused(tmp_path, rows=Dataset.from_dict({"prompt": []}))
    assert "the list of rows is empty" in refused(tmp_path, rows=[])


def test_no_reward(tmp_path):
    assert "reward_funcs is empty" in refused(tmp_path, rewards=[])
    assert "reward_funcs is empty" in refused(tmp_path, rewards=None)


def test_a_reward_list_of_the_wrong_length(tmp_path):
    message = refused(tmp_path, rewards=[near_wanted, some_none], reward_weights=[1.0])
    assert "reward_weights has 1 numbers for the 2 rewards ['near_wanted', 'some_none']" in message


def test_a_column_with_the_name_of_an_argument(tmp_path):
    message = refused(tmp_path, rows=[{**row, "completions": "x"} for row in make_prompts()])
    assert "the column 'completions' has the name of an argument" in message


def test_a_column_that_a_reward_needs(tmp_path):
    def graded(completions, solution):
        return [float(text == right) for text, right in zip(completions, solution, strict=True)]

    message = refused(tmp_path, rewards=graded)
    assert "the reward 'graded' needs the column 'solution'" in message
    assert "reward_options" in message


def test_a_column_that_prepared_rows_have_of_their_own(tmp_path):
    """Reward functions are not given `row_id`: one that needs it is refused before anything is generated."""

    def numbered(completions, row_id):
        return [float(number) for number in row_id]

    message = refused(tmp_path, rows=[{**row, "row_id": 7} for row in make_prompts()], rewards=numbered)
    assert "the reward 'numbered' needs the column 'row_id', and the data set has ['wanted']" in message


def test_a_column_that_only_the_held_out_rows_lack(tmp_path):
    with pytest.raises(ValueError, match="needs the column 'wanted'"):
        make_online_trainer(tmp_path, eval_dataset=[{"prompt": "a"}], reward_funcs=needs_wanted)


def needs_wanted(completions, wanted):
    return [0.0] * len(completions)


def squared_gap(old_logps, sampler_logps, mask):
    return (old_logps - sampler_logps) ** 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_generations": 1}, "num_generations=1; allowed: 2 or more"),
        ({"num_generations": 3}, "no whole number of groups of num_generations=3"),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, "no whole number of optimizer steps"),
        ({"use_vllm": True}, "use_vllm=True is an option of TRL that Burnish has not built yet"),
        ({"loss_type": "gpro"}, "unknown policy loss 'gpro', did you mean 'gspo' or 'grpo' or 'gmpo'?"),
        ({"advantage": "rlo"}, "unknown advantage 'rlo', did you mean 'rloo'"),
        ({"kl_estimator": "k4", "beta": 0.1}, "unknown KL estimator 'k4'"),
        ({"loss_type": "cispo", "delta": 2.0}, "delta=2.0 is set, but the policy loss ['cispo'] does not read it"),
        ({"beta": -0.1}, "beta=-0.1; allowed: 0 or more"),
        ({"max_prompt_length": 0}, "max_prompt_length=0; allowed: whole numbers from 1"),
        ({"max_prompt_length": -3}, "max_prompt_length=-3; allowed: whole numbers from 1"),
        ({"use_kl_in_reward": True}, "use_kl_in_reward has no effect with beta=0"),
        ({"temperature": 0.0}, "temperature=0.0; allowed: above 0"),
        ({"top_p": 0.0}, "top_p=0.0; allowed: above 0"),
        ({"max_completion_length": None}, "max_completion_length=None; an answer needs a limit"),
        ({"max_length": 100}, "set max_prompt_length and max_completion_length"),
        ({"pad_to_multiple_of": 8}, "pad_to_multiple_of=8 is about rows of a data set that hold an answer"),
        ({"dataset_num_proc": 2}, "prompts are tokenised in the training process"),
        ({"precompute_ref_log_probs": True}, "beta=0 trains without a reference"),
        ({"importance_sampling_clip_max": 9.0}, "has no effect with importance_sampling_correction=False"),
        ({"vllm_importance_sampling_mode": "token_mask"}, "importance_sampling_mode has no effect with"),
        (
            {"loss_type": "vespo", "importance_sampling_correction": True},
            "choose token_truncate or token_mask, or importance_sampling_correction=False",
        ),
        (
            {"importance_sampling_mode": squared_gap, "importance_sampling_correction": True},
            "'squared_gap' returned Tensor for log-probs of shape",
        ),
        (
            {
                "importance_sampling_mode": squared_gap,
                "importance_sampling_correction": True,
                "importance_sampling_clip_max": 2.0,
            },
            "'squared_gap' has no parameter clip_max: leave it at 3.0",
        ),
        ({"entropy_target": 1.0}, "entropy_target has no effect with use_adaptive_entropy=False"),
        ({"kl_estimator": "k1"}, "kl_estimator has no effect with beta=0.0: set beta"),
        ({"sync_ref_model": True}, "sync_ref_model has no effect with beta=0.0: set beta"),
        ({"dynamic_sampling_attempts": 5}, "dynamic_sampling_attempts has no effect with dynamic_sampling=False"),
        (
            {"dynamic_sampling": True, "dynamic_sampling_attempts": 0},
            "dynamic_sampling_attempts=0; allowed: whole numbers",
        ),
        ({"curriculum_window": [0.5, 0.2]}, "curriculum_window=[0.5, 0.2]; allowed: two numbers"),
        ({"num_completions_to_print": 3}, "num_completions_to_print has no effect with log_completions=False"),
        ({"eval_greedy": False, "num_generations_eval": 0}, "leave nothing to evaluate"),
        ({"eval_temperature": 0.0}, "eval_temperature=0.0; allowed: above 0"),
        ({"top_entropy_quantile": 0.0}, "top_entropy_quantile=0.0; allowed: above 0 up to 1"),
        ({"entropy_coef": -1.0}, "entropy_coef=-1.0; allowed: 0 or more"),
        ({"multi_objective_aggregation": "sum"}, "allowed: sum_then_normalize, normalize_then_sum"),
        ({"reward_isolation": "docker"}, "reward_isolation is 'docker'"),
        ({"on_reward_error": "skip"}, "on_reward_error is 'skip'"),
        ({"reward_timeout": 0}, "reward_timeout=0; allowed: above 0"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_options_that_cannot_be(tmp_path, options, named):
    assert named in refused(tmp_path, **options)


@pytest.mark.parametrize("name", sorted(UNBUILT_GRPO_ARGUMENTS))
def test_arguments_of_trl_that_are_not_built(tmp_path, name):
    """Refused by name before a model is loaded, and accepted where they are off."""
    config = GRPOConfig(output_dir=str(tmp_path))
    with pytest.raises(ValueError, match=rf"{name}=\[.*is an option of TRL that Burnish has not built yet"):
        GRPOTrainer("no/such-model", near_wanted, config, **{name: [len]})
    trainer = GRPOTrainer(make_model(), near_wanted, config, processing_class=make_tokenizer(), **{name: None})
    assert trainer.args is config


def test_prompts_that_are_too_long_keep_their_end_and_are_counted(tmp_path):
    trainer = make_online_trainer(tmp_path, max_prompt_length=20, max_steps=1)
    report = trainer.data_reports["train"]
    assert report.num_prompts_cut == len(make_prompts())
    assert report.max_length == 20
    trainer.train()
    assert step_lines(trainer)[0]["grad_norm"] > 0


def test_a_reference_that_nothing_reads(tmp_path):
    with pytest.raises(ValueError, match="ref_model is given, and beta=0 compares with no reference"):
        make_online_trainer(tmp_path, ref_seed=1)


def test_answers_that_are_all_cut_move_nothing_if_they_are_masked(tmp_path):
    """A model without its end token in the vocabulary's likely part: every answer is cut, and none is trained on."""
    trainer = make_online_trainer(
        tmp_path / "run", max_steps=2, max_completion_length=3, min_new_tokens=3, mask_truncated_completions=True
    )
    trainer.sampling = type(trainer.sampling)(max_new_tokens=3, end_token_ids=())
    before = weights_of(trainer)
    trainer.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(trainer).items())
    for line in step_lines(trainer):
        assert line["completions/clipped_ratio"] == 1
        assert line["loss"] == line["grad_norm"] == line["frac_rows_with_gradient"] == 0
        assert not any(math.isnan(value) for value in line.values())
    assert {event["code"] for event in events_in(tmp_path / "run", "alarm")} == {"truncated"}


# Other generators.


class Fixed:
    """A generator of the user's own: every answer is as many tokens as the number of its sample, from none on."""

    def __init__(self):
        self.calls, self.versions = [], []

    def update_policy(self, model, *, version):
        self.versions.append(version)

    def generate(self, prompts, params, *, num_samples, seed, round_index):
        self.calls.append((len(prompts), num_samples, seed, round_index, params.max_new_tokens))
        return [
            Completion(
                prompt_ids=prompt.ids,
                token_ids=torch.arange(100, 100 + sample),
                logps=torch.full((sample,), -5.0),
                kept_mass=torch.ones(sample),
                loss_mask=torch.ones(sample, dtype=torch.bool),
            )
            for prompt in prompts
            for sample in range(num_samples)
        ]


def test_a_generator_of_the_users_own_with_empty_answers(tmp_path):
    """Answers of 0 to 3 tokens: the empty one has a reward and no token; rounds and versions are told."""
    generator = Fixed()
    trainer = make_online_trainer(
        tmp_path, generator=generator, reward_funcs=lambda completion_ids, **_: [len(i) for i in completion_ids]
    )
    trainer.train()
    assert generator.calls == [(4, 4, 5, 0, 8), (4, 4, 5, 1, 8), (4, 4, 5, 2, 8)]
    assert generator.versions == [0, 1, 2]
    for line in step_lines(trainer):
        assert line["reward"] == line["completions/mean_length"] == 1.5
        assert line["frac_rows_with_gradient"] == 0.75
        assert line["completions/duplicate_ratio"] == 0
        assert math.isfinite(line["grad_norm"])
        assert line["grad_norm"] > 0


def test_a_generator_of_another_model_is_noticed_on_the_first_step(tmp_path):
    """Answers of another distribution than the policy's: the self-check says so."""
    other = NativeGenerator(ending_model(1), pad_token_id=0)
    other.update_policy = lambda model, *, version: None
    trainer = make_online_trainer(tmp_path / "run", generator=other, max_steps=1)
    trainer.train()
    (event,) = events_in(tmp_path / "run", "first_step")
    assert not event["ok"]
    assert "answers come from another distribution than the one that is trained" in event["message"]


def test_another_distribution_that_is_corrected_for_is_no_fault(tmp_path):
    options = {"repetition_penalty": 1.3, "importance_sampling_correction": True, "max_steps": 1}
    make_online_trainer(tmp_path / "run", **options).train()
    (event,) = events_in(tmp_path / "run", "first_step")
    assert event["ok"]
    assert event["sampler_gap"] > 0.1
    assert "and corrected for" in event["message"]


def test_text_prompts(tmp_path):
    texts = []

    def keep(completions, prompts, completion_ids, wanted, **_):
        texts.extend([*completions, *prompts])
        return near_wanted(completion_ids, wanted)

    rows = [{"prompt": f"{row['wanted']} and ", "wanted": row["wanted"]} for row in make_prompts()]
    trainer = make_online_trainer(tmp_path, rows=rows, reward_funcs=keep, max_steps=1)
    trainer.train()
    assert len(texts) == 32
    assert all(isinstance(text, str) for text in texts)


def test_training_needs_prompts(tmp_path):
    trainer = GRPOTrainer(
        make_model(), near_wanted, GRPOConfig(output_dir=str(tmp_path)), processing_class=make_tokenizer()
    )
    with pytest.raises(ValueError, match="training needs train_dataset"):
        trainer.train()


def test_a_model_whose_answers_never_end_by_themselves(tmp_path):
    """No end-of-sequence token anywhere: refused, unless strings end the answers."""

    def make(**options):
        model, tokenizer = make_model(), make_tokenizer()
        model.generation_config.eos_token_id = tokenizer.eos_token = None
        config = GRPOConfig(output_dir=str(tmp_path), max_completion_length=16, **options)
        return GRPOTrainer(model, near_wanted, config, train_dataset=make_prompts(), processing_class=tokenizer)

    with pytest.raises(ValueError, match=r"no answer would end by itself: set tokenizer.eos_token .*stop_strings"):
        make()
    assert make(stop_strings=["."]).sampling.end_token_ids == ()


def test_end_tokens_are_those_of_tokenizer_and_model(tmp_path):
    trainer = make_online_trainer(tmp_path)
    assert set(trainer.sampling.end_token_ids) == {2, *END_TOKENS}


# What a trainer of one's own may ask for.


class Reinforce(OnlineTrainer):
    """-A log p of each token."""

    def loss(self, model, batch):
        logps = forward(model, batch, temperature=batch.temperature).logps
        return LossOutput.of(-batch.advantages * logps, per="token")


class Compared(Reinforce):
    """The same, with a reference."""

    reads_reference = True


def own_trainer(trainer, tmp_path, **given):
    rounds = {"num_generations": 2, "per_device_train_batch_size": 4, "max_completion_length": 4, "max_steps": 1}
    quiet = {"report_to": "none", "disable_tqdm": True, "cpu_tuning": "off", "reward_isolation": "none"}
    options = given.pop("options", {})
    return trainer(
        ending_model(),
        near_wanted,
        OnlineConfig(output_dir=str(tmp_path / "run"), **{**rounds, **quiet, **options}),
        train_dataset=make_prompts(4),
        processing_class=make_tokenizer(),
        **given,
    )


def test_a_reference_is_there_for_those_that_state_it(tmp_path):
    trainer = own_trainer(Compared, tmp_path, ref_model=ending_model(1))
    batch = trainer._generate_and_score_completions(trainer._draw_prompts(2))
    expected = forward(trainer.reference.model, batch).logps
    assert torch.equal(trainer.compute_ref_log_probs(batch), expected)
    assert trainer.compute_teacher(batch).hidden.shape[:2] == (4, batch.completion_ids.shape[1] + 1)
    assert trainer.binding()["reference"] == trainer.reference.fingerprint()
    assert own_trainer(Compared, tmp_path).reference.description.startswith("copy of the policy")


def test_a_reference_that_nothing_reads_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Reinforce compares with no reference: state reads_reference = True"):
        own_trainer(Reinforce, tmp_path, ref_model=ending_model(1))
    with pytest.raises(ValueError, match="sync_ref_model is set, and none of the losses reads a reference"):
        own_trainer(Reinforce, tmp_path, options={"sync_ref_model": True})
    trainer = own_trainer(Reinforce, tmp_path)
    batch = trainer._generate_and_score_completions(trainer._draw_prompts(2))
    with pytest.raises(ValueError, match="there is no reference to ask"):
        trainer.compute_ref_log_probs(batch)


def test_another_model_answers_and_the_policy_after_it(tmp_path):
    """The answers of a stream are the same whoever drew before; those of another stream are others."""
    trainer = own_trainer(Compared, tmp_path, ref_model=ending_model(1))
    prompts = trainer._draw_prompts(2)
    first = [trainer.draw(prompts, 2), trainer.draw(prompts, 2, stream=1)]
    with trainer.reference.answering() as reference:
        others = trainer.draw(prompts, 2, model=reference)
    again = trainer.draw(prompts, 2)
    ids = [[answer.token_ids.tolist() for answer in drawn] for drawn in (*first, others, again)]
    assert ids[0] == ids[3]
    assert ids[0] != ids[1]
    assert ids[0] != ids[2]
    assert trainer.generator.model is trainer.policy
