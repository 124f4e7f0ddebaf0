"""What each option of PPO does to a run, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
sys.path.insert(0, str(Path(__file__).parent))
from online_training import ending_model, make_prompts, near_wanted, step_lines
from ppo_training import make_ppo_trainer, value_model
from test_grpo import Recorder
from test_ppo import parts
from training import relative_distance, step_gradients

from burnish.runtime.rundir import read_events
from burnish.trainers.ppo import PPOTrainer
from burnish.trainers.ppo_options import PPOConfig
from conftest import make_tokenizer

# Options that change what is learned, and from which answers.

CHANGES = [
    {"lam": 0.5},
    {"gamma": 0.9},
    {"lam_critic": 1.0},
    {"lam_length_alpha": 0.3},
    {"kl_coef": 0.5},
    {"kl_estimator": "k3"},
    {"use_kl_in_reward": False},
    {"whiten_rewards": True},
    {"whiten_advantages": False},
    {"advantage_clip": 0.5},
    {"reward_scaling": "normalize"},
    {"reward_clip": 0.5},
    {"missing_eos_penalty": 2.0},
    {"bootstrap_truncated": True},
    {"mask_truncated_completions": True},
    {"vf_coef": 1.0},
    {"cliprange_value": None},
    {"epsilon": 0.05},
    {"epsilon_high": 0.05},
    {"loss_type": "dual_clip", "loss_kwargs": {"dual_clip_c": 1.3}},
    {"entropy_coef": 0.1},
    {"critic": "policy"},
]
FAST = ({"lam_critic": 1.0},)


@pytest.mark.parametrize(
    "changed",
    [change if change in FAST else pytest.param(change, marks=pytest.mark.gallery) for change in CHANGES],
    ids=lambda changed: ", ".join(f"{k}={v}" for k, v in changed.items()),
)
def test_an_option_changes_the_run_and_not_its_answers(tmp_path, changed):
    """The first round's answers are the same; a gradient of one of its two passes is not."""
    runs = []
    for name, options in (("plain", {}), ("changed", changed)):
        trainer = make_ppo_trainer(tmp_path / name, max_steps=2, reward_funcs=near_wanted, **options)
        recorder, gradients = Recorder(trainer), step_gradients(trainer)
        runs.append((recorder.steps[0][0], gradients))
    (plain, own), (other, theirs) = runs
    assert torch.equal(plain.completion_ids, other.completion_ids)
    assert max(relative_distance(b, a) for a, b in zip(own, theirs, strict=True)) > 1e-4


def test_passes_and_mini_batches(tmp_path):
    """Two mini-batches in three passes: six steps of one round, in the same order each time."""
    trainer = make_ppo_trainer(tmp_path, num_mini_batches=2, num_iterations=3, max_steps=6)
    recorder = Recorder(trainer)
    trainer.train()
    rows = [tuple(parcel.row_id.tolist()) for (parcel,) in recorder.steps]
    assert rows[0] != rows[1]
    assert rows == rows[:2] * 3
    assert trainer.queue.round_index == 1
    assert trainer.num_answers.value == 32


def test_episodes_give_the_steps(tmp_path):
    """40 answers in rounds of 16 are 3 rounds of 2 passes."""
    assert make_ppo_trainer(tmp_path, total_episodes=40, max_steps=-1).args.max_steps == 6


def test_answers_alone_have_no_group(tmp_path):
    """With one answer to a prompt nothing is said of groups without signal, and no alarm of it is given."""
    trainer = make_ppo_trainer(tmp_path / "run", max_steps=1)
    trainer.train()
    line = step_lines(trainer)[0]
    assert "frac_reward_zero_std" not in line
    assert "completions/duplicate_ratio" not in line
    assert not [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["kind"] == "alarm"]


