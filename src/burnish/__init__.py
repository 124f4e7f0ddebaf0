"""Burnish aligns language models: exact, light and readable. Public names are imported when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.advantages import advantage
    from burnish.generation.base import Generator, Prompt, SamplingParams
    from burnish.generation.native import NativeGenerator
    from burnish.losses.kl import kl_estimator
    from burnish.losses.policy import policy_loss
    from burnish.losses.preference import preference_loss
    from burnish.losses.reward import reward_loss
    from burnish.models.forward import forward
    from burnish.models.reference import ModelReference, Reference
    from burnish.rewards.table import reward
    from burnish.trainers.base import PolicyTrainer
    from burnish.trainers.config import PolicyConfig, arg
    from burnish.trainers.dpo import DPOConfig, DPOTrainer
    from burnish.trainers.grpo import GRPOConfig, GRPOTrainer
    from burnish.trainers.kto import KTOConfig, KTOTrainer
    from burnish.trainers.online import OnlineTrainer
    from burnish.trainers.ppo import PPOConfig, PPOTrainer
    from burnish.trainers.reward import RewardConfig, RewardTrainer
    from burnish.trainers.rollout_options import OnlineConfig
    from burnish.trainers.sft import SFTConfig, SFTTrainer
    from burnish.types import (
        Answers,
        Completion,
        JudgedLogps,
        LossOutput,
        Mean,
        PairLogps,
        PairScores,
        PolicyTokens,
        PreferenceBatch,
        RewardTable,
        RolloutBatch,
        Term,
        TokenBatch,
        TokenLoss,
        TokenStats,
    )

__version__ = "0.1.0"

_HOME = {
    "Answers": "burnish.types",
    "Completion": "burnish.types",
    "DPOConfig": "burnish.trainers.dpo",
    "DPOTrainer": "burnish.trainers.dpo",
    "GRPOConfig": "burnish.trainers.grpo",
    "GRPOTrainer": "burnish.trainers.grpo",
    "Generator": "burnish.generation.base",
    "JudgedLogps": "burnish.types",
    "KTOConfig": "burnish.trainers.kto",
    "KTOTrainer": "burnish.trainers.kto",
    "LossOutput": "burnish.types",
    "Mean": "burnish.types",
    "ModelReference": "burnish.models.reference",
    "NativeGenerator": "burnish.generation.native",
    "OnlineConfig": "burnish.trainers.rollout_options",
    "OnlineTrainer": "burnish.trainers.online",
    "PPOConfig": "burnish.trainers.ppo",
    "PPOTrainer": "burnish.trainers.ppo",
    "PairLogps": "burnish.types",
    "PairScores": "burnish.types",
    "PolicyConfig": "burnish.trainers.config",
    "PolicyTokens": "burnish.types",
    "PolicyTrainer": "burnish.trainers.base",
    "PreferenceBatch": "burnish.types",
    "Prompt": "burnish.generation.base",
    "Reference": "burnish.models.reference",
    "RewardConfig": "burnish.trainers.reward",
    "RewardTable": "burnish.types",
    "RewardTrainer": "burnish.trainers.reward",
    "RolloutBatch": "burnish.types",
    "SFTConfig": "burnish.trainers.sft",
    "SFTTrainer": "burnish.trainers.sft",
    "SamplingParams": "burnish.generation.base",
    "Term": "burnish.types",
    "TokenBatch": "burnish.types",
    "TokenLoss": "burnish.types",
    "TokenStats": "burnish.types",
    "advantage": "burnish.advantages",
    "arg": "burnish.trainers.config",
    "forward": "burnish.models.forward",
    "kl_estimator": "burnish.losses.kl",
    "policy_loss": "burnish.losses.policy",
    "preference_loss": "burnish.losses.preference",
    "reward": "burnish.rewards.table",
    "reward_loss": "burnish.losses.reward",
}

__all__ = [
    "Answers",
    "Completion",
    "DPOConfig",
    "DPOTrainer",
    "GRPOConfig",
    "GRPOTrainer",
    "Generator",
    "JudgedLogps",
    "KTOConfig",
    "KTOTrainer",
    "LossOutput",
    "Mean",
    "ModelReference",
    "NativeGenerator",
    "OnlineConfig",
    "OnlineTrainer",
    "PPOConfig",
    "PPOTrainer",
    "PairLogps",
    "PairScores",
    "PolicyConfig",
    "PolicyTokens",
    "PolicyTrainer",
    "PreferenceBatch",
    "Prompt",
    "Reference",
    "RewardConfig",
    "RewardTable",
    "RewardTrainer",
    "RolloutBatch",
    "SFTConfig",
    "SFTTrainer",
    "SamplingParams",
    "Term",
    "TokenBatch",
    "TokenLoss",
    "TokenStats",
    "advantage",
    "arg",
    "forward",
    "kl_estimator",
    "policy_loss",
    "preference_loss",
    "reward",
    "reward_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'burnish' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
