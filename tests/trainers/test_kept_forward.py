"""The forward that rescoring and training share: run once, where nothing tells the two apart, and of no other numbers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
sys.path.insert(0, str(Path(__file__).parent))
from online_training import make_online_trainer, step_lines
from ppo_training import make_ppo_trainer, repeatable
from test_grpo import Recorder
from test_ptx import WithRows

from burnish.models.forward import forward
from burnish.trainers.kept_forward import KeptForward
from burnish.trainers.ppo import PPOTrainer


class Doubled(PPOTrainer):
    """A user's trainer that runs a forward of its own."""

    def _get_per_token_logps_and_entropies(self, model, batch):
        return forward(model, batch, needs=self.needs, temperature=batch.temperature)


def forwards(trainer) -> list[bool]:
    """Whether each forward of a run's trained module had a graph; the check before the first step calls the policy."""
    graphs = []
    trainer.model.register_forward_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    trainer.train()
    return graphs


def lines_of(trainer) -> list[dict]:
    return [repeatable(line) for line in step_lines(trainer)]


CUTS = [
    {},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "token_budget": 10_000},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "token_budget": 0},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4},
    {"token_budget": 200},
    {"gradient_checkpointing": True},
    {"critic": "head"},
    {"bf16": True},
    {"bf16": True, "token_budget": 200},
    {"use_kl_in_reward": False, "early_stop_kl": 1e-9},
]


@pytest.mark.parametrize("options", CUTS, ids=str)
def test_not_one_bit_differs_from_a_run_with_two_forwards(tmp_path, options):
    """Losses, metrics and weights of four steps; of every round one forward less."""
    runs = {}
    for name, keeps in {"once": True, "twice": False}.items():
        trainer = make_ppo_trainer(tmp_path / name, dtype=torch.float32, **options)
        trainer.kept_forward.keeps = keeps
        graphs = forwards(trainer)
        runs[name] = lines_of(trainer), trainer.model.state_dict(), graphs, trainer.queue.round_index
    (lines, weights, graphs, rounds), (their_lines, their_weights, their_graphs, _) = runs["once"], runs["twice"]
    assert lines == their_lines
    assert all(torch.equal(weights[name], other) for name, other in their_weights.items())
    assert len(graphs) == len(their_graphs) - rounds
    assert sum(graphs) == sum(their_graphs)
    assert graphs[0]


def test_the_rest_of_a_round_is_scored_without_a_graph(tmp_path):
    """Four parts: one is kept; the others are scored, and run again."""
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "token_budget": 0}
    graphs = forwards(make_ppo_trainer(tmp_path, num_iterations=1, max_steps=1, **options))
    assert graphs == [True, False, False, False, True, True, True]


def test_grpo_keeps_the_first_part_too(tmp_path):
    """Two passes over a round; in one pass over it no old log-probs are needed, and nothing is kept."""
    lines = []
    for name, keeps in {"once": True, "twice": False}.items():
        options = {"dtype": torch.float32, "num_iterations": 2, "max_steps": 4}
        trainer = make_online_trainer(tmp_path / name, top_entropy_quantile=0.5, **options)
        trainer.kept_forward.keeps = keeps
        graphs = forwards(trainer)
        lines.append(lines_of(trainer))
        assert graphs.count(True) == 4, name
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    "options",
    [{"disable_dropout": False}, {"critic_warmup_steps": 4}, {"trainer_class": WithRows, "ptx_coef": 0.5}],
    ids=str,
)
def test_nothing_is_kept_where_training_runs_another_forward(tmp_path, options):
    """Dropouts, a critic trained alone, supervised rows beside the sampled ones."""
    trainer = make_ppo_trainer(tmp_path, **{"max_steps": 1, **options})
    graphs = forwards(trainer)
    assert graphs == [False, True]
    assert trainer.kept_forward.is_empty


def test_the_policy_is_kept_from_the_step_on_in_which_it_is_trained(tmp_path):
    trainer = make_ppo_trainer(tmp_path, critic_warmup_steps=2, max_steps=4)
    assert forwards(trainer) == [False, True, True, True, True]


def test_what_is_not_taken_is_forgotten_with_its_step(tmp_path):
    """A loss with a forward of its own trains on that one; the second pass never meets the graph of the first."""
    lines = []
    for name, trainer_class in {"own": Doubled, "twice": PPOTrainer}.items():
        trainer = make_ppo_trainer(tmp_path / name, dtype=torch.float32, trainer_class=trainer_class)
        trainer.kept_forward.keeps = name == "own"
        trainer.train()
        lines.append(lines_of(trainer))
        assert trainer.kept_forward.is_empty
    assert lines[0] == lines[1]


def test_it_is_given_once_for_the_same_tokens_to_who_wants_a_graph(tmp_path):
    recorder = Recorder(trainer := make_ppo_trainer(tmp_path, max_steps=1))
    trainer.train()
    (batch,), model = recorder.steps[0], trainer.model
    kept = KeptForward()
    stats = kept.run(model, batch, frozenset({"entropy"}))
    assert stats.logps.requires_grad
    assert model.training
    others = [
        replace(batch, temperature=0.5),
        replace(batch, completion_ids=batch.completion_ids + 1),
        replace(batch, row_id=batch.row_id.flip(0)),
        batch.take(torch.arange(3)),
    ]
    assert [kept.take(other) for other in others] == [None] * 4
    with torch.no_grad():
        assert kept.take(batch) is None
    assert kept.take(batch.to("cpu")) is stats
    assert kept.take(batch) is None
    kept.run(model, batch, frozenset())
    kept.drop()
    assert kept.is_empty


def test_who_watches_a_micro_batch_sees_its_forward(tmp_path):
    """As `burnish trace` has it: what rescoring puts together is not what is trained on then, so nothing is kept."""
    trainer = make_ppo_trainer(tmp_path, max_steps=1)
    trainer.together.waits = False
    assert forwards(trainer) == [False, True]
    assert trainer.kept_forward.is_empty
