"""A trainer of your own: SimPO (2405.14734), which needs no reference and compares log-probs per token.

Accumulation, several processes, metrics, checkpoints and the run directory come from `PolicyTrainer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.nn.functional import logsigmoid
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from burnish import LossOutput, Mean, PolicyConfig, PolicyTrainer, PreferenceBatch, arg, forward


@dataclass
class SimPOConfig(PolicyConfig):
    """Options of `SimPOTrainer`, on top of `PolicyConfig`."""

    beta: float = arg(2.0, "Scale of the reward, which is beta times the log-prob per token.")
    gamma: float = arg(1.0, "Margin that the chosen reward should keep above the rejected one.")


class SimPOTrainer(PolicyTrainer):
    """loss = -log sigmoid(beta * (mean log-prob of chosen - mean log-prob of rejected) - gamma)."""

    config_class = SimPOConfig
    args: SimPOConfig

    def loss(self, model: nn.Module, batch: PreferenceBatch) -> LossOutput:
        """Terms and metrics of one micro-batch."""
        scores = forward(model, batch).sequence_mean()  # (N,)
        chosen, rejected = scores[batch.pairs].unbind(-1)  # (M,), (M,)
        logits = self.args.beta * (chosen - rejected) - self.args.gamma  # (M,)
        return LossOutput.of(
            -logsigmoid(logits), per="pair", metrics={"rewards/accuracies": Mean.of(chosen > rejected)}
        )


def main(**options: Any) -> SimPOTrainer:
    """Train a tiny random model on eight rows; `options` go to the config."""
    facts = [fact.split() for fact in ("sky blue green", "grass green blue", "snow white black", "coal black white")]
    words = ["<end>", "the", "is", *dict.fromkeys(word for fact in facts for word in fact)]
    word_level = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<end>"))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_level, eos_token="<end>")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), eos_token_id=0, bos_token_id=None, **size))
    rows = [{"prompt": f"the {a} is", "chosen": f" {b}", "rejected": f" {c}"} for a, b, c in facts * 2]
    settings = {"max_steps": 4, "learning_rate": 1e-3, "logging_steps": 1, "report_to": "none", **options}
    trainer = SimPOTrainer(model, SimPOConfig(**settings), train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
