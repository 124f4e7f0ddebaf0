"""PPO: its numbers by hand, and what each option does to a run."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
sys.path.insert(0, str(Path(__file__).parent))
from online_training import ending_model, make_prompts, near_wanted, step_lines
from ppo_training import make_ppo_trainer, repeatable, value_model
from test_grpo import Recorder, answers_of, token_logps
from training import relative_distance, step_gradients

from burnish.models.critic import ActorCritic, ValueHead
from burnish.trainers.ppo import PPOConfig, PPOTrainer

# Values.


def parts(weights) -> tuple:
    """The plain policy and the plain sequence classifier of an `ActorCritic`'s weights."""
    policy, critic = ending_model(), value_model()
    policy.load_state_dict({n.removeprefix("policy."): t for n, t in weights.items() if n.startswith("policy.")})
    critic.load_state_dict({n.removeprefix("critic."): t for n, t in weights.items() if n.startswith("critic.")})
    return policy, critic


def token_values(critic, batch, row: int) -> torch.Tensor:
    """The critic's logit of the text before each token: the plain class on each beginning of the row by itself."""
    prompt_index = int(batch.prompt_index[row])
    prompt = batch.prompt_ids[prompt_index][batch.prompt_mask[prompt_index]]
    answer = batch.completion_ids[row][batch.completion_mask[row]]
    ids = torch.cat([prompt, answer])
    beginnings = [ids[: len(prompt) + t][None] for t in range(len(answer))]
    return torch.stack([critic(input_ids=beginning).logits[0, 0] for beginning in beginnings])


def credit_by_hand(policy, critic, reference, batch, *, kl_coef: float, lam: float) -> list[dict]:
    """Each row's old log-probs, values, returns and whitened advantages, from the formulas, backwards through time."""
    wanted = [make_prompts(16)[row]["wanted"] for row in batch.row_id.tolist()]
    rows = []
    for row, score in enumerate(near_wanted(answers_of(batch), wanted)):
        with torch.no_grad():
            old, ref = (token_logps(model, batch, row) for model in (policy, reference))
            values = token_values(critic, batch, row)
        rewards = -kl_coef * (old - ref)
        rewards[-1] += score
        advantage, following, found = 0.0, 0.0, []
        for reward, value in zip(rewards.flip(0).tolist(), values.flip(0).tolist(), strict=True):
            advantage = reward + following - value + lam * advantage
            following = value
            found.append(advantage)
        advantages = torch.tensor(found[::-1], dtype=torch.float64)
        rows.append({"old": old, "values": values, "advantages": advantages, "returns": advantages + values})
    everywhere = torch.cat([row["advantages"] for row in rows])
    for row in rows:
        row["advantages"] = (row["advantages"] - everywhere.mean()) / (everywhere.var() + 1e-8).sqrt()
    return rows


def loss_by_hand(policy, critic, batch, rows: list[dict]) -> torch.Tensor:
    """One optimizer step's loss: clipped policy loss and a tenth of the clipped value loss, over all tokens."""
    losses = []
    for index, row in enumerate(rows):
        ratio, advantages = (token_logps(policy, batch, index) - row["old"]).exp(), row["advantages"]
        of_policy = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        values, old, returns = token_values(critic, batch, index), row["values"], row["returns"]
        near = torch.clamp(values, old - 0.2, old + 0.2)
        of_critic = 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)
        losses.append(of_policy + 0.1 * of_critic)
    return torch.cat(losses).mean()


