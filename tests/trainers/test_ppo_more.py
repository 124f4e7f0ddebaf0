"""PPO with what every trainer has: half precision, recomputed activations, the guard, turns, moving references."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
sys.path.insert(0, str(Path(__file__).parent))
from online_training import ending_model, make_prompts, step_lines
from ppo_training import make_ppo_trainer, value_model
from test_grpo import Recorder
from training import relative_distance, step_gradients

from burnish.generation.native import NativeGenerator
from burnish.trainers.ppo import PPOTrainer
from burnish.trainers.ppo_options import PPOConfig
from burnish.types import Term
from conftest import make_tokenizer


@pytest.mark.gallery
@pytest.mark.parametrize("critic", ["policy", "head"])
def test_recomputed_activations_change_no_gradient(tmp_path, critic):
    plain = make_ppo_trainer(tmp_path / "plain", critic=critic, max_steps=3)
    recomputed = make_ppo_trainer(tmp_path / "recomputed", critic=critic, max_steps=3, gradient_checkpointing=True)
    for own, theirs in zip(step_gradients(recomputed), step_gradients(plain), strict=True):
        assert relative_distance(own, theirs) < 1e-12
    layers = [m for m in recomputed.model.modules() if "gradient_checkpointing" in vars(m)]
    assert layers
    assert all(layer.gradient_checkpointing for layer in layers)


@pytest.mark.gallery
@pytest.mark.parametrize("critic", ["policy", "head"])
def test_under_bfloat16(tmp_path, critic):
    """The first ratio is exactly 1 and no value is clipped; values stay float32."""
    trainer = make_ppo_trainer(tmp_path, dtype=torch.float32, critic=critic, bf16=True, max_steps=2)
    trainer.kept_forward.keeps = False  # else nothing is computed again
    recorder = Recorder(trainer)
    trainer.train()
    first, second = step_lines(trainer)
    assert first["val/ratio"] == 1
    assert first["policy/approxkl_avg"] == first["val/clipfrac_avg"] == 0
    assert second["policy/approxkl_avg"] > 0
    assert recorder.steps[0][0].values.dtype == torch.float32


class Breaks(PPOTrainer):
    """The critic's loss of the second step is not finite."""

    def _compute_loss(self, model, batch):
        output = super()._compute_loss(model, batch)
        if self.state.global_step != 1:
            return output
        bad = [Term(name="bad", losses=batch.advantages * torch.nan, per="token")]
        return replace(output, terms=(*output.terms, *bad))


def test_a_step_that_is_not_finite_moves_nothing(tmp_path):
    trainer = make_ppo_trainer(tmp_path, trainer_class=Breaks, max_steps=3)
    recorder = Recorder(trainer)
    trainer.train()
    before, after = recorder.weights[1], recorder.weights[2]
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    lines = step_lines(trainer)
    assert [line["num_skipped_steps"] for line in lines] == [0, 1, 1]
    assert "policy/grad_norm" not in lines[1]


@pytest.mark.gallery
def test_a_reference_that_follows(tmp_path):
    """It moves with the policy alone: half of the way after each step, so the KL is smaller than to one that stays."""
    found = {}
    for name, options in {"stays": {}, "moves": {"sync_ref_model": True, "ref_model_sync_steps": 1}}.items():
        trainer = make_ppo_trainer(tmp_path / name, ref_seed=None, max_steps=6, learning_rate=3e-3, **options)
        trainer.train()
        found[name] = abs(step_lines(trainer)[4]["objective/kl"])
    assert 0 < found["moves"] < found["stays"]


@pytest.mark.gallery
def test_the_best_model_is_policy_and_critic(tmp_path):
    """Of the checkpoint whose held-out reward was highest, both are put back."""
    trainer = make_ppo_trainer(
        tmp_path, dtype=torch.float32, eval_dataset=make_prompts(3), eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True, metric_for_best_model="reward",
        greater_is_better=True, max_steps=3, num_generations_eval=0, learning_rate=1e-2,
    )  # fmt: skip
    trainer.args.metric_for_best_model = "eval_reward_greedy"
    recorder = Recorder(trainer)
    trainer.train()
    best = trainer.state.best_global_step
    assert best
    expected = [*recorder.weights, trainer.model.state_dict()][best] if best < 3 else trainer.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trainer.model.state_dict().items())


# Turns.


class TwoTurns(NativeGenerator):
    """Answers of two turns, between which a token stands that nobody chose."""

    def generate(self, prompts, params, *, num_samples, seed, round_index):
        found = super().generate(prompts, params, num_samples=num_samples, seed=seed, round_index=round_index)
        return [self._in_turns(completion) for completion in found]

    def _in_turns(self, completion):
        places = torch.arange(len(completion))
        return replace(completion, loss_mask=places != 1, turns=(places > 1).long())


def by_turn(completion_ids, **_):
    """1 for the first turn, 10 for the second."""
    return [[1.0] if len(ids) < 3 else [1.0, 10.0] for ids in completion_ids]


def test_rewards_of_turns(tmp_path):
    """Earned at the end of each turn, by its last trained token: 11 are ahead of the first, 10 of the second turn's."""
    model = ending_model()
    trainer = PPOTrainer(
        model, by_turn,
        PPOConfig(
            output_dir=str(tmp_path), kl_coef=0, lam=1.0, whiten_advantages=False, max_steps=1, report_to="none",
            per_device_train_batch_size=16, disable_tqdm=True, cpu_tuning="off", reward_isolation="none",
            max_completion_length=8, temperature=1.0, num_iterations=1,
        ),
        generator=TwoTurns(model, pad_token_id=0), value_model=value_model(), train_dataset=make_prompts(16),
        processing_class=make_tokenizer(),
    )  # fmt: skip
    recorder = Recorder(trainer)
    trainer.train()
    (batch,) = recorder.steps[0]
    lengths = batch.completion_mask.sum(1)
    assert (lengths > 2).sum() > 2
    for row, length in enumerate(lengths.tolist()):
        expected = [1.0, 0.0][:length] if length < 3 else [11.0, 0.0] + [10.0] * (length - 2)
        assert batch.returns[row, :length].tolist() == pytest.approx(expected)
    assert not batch.advantages[:, 1].any()


@pytest.mark.gallery
def test_groups_of_answers(tmp_path):
    """Several answers to a prompt: its tokens are computed once for all, by the critic too."""
    trainer = make_ppo_trainer(tmp_path, num_generations=4, max_steps=2, dynamic_sampling=True)
    trainer.train()
    assert step_lines(trainer)[0]["frac_reward_zero_std"] == 0
    plain = make_ppo_trainer(tmp_path / "off", num_generations=4, max_steps=2, prefix_sharing="off")
    shared = make_ppo_trainer(tmp_path / "on", num_generations=4, max_steps=2)
    for own, theirs in zip(step_gradients(shared), step_gradients(plain), strict=True):
        assert relative_distance(own, theirs) < 1e-6  # the attention over a tree sums in another order