def test_a_round_is_given_up(tmp_path):
    """After a step that is too far from the old policy the next one has fresh answers; it is counted and told."""
    options = {"num_iterations": 6, "max_steps": 8, "learning_rate": 3e-3}
    whole = make_ppo_trainer(tmp_path / "whole", **options)
    whole.train()
    distances = [line["policy/approxkl_avg"] for line in step_lines(whole)][:6]
    limit = distances[2] * 0.999  # the third step is the first one above it
    assert max(distances[:2]) < limit
    trainer = make_ppo_trainer(tmp_path / "run", early_stop_kl=limit, **options)
    trainer.train()
    lines = step_lines(trainer)
    assert [line["policy/approxkl_avg"] for line in lines[:3]] == distances[:3]
    assert "reward" in lines[3]
    assert lines[3]["num_early_stops"] == 1
    stops = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["kind"] == "early_stop"]
    assert (stops[0]["step"], stops[0]["left_out"]) == (3, 3)


def test_the_coefficient_of_a_kl_in_the_loss_follows_it(tmp_path):
    """In every step the loss has the coefficient that its round began with, and no longer that of the option."""
    options = {"use_kl_in_reward": False, "kl_target": 0.5, "kl_horizon": 40.0}
    trainer = make_ppo_trainer(tmp_path, max_steps=6, **options)
    trainer.train()
    lines, coefficients = step_lines(trainer), []
    for line in lines:
        coefficients.append(line.get("kl_coef", coefficients[-1] if coefficients else None))
        parts = line["loss/policy_avg"] + coefficients[-1] * line["loss/kl"] + 0.1 * line["loss/value_avg"]
        assert line["loss"] == pytest.approx(parts, rel=1e-9)
    assert 0.05 < coefficients[0] < coefficients[2] < coefficients[4]


def test_a_stop_token_of_ones_own(tmp_path):
    plain, own = (make_ppo_trainer(tmp_path / str(i), stop_token_id=i) for i in (None, 3))
    assert set(own.sampling.end_token_ids) == {*plain.sampling.end_token_ids, 3}


class KeepsAnswers(PPOTrainer):
    def measure_answers(self, groups, *, temperature):
        self.answers = groups
        return super().measure_answers(groups, temperature=temperature)


def test_evaluation(tmp_path):
    """On held-out prompts, with the KL of their answers, and what the critic knows of what these earn, by hand."""
    trainer = make_ppo_trainer(
        tmp_path, trainer_class=KeepsAnswers, eval_dataset=make_prompts(5), num_generations_eval=2
    )
    found = trainer.evaluate()
    assert 0 < found["eval_reward"] < 1
    assert {"eval_accuracy", "eval_accuracy_greedy", "eval_pass@2"} <= found.keys()
    kl, returns, errors = [], [], []
    for answer, total in zip(trainer.answers.completions, trainer.answers.rewards.total().tolist(), strict=True):
        prompt, tokens = answer.prompt_ids, answer.token_ids
        ids, start = torch.cat([prompt, tokens]), len(prompt)
        with torch.no_grad():
            both = [
                model(input_ids=ids[None]).logits[0, start - 1 : -1].log_softmax(-1).gather(1, tokens[:, None])[:, 0]
                for model in (trainer.policy, ending_model(1))
            ]
            values = [float(trainer.critic(input_ids=ids[None, : start + t]).logits) for t in range(len(tokens))]
        costs = 0.05 * (both[0] - both[1])
        earned = [total - float(costs[t:].sum()) for t in range(len(tokens))]
        kl.append(float((both[0] - both[1]).sum()))
        returns += earned
        errors += [own - value for own, value in zip(earned, values, strict=True)]
    assert found["eval_objective/kl"] == pytest.approx(sum(kl) / len(kl), rel=1e-6)
    spread, rest = (float(torch.tensor(numbers).double().var(correction=0)) for numbers in (returns, errors))
    assert found["eval_val/explained_variance"] == pytest.approx(1 - rest / spread, rel=1e-5)
    assert "eval__returns" not in found


# How the critic is trained.


