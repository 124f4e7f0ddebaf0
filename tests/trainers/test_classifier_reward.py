"""A sequence classifier as the reward of a GRPO run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from online_training import make_online_trainer, make_prompts, near_wanted, step_lines

from conftest import make_tokenizer


def make_judge() -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_labels=1
    )
    return LlamaForSequenceClassification(config).eval()


def judged(row: dict) -> float:
    """The judge's logit of a row's whole conversation, by itself."""
    messages = [*make_prompts()[row["row"]]["prompt"], {"role": "assistant", "content": row["completion"]}]
    ids = make_tokenizer().apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        return make_judge()(ids).logits.item()


@pytest.mark.parametrize("kind", ["loaded", "by path"])
def test_a_classifier_beside_a_function(tmp_path, kind):
    """Its logit of prompt and answer is the reward, and what it says moves the policy."""
    judge, tokenizers = make_judge(), [None, make_tokenizer()]
    if kind == "by path":
        judge.save_pretrained(tmp_path / "judge")
        make_tokenizer().save_pretrained(tmp_path / "judge")
        judge, tokenizers = str(tmp_path / "judge"), None
    options = {"reward_funcs": [near_wanted, judge], "reward_weights": [0.0, 1.0], "max_steps": 2}
    trainer = make_online_trainer(tmp_path / "run", reward_processing_classes=tokenizers, **options)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    name = trainer.scorer.names[1]
    rows = trainer.round_report.latest
    assert [row[f"rewards/{name}"] for row in rows] == pytest.approx([judged(row) for row in rows], abs=1e-5)
    assert [row["reward"] for row in rows] == pytest.approx([row[f"rewards/{name}"] for row in rows])
    assert step_lines(trainer)[-1][f"rewards/{name}/mean"] == pytest.approx(sum(r["reward"] for r in rows) / 16)
    assert any(not torch.equal(tensor, before[key]) for key, tensor in trainer.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in trainer.scorer.models[name].model.parameters())
