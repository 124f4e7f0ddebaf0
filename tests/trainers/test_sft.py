"""SFT: the mean over the trained tokens of a step, however the step is cut."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
sys.path.insert(0, str(Path(__file__).parent))
from answer_training import make_trainer
from training import relative_distance, step_gradients

from burnish import SFTConfig, SFTTrainer
from burnish.data.errors import DataError
from conftest import make_model, make_rows, make_tokenizer

TURNS = [
    {"role": "user", "content": "Sky?"},
    {"role": "assistant", "content": "blue"},
    {"role": "user", "content": "Sea?"},
    {"role": "assistant", "content": "green"},
]


@pytest.mark.parametrize("loss", ["nll", "dft"])
def test_the_loss_is_that_of_plain_logits(tmp_path, loss):
    """Of two rows the mean over all trained tokens, from the model's own logits, to 1e-12."""
    rows = [{"prompt": "Sky?", "completion": " blue"}, {"prompt": "The longer question", "completion": " yes, it is"}]
    trainer = make_trainer("sft", tmp_path, rows=rows, loss_type=loss, max_steps=1)
    model, tokenizer = make_model(0, torch.float64), make_tokenizer()
    losses, right = [], []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
        logps = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        own = logps.gather(1, torch.tensor(answer)[:, None])[:, 0]
        losses.append(-own if loss == "nll" else -own * own.exp())
        right.append(logps.argmax(1) == torch.tensor(answer))
    trainer.train()
    (line,) = [line for line in trainer.state.log_history if "grad_norm" in line]
    assert line["loss"] == pytest.approx(torch.cat(losses).mean().item(), abs=1e-12)
    assert line["mean_token_accuracy"] == pytest.approx(torch.cat(right).double().mean().item(), abs=1e-12)
    assert line["num_tokens"] == 4 + 6 + 19 + 12
    assert line["entropy"] > 0


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """Of a training in whole steps."""
    return step_gradients(make_trainer("sft", tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize(
    "options",
    [
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        {"token_budget": 100},
        {"pad_to_multiple_of": 16, "prefix_sharing": "off"},
    ],
    ids=["accumulation", "budget", "padding"],
)
def test_cutting_a_step_changes_no_gradient(tmp_path, gradients, options):
    cut = step_gradients(make_trainer("sft", tmp_path, **options))
    assert len(gradients) == len(cut) == 4
    assert max(map(relative_distance, cut, gradients)) < 1e-11


def trained(rows, **options) -> list[str]:
    """What is trained of each row, as text."""
    trainer = SFTTrainer(make_model(), SFTConfig(**options), train_dataset=rows, processing_class=make_tokenizer())
    batch = trainer.data_collator(list(trainer.train_dataset))
    return [make_tokenizer().decode(ids[mask]) for ids, mask in zip(batch.completion_ids, batch.loss_mask, strict=True)]


def test_what_is_trained(tmp_path):
    """Answers alone; with the switches off, all but the first token."""
    options = {"output_dir": str(tmp_path)}
    chat = "user\nSky?<|im_end|>\n<|im_start|>assistant\nblue<|im_end|>\n<|im_start|>user\nSea?<|im_end|>\n"
    assert trained([{"messages": TURNS}], **options) == ["blue<|im_end|>green<|im_end|>"]
    assert trained([{"messages": TURNS}], assistant_only_loss=False, **options) == [
        f"{chat}<|im_start|>assistant\ngreen<|im_end|>"
    ]
    assert trained([{"prompt": "Sky?", "completion": " blue"}], **options) == [" blue<|im_end|>"]
    assert trained([{"prompt": "Sky?", "completion": " blue"}], completion_only_loss=False, **options) == [
        "ky? blue<|im_end|>"
    ]
    assert trained([{"text": "Hello"}], **options) == ["ello<|im_end|>"]
    assert trained(make_rows(1), **options) == ["a long walk home is blue.<|im_end|>"]


def test_held_out_rows_and_weights(tmp_path):
    """The held-out loss is one sum over all tokens; a row of weight 2 counts twice."""
    twice = [{"text": "one"}, {"text": "two"}, {"text": "two"}]
    weighted = [{"text": "one", "weight": 1.0}, {"text": "two", "weight": 2.0}]
    losses = [
        make_trainer("sft", tmp_path / str(i), rows=rows, eval_rows=rows, per_device_eval_batch_size=i + 1).evaluate()
        for i, rows in enumerate([twice, weighted])
    ]
    assert losses[0]["eval_loss"] == pytest.approx(losses[1]["eval_loss"], abs=1e-12)


def test_an_adapter_learns(tmp_path):
    options = {"peft": {"type": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]}, "num_train_epochs": 8}
    trainer = make_trainer("sft", tmp_path, dtype=torch.float32, learning_rate=3e-2, **options)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "grad_norm" in line]
    assert losses[-1] < losses[0] - 0.3
    assert trainer.policy.num_parameters(only_trainable=True) < trainer.policy.num_parameters() / 10


def test_a_stream(tmp_path):
    from datasets import Dataset

    stream = Dataset.from_list([{"text": f"row {i}"} for i in range(8)]).to_iterable_dataset()
    trainer = make_trainer("sft", tmp_path, rows=stream, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_the_first_step_is_checked(tmp_path):
    trainer = make_trainer("sft", tmp_path)
    event = trainer.check_first_step(next(iter(trainer.get_train_dataloader())))
    assert event["ok"]
    assert event["max_difference"] < 1e-9
    assert trainer.describe_method()["losses"] == [{"name": "nll", "paper": None, "weight": 1.0}]


def test_packing_is_accepted_and_what_is_not_built_is_refused(tmp_path):
    SFTConfig(output_dir=str(tmp_path), packing=True, padding_free=True, eval_packing=True)
    for options in ({"packing_strategy": "wrapped"}, {"dataset_text_field": "body"}, {"eos_token": "</s>"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            SFTConfig(output_dir=str(tmp_path), **options)
    with pytest.raises(ValueError, match="formatting_func"):
        SFTTrainer(make_model(), SFTConfig(output_dir=str(tmp_path)), formatting_func=str, train_dataset=make_rows(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "nil"}, "unknown supervised loss 'nil', did you mean 'nll'"),
        ({"loss_type": lambda logps: logps.sum()}, "returned \\(\\) where \\(2, 3\\) was asked for"),
        ({"loss_kwargs": {"alpha": 1}}, "alpha"),
    ],
    ids=["name", "shape", "unread"],
)
def test_losses_that_cannot_be(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer("sft", tmp_path, **options)


def test_rows_without_an_answer(tmp_path):
    with pytest.raises(DataError, match="This method reads messages, or prompt and completion, or text"):
        make_trainer("sft", tmp_path, rows=[{"question": "x", "answer": "y"}])
    with pytest.raises(DataError, match="Rows of token ids \\(input_ids\\) are not built"):
        make_trainer("sft", tmp_path, rows=[{"input_ids": [1, 2]}])