def test_the_critic_alone_at_first(tmp_path):
    """In the warm-up no weight of the policy moves, its schedule waits, and its terms are not there."""
    trainer = make_ppo_trainer(
        tmp_path, critic_warmup_steps=2, max_steps=4, lr_scheduler_type="linear", critic_learning_rate=5e-3
    )
    recorder = Recorder(trainer)
    trainer.train()
    (start, _), (_, after), (warm, _), (moved, _) = (parts(weights) for weights in recorder.weights)
    for first, later in zip(start.parameters(), warm.parameters(), strict=True):
        assert torch.equal(first, later)
    assert not all(torch.equal(a, b) for a, b in zip(warm.parameters(), moved.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(value_model().parameters(), after.parameters(), strict=True))
    lines = step_lines(trainer)
    assert [("loss/policy_avg" in line) for line in lines] == [False, False, True, True]
    assert lines[0]["policy/grad_norm"] == 0 < lines[0]["val/grad_norm"]
    assert [line["learning_rate"] for line in lines] == [1e-3, 1e-3, 1e-3, 5e-4]
    assert [line["val/lr"] for line in lines] == pytest.approx([5e-3, 3.75e-3, 2.5e-3, 1.25e-3])


def test_a_head_alone_at_first(tmp_path):
    """The policy's trunk, which it reads, does not move either."""
    trainer = make_ppo_trainer(tmp_path, critic="head", critic_warmup_steps=4, max_steps=4)
    before = {name: tensor.clone() for name, tensor in trainer.policy.state_dict().items()}
    trainer.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.policy.state_dict().items())
    assert trainer.critic.weight.any()


def test_lambda_of_the_warmup(tmp_path):
    """1: the first round's returns are what the answers earned, those of the second are made with the critic."""
    options = {"critic_warmup_steps": 2, "critic_warmup_lam": 1.0, "lam": 0.5, "kl_coef": 0, "max_steps": 4}
    trainer = make_ppo_trainer(tmp_path, **options)
    recorder = Recorder(trainer)
    trainer.train()
    first, second = recorder.steps[0][0], recorder.steps[2][0]
    for batch, is_flat in ((first, True), (second, False)):
        spread = torch.where(batch.loss_mask, batch.returns - batch.returns[:, :1], 0.0).abs().amax()
        assert bool(spread < 1e-12) is is_flat


def test_parameter_groups(tmp_path):
    """Policy and critic have rates and decays of their own; norms and biases have no decay."""
    options = {"weight_decay": 0.1, "critic_weight_decay": 0.2, "critic_learning_rate": 5e-3}
    trainer = make_ppo_trainer(tmp_path, **options)
    groups = trainer.create_optimizer().param_groups
    found = {(group["part"], group["lr"], group["weight_decay"]) for group in groups}
    assert found == {("policy", 1e-3, 0.1), ("policy", 1e-3, 0.0), ("critic", 5e-3, 0.2), ("critic", 5e-3, 0.0)}
    counted = sum(parameter.numel() for group in groups for parameter in group["params"])
    assert counted == sum(parameter.numel() for parameter in trainer.model.parameters())


def test_gradients_are_clipped_apart(tmp_path):
    """A large gradient of the critic does not shorten the policy's."""
    clipped = {}
    trainer = make_ppo_trainer(tmp_path, max_steps=1, vf_coef=100.0, max_grad_norm=0.5, critic_max_grad_norm=0.25)
    own = trainer._get_grad_norm

    def record(model, grad_norm=None):
        for name, part in (("policy", trainer.policy), ("critic", trainer.critic)):
            clipped[name] = float(torch.cat([p.grad.flatten() for p in part.parameters()]).norm())
        return own(model, grad_norm)

    trainer._get_grad_norm = record
    trainer.train()
    line = step_lines(trainer)[0]
    assert min(line["policy/grad_norm"], line["val/grad_norm"]) > 0.5
    assert clipped == {"policy": pytest.approx(0.5, rel=1e-4), "critic": pytest.approx(0.25, rel=1e-4)}


