"""An algorithm of your own: an advantage and a policy loss, each a function under a name that options can choose.

Groups, ratios, accumulation, metrics, checkpoints and the run directory come from `GRPOTrainer`.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from burnish import GRPOConfig, GRPOTrainer, PolicyTokens, RewardTable, TokenLoss, advantage, policy_loss


@advantage("best_of_group")
def best_of_group(rewards: RewardTable, prompt_index: Tensor) -> Tensor:
    """1 for the best answer to each prompt, shared by those that are equally good; 0 for all others."""
    total = rewards.total().nan_to_num(-torch.inf)  # (N,)
    rivals = torch.where(prompt_index[:, None] == prompt_index, total, -torch.inf)  # (N, N)
    is_best = rivals == rivals.amax(1, keepdim=True)
    return (is_best.diagonal().float() / is_best.sum(1))[:, None]  # (N, 1)


@policy_loss("soft_clip", ratio="token", aggregation="token_mean")
def soft_clip(tokens: PolicyTokens, *, sharpness: float = 4.0) -> TokenLoss:
    """-A tanh(k (r - 1)) / k: the gradient fades as the ratio r of policy to old policy leaves 1."""
    gate = torch.tanh(sharpness * (tokens.required_log_ratio.exp() - 1))  # (N, T)
    return TokenLoss(losses=-tokens.advantages * gate / sharpness, metrics={"gate": gate.detach().abs()})


def prefers_c(completions: list[str], **_: Any) -> list[float]:
    """The share of an answer's words that are "c"."""
    return [answer.split().count("c") / max(len(answer.split()), 1) for answer in completions]


def main(**options: Any) -> GRPOTrainer:
    """Train a tiny random model to answer with "c"; `options` go to the config."""
    words = ["<end>", *"abcdefgh"]
    word_level = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<end>"))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_level, eos_token="<end>")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), eos_token_id=0, bos_token_id=None, **size))
    rows = [{"prompt": f"{first} {second}"} for first in "abcd" for second in "efgh"]
    rounds = {"num_generations": 8, "per_device_train_batch_size": 32, "steps_per_generation": 2}
    algorithm = {"advantage": "best_of_group", "loss_type": "soft_clip", "loss_kwargs": {"sharpness": 2.0}}
    run = {"max_steps": 24, "learning_rate": 1e-2, "max_completion_length": 6, "logging_steps": 1, "report_to": "none"}
    config = GRPOConfig(**{**rounds, **algorithm, **run, **options})
    trainer = GRPOTrainer(model, prefers_c, config, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
