"""An advantage and a loss written by a user are rows of the tables like the library's own, and train."""

from __future__ import annotations

import ast
import importlib
import math
import sys
from pathlib import Path

import pytest
import torch

from burnish.advantages import advantages
from burnish.losses.policy import apply_policy_loss, policy_losses
from burnish.types import PolicyTokens, RewardTable

EXAMPLES = Path(__file__).parents[2] / "examples"
QUIET = {"save_strategy": "no", "disable_tqdm": True, "cpu_tuning": "off", "reward_isolation": "none"}


@pytest.fixture
def example():
    """The module, its rows taken out of the tables again: other tests go over all rows."""
    before = {id(table): dict(table._entries) for table in (advantages, policy_losses)}
    sys.path.insert(0, str(EXAMPLES))
    sys.modules.pop("custom_algorithm", None)
    yield importlib.import_module("custom_algorithm")
    sys.path.remove(str(EXAMPLES))
    for table in (advantages, policy_losses):
        table._entries = before[id(table)]


def test_the_advantage_by_hand(example):
    """Group 0: one best, one unscored; group 1: two equally good ones."""
    column = torch.tensor([[0.5], [1.0], [float("nan")], [2.0], [2.0], [0.0]])
    table = RewardTable(rewards=column, names=("r",), weights=torch.ones(1))
    found = example.best_of_group(table, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert found.tolist() == [[0.0], [1.0], [0.0], [0.5], [0.5], [0.0]]


def test_the_loss_by_hand(example):
    """Ratios 1 and 1.5 with sharpness 4 and A = 3: 0 and -3/4 tanh(2); the gradient at ratio 1 is that of -A r."""
    logps = torch.tensor([[1.0, 1.5]]).log().requires_grad_()
    ones = torch.ones(1, 2)
    tokens = PolicyTokens(logps=logps, old_logps=0 * ones, advantages=torch.full((1, 1), 3.0), mask=ones > 0)
    result = apply_policy_loss(policy_losses["soft_clip"], tokens)
    assert result.losses[0].tolist() == pytest.approx([0.0, -0.75 * math.tanh(2.0)])
    result.losses[0, 0].backward()
    assert logps.grad[0].tolist() == [-3.0, 0.0]


def test_it_trains_under_its_names(example, tmp_path):
    """The reward rises, the loss's own metric is logged, and the options are read."""
    torch.manual_seed(0)
    trainer = example.main(output_dir=str(tmp_path), **QUIET)
    lines = [line for line in trainer.state.log_history if "grad_norm" in line]
    rewards = [line["reward"] for line in lines if "reward" in line]
    assert len(lines) == 24
    assert len(rewards) == 12
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.3
    assert [line["gate"] > 0 for line in lines[:2]] == [False, True]


def test_an_option_that_it_does_not_read_is_refused(example, tmp_path):
    with pytest.raises(ValueError, match=r"loss_kwargs \['sharp'\] are read by none of \['soft_clip'\]"):
        example.main(output_dir=str(tmp_path), loss_kwargs={"sharp": 1.0}, **QUIET)


def test_sizes():
    """The whole example has at most 60 lines, and the algorithm at most 40."""
    source = (EXAMPLES / "custom_algorithm.py").read_text()
    assert len(source.splitlines()) <= 60
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.decorator_list]
    assert [node.name for node in functions] == ["best_of_group", "soft_clip"]
    assert sum(node.end_lineno - node.lineno + 2 for node in functions) <= 40