# Refusals.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, r"gamma=0.0; allowed: above 0 up to 1"),
        ({"lam": 1.5}, r"lam=1.5; allowed: 0 to 1"),
        ({"kl_coef": -1.0}, r"kl_coef=-1.0; allowed: 0 or more"),
        ({"kl_estimator": "k9"}, r"unknown KL estimator 'k9'"),
        ({"reward_scaling": "std"}, r"reward_scaling='std'; allowed: none, scale, normalize"),
        ({"critic": "other"}, r"critic='other'; allowed: policy, reward, head, new"),
        ({"lam": 0.9, "lam_length_alpha": 0.05}, "lam has no effect with lam_length_alpha=0.05: set one of them"),
        ({"missing_eos_penalty": 1.0, "bootstrap_truncated": True}, "for one that goes on: set one of them"),
        ({"mask_truncated_completions": True, "missing_eos_penalty": 1.0}, "leaves cut answers out"),
        ({"kl_coef": 0.0, "kl_target": 6.0}, "kl_target has no effect with kl_coef=0.0"),
        ({"kl_horizon": 100.0}, "kl_horizon has no effect with kl_target=None"),
        ({"critic_warmup_lam": 1.0}, "critic_warmup_lam has no effect with critic_warmup_steps=0"),
        ({"critic_max_grad_norm": 1.0, "max_grad_norm": 0.0}, "critic_max_grad_norm has no effect with max_grad_norm"),
        ({"critic": "head", "value_model_init_kwargs": {"dtype": "bfloat16"}}, "has no effect with critic='head'"),
        ({"dynamic_sampling": True}, "num_generations=1: raise it"),
        ({"num_mini_batches": 2, "steps_per_generation": 3}, "makes a round of 2 micro-batches"),
        ({"total_episodes": 32, "max_steps": 3}, r"total_episodes=32 makes 16 steps, and max_steps=3"),
        ({"num_generations": 0}, "num_generations=0; allowed: 1 or more"),
        ({"ptx_coef": -1.0}, "ptx_coef=-1.0; allowed: 0 or more"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_options_that_cannot_be(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(output_dir=str(tmp_path), **options)


def test_a_run_file_says_the_same_again(tmp_path):
    """What an option sets of another one is no contradiction when all are read back."""
    first = PPOConfig(output_dir=str(tmp_path), num_mini_batches=2, total_episodes=64)
    again = PPOConfig(**{n: v for n, v in first.resolved().items() if not isinstance(v, str) or n == "output_dir"})
    assert (again.steps_per_generation, again.max_steps) == (2, first.max_steps)


def test_options_of_trl(tmp_path):
    """Under the names of TRL 0.25, and of the trainer with a step of its own."""
    config = PPOConfig(
        output_dir=str(tmp_path), num_ppo_epochs=2, response_length=9, cliprange=0.1, stop_token="eos",
        local_rollout_forward_batch_size=7, missing_eos_penalty=1.0, sft_model_path="a", reward_model_path="b",
        exp_name="ppo", ds3_gather_for_generation=True, num_sample_generations=0,
    )  # fmt: skip
    assert (config.num_iterations, config.max_completion_length, config.epsilon) == (2, 9, 0.1)
    assert (config.generation_max_rows, config.reward_model_path) == (7, "b")
    assert (config.num_ppo_epochs, config.cliprange) == (2, 0.1)
    old = PPOConfig(output_dir=str(tmp_path), init_kl_coef=0.2, target=6.0, horizon=1000.0, score_clip=5.0)
    assert (old.kl_coef, old.kl_target, old.kl_horizon, old.reward_clip) == (0.2, 6.0, 1000.0, 5.0)
    with pytest.raises(ValueError, match="stop_token='newline'; allowed: eos"):
        PPOConfig(output_dir=str(tmp_path), stop_token="newline")


def test_two_rewards_or_none(tmp_path):
    options = {"train_dataset": make_prompts(), "processing_class": make_tokenizer()}
    with pytest.raises(ValueError, match="reward_model is TRL's name for reward_funcs"):
        PPOTrainer(
            ending_model(), near_wanted, PPOConfig(output_dir=str(tmp_path)), reward_model=near_wanted, **options
        )
    with pytest.raises(ValueError, match="reward_funcs is empty"):
        PPOTrainer(ending_model(), args=PPOConfig(output_dir=str(tmp_path), critic="head"), **options)