def test_loss_and_gradient_by_hand(tmp_path):
    """Two rounds of two passes in float64, with KL in the reward: some ratios are clipped, and some values."""
    trainer = make_ppo_trainer(tmp_path, lam=0.9, kl_coef=0.2, learning_rate=1e-3)
    recorder = Recorder(trainer)
    gradients = step_gradients(trainer)
    lines = step_lines(trainer)
    assert len(recorder.steps) == len(gradients) == len(lines) == 4
    reference = ending_model(1)
    for step, ((batch,), weights) in enumerate(zip(recorder.steps, recorder.weights, strict=True)):
        policy, critic = parts(weights)
        if step % 2 == 0:  # the second pass is over the same answers
            answers, rows = answers_of(batch), credit_by_hand(policy, critic, reference, batch, kl_coef=0.2, lam=0.9)
        assert answers_of(batch) == answers
        for row, by_hand in enumerate(rows):
            mask = batch.completion_mask[row]
            for name in ("advantages", "returns", "values"):
                torch.testing.assert_close(batch[name][row][mask], by_hand[name], rtol=1e-5, atol=1e-7)
        loss = loss_by_hand(policy, critic, batch, rows)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for model in (policy, critic) for p in model.parameters()])
        assert lines[step]["loss"] == pytest.approx(loss.item(), rel=1e-7, abs=1e-9)  # Llama's norms are float32
        assert relative_distance(gradients[step], gradient) < 1e-6
    for metric in ("clip_ratio/region_mean", "val/clipfrac_avg"):
        assert lines[0][metric] == lines[2][metric] == 0
        assert max(lines[1][metric], lines[3][metric]) > 0.02


def test_metrics_by_hand(tmp_path):
    """Those of the first round, from the recorded answers."""
    trainer = make_ppo_trainer(tmp_path, kl_coef=0.2, max_steps=2)
    recorder = Recorder(trainer)
    trainer.train()
    (batch,), line = recorder.steps[0], step_lines(trainer)[0]
    policy, _ = parts(recorder.weights[0])
    reference = ending_model(1)
    with torch.no_grad():
        logps = [token_logps(policy, batch, row) for row in range(16)]
        kl = [own - token_logps(reference, batch, row) for row, own in enumerate(logps)]
    scores = torch.tensor(near_wanted(answers_of(batch), [make_prompts(16)[r]["wanted"] for r in batch.row_id]))
    in_nats = torch.stack([row.sum() for row in kl]).mean()
    assert line["objective/kl"] == pytest.approx(float(in_nats), rel=1e-6)
    assert line["objective/entropy"] == pytest.approx(
        float(torch.stack([-row.sum() for row in logps]).mean()), rel=1e-6
    )
    assert line["objective/scores"] == line["reward"] == pytest.approx(float(scores.mean()), rel=1e-6)
    assert line["objective/non_score_reward"] == pytest.approx(-0.2 * float(in_nats), rel=1e-6)
    assert line["objective/rlhf_reward"] == pytest.approx(float(scores.mean() - 0.2 * in_nats), rel=1e-6)
    of_last = [x for row in kl for t, x in enumerate(row.tolist()) if 4 * t // len(row) == 3]
    assert line["kl_position/75-100"] == pytest.approx(sum(of_last) / len(of_last), rel=1e-6)
    assert line["val/num_eos_tokens"] == float((batch.columns["truncated"] == 0).sum())
    values, returns = batch.values[batch.loss_mask], batch.returns[batch.loss_mask]
    assert line["values/mean"] == pytest.approx(float(values.mean()), rel=1e-6)
    assert line["returns/std"] == pytest.approx(float(returns.std()), rel=1e-6)
    explained = 1 - float((returns - values).var() / returns.var())
    assert line["val/explained_variance"] == pytest.approx(explained, rel=1e-6)
    assert line["advantages/mean"] == pytest.approx(float((returns - values).mean()), rel=1e-6)
    assert line["episode"] == 16
    norms = line["policy/grad_norm"], line["val/grad_norm"]
    assert line["grad_norm"] == pytest.approx(sum(norm**2 for norm in norms) ** 0.5)


def test_the_histogram_and_variance_of_ratios(tmp_path):
    """Of the second pass: shares that add up to 1, around the mean and variance that are logged."""
    trainer = make_ppo_trainer(tmp_path, max_steps=2)
    recorder = Recorder(trainer)
    trainer.train()
    (batch,), line = recorder.steps[1], step_lines(trainer)[1]
    policy, _ = parts(recorder.weights[1])
    with torch.no_grad():
        now = torch.cat([token_logps(policy, batch, row) for row in range(16)])
    ratio = (now - batch.old_logps[batch.loss_mask]).exp()
    edges = [0.0, 0.5, 0.8, 0.9, 1.1, 1.2, 2.0, float("inf")]
    for low, high in pairwise(edges):
        share = float(((ratio >= low) & (ratio < high)).double().mean())
        assert line[f"ratio/{low:g}-{high:g}"] == pytest.approx(share), low
    assert line["val/ratio"] == pytest.approx(float(ratio.mean()), rel=1e-6)
    assert line["val/ratio_var"] == pytest.approx(float(ratio.var(correction=0)), rel=1e-6)
    assert line["policy/approxkl_avg"] == pytest.approx(float((ratio.log() ** 2).mean()) / 2, rel=1e-6)


@pytest.mark.parametrize("cut", [(16, 1), (4, 4)], ids=str)
@pytest.mark.parametrize("critic", ["policy", "head"])
def test_the_first_ratio_is_exactly_one(tmp_path, cut, critic):
    """Old log-probs and values are scored in the micro-batches that are trained on: not one bit differs."""
    rows, accumulation = cut
    options = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
    trainer = make_ppo_trainer(tmp_path, dtype=torch.float32, critic=critic, max_steps=2, **options)
    trainer.kept_forward.keeps = False  # else nothing is computed again
    trainer.train()
    first, second = step_lines(trainer)
    assert first["policy/approxkl_avg"] == first["val/clipfrac_avg"] == 0
    assert first["val/ratio"] == first["ratio/0.9-1.1"] == 1
    assert second["policy/approxkl_avg"] > 1e-4


def test_the_first_step_is_checked_by_a_second_computation(tmp_path):
    from burnish.runtime.rundir import read_events

    make_ppo_trainer(tmp_path / "run", max_steps=1).train()
    (event,) = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["kind"] == "first_step"]
    assert event["ok"]
    assert event["max_difference"] < 1e-9


def test_a_run_made_again_is_the_same(tmp_path):
    lines = []
    for name in ("1", "2"):
        trainer = make_ppo_trainer(tmp_path / name, dtype=torch.float32)
        trainer.train()
        lines.append([repeatable(line) for line in step_lines(trainer)])
    assert lines[0] == lines[1]


def test_it_learns(tmp_path):
    """Even tokens are rewarded where they are drawn, and become more frequent; the critic comes to know the returns."""

    def low_bytes(completion_ids, **_):
        return [sum(token < 100 for token in ids) / len(ids) for ids in completion_ids]

    trainer = make_ppo_trainer(
        tmp_path,
        dtype=torch.float32,
        reward_funcs=low_bytes,
        max_steps=40,
        learning_rate=5e-3,
        critic="head",
        kl_coef=0,
    )
    trainer.train()
    lines = step_lines(trainer)
    rewards = [line["reward"] for line in lines if "reward" in line]
    assert len(rewards) == 20
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.2


# The critic.


def test_where_a_critic_comes_from(tmp_path):
    """A copy of the policy's trunk with a head of 0; a head on the trunk itself; random weights; the given model."""
    made = {kind: make_ppo_trainer(tmp_path / kind, critic=kind) for kind in ("policy", "head", "new")}
    for kind, trainer in made.items():
        assert isinstance(trainer.model, ActorCritic)
        assert trainer.actor_critic.shares_trunk is (kind == "head")
    trunk, copied = made["policy"].policy.model, made["policy"].critic.model
    assert torch.equal(trunk.layers[0].mlp.up_proj.weight, copied.layers[0].mlp.up_proj.weight)
    assert trunk.layers[0].mlp.up_proj.weight is not copied.layers[0].mlp.up_proj.weight
    assert not made["policy"].critic.score.weight.any()
    assert isinstance(made["head"].critic, ValueHead)
    other = made["new"].critic.model.layers[0].mlp.up_proj.weight
    assert not torch.equal(other, trunk.layers[0].mlp.up_proj.weight)
    assert {trainer.critic.dtype for kind, trainer in made.items() if kind != "head"} == {torch.float64}
    given = value_model()
    trainer = PPOTrainer(
        ending_model(), near_wanted, PPOConfig(output_dir=str(tmp_path / "given"), kl_coef=0), value_model=given,
        train_dataset=make_prompts(), processing_class=made["head"].tokenizer,
    )  # fmt: skip
    assert trainer.critic is given
