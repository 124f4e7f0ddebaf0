"""RewardTrainer from outside: what it trains, saves, logs, accepts and refuses."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from burnish import LossOutput, PairScores, RewardConfig, RewardTrainer, reward_loss
from burnish.data.errors import DataError
from burnish.runtime.rundir import read_events
from conftest import TINY, make_rows, make_tokenizer

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from reward_training import conversations, graded_rows, make_trainer, scores_of
from training import relative_distance, step_gradients

FAMILIES = ("Llama", "Qwen2", "Gemma3Text")
LORA = {"type": "lora", "r": 4, "target_modules": ["q_proj", "down_proj"]}
SMALL = {**TINY, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 2}


def save_causal(directory: Path, family: str = "Llama") -> str:
    """A tiny causal model and its tokenizer on disk, which pad with their end-of-sequence token."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(getattr(transformers, f"{family}Config")(**SMALL)).save_pretrained(directory)
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(directory)
    return str(directory)


@torch.no_grad()
def plain_scores(model, directory: Path, rows: list[dict]) -> torch.Tensor:
    """As a user would: the saved tokenizer's chat template, one padded batch, the model's own call."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer.apply_chat_template(conversations(rows), padding=True, return_dict=True, return_tensors="pt")
    return model.eval()(**inputs).logits[:, 0]


def lines_of(trainer: RewardTrainer) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "grad_norm" in line]


@pytest.mark.parametrize(
    "family", [name if name == "Llama" else pytest.param(name, marks=pytest.mark.gallery) for name in FAMILIES]
)
def test_a_saved_model_is_a_plain_classifier_with_the_trainers_scores(tmp_path, family):
    base = save_causal(tmp_path / "base", family)
    trainer = make_trainer(tmp_path / "run", model=base, tokenizer=AutoTokenizer.from_pretrained(base))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    rows = make_rows(5)
    assert plain.config.num_labels == 1
    assert plain.config.pad_token_id not in (None, plain.config.eos_token_id)
    torch.testing.assert_close(
        plain_scores(plain, tmp_path / "saved", rows), scores_of(trainer, rows), rtol=0, atol=1e-5
    )
    (event,) = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["kind"] == "padding"]
    assert "padding is '<pad>', not '<|im_end|>'" in event["message"]


def test_an_adapter_is_saved_with_its_head(tmp_path):
    """As adapter, with the two facts that its files do not hold, and merged, which is a plain classifier."""
    base = save_causal(tmp_path / "base")
    trainer = make_trainer(
        tmp_path / "run", model=base, tokenizer=AutoTokenizer.from_pretrained(base), peft=LORA, learning_rate=1e-2
    )
    before = scores_of(trainer, make_rows(5))
    trainer.train()
    expected, saved = scores_of(trainer, make_rows(5)), tmp_path / "saved"
    assert not torch.allclose(before, expected, atol=1e-2)
    trainer.save_model(str(saved))
    logging.disable()  # transformers tells that the base model has no head
    try:
        pad = AutoTokenizer.from_pretrained(saved).pad_token_id
        adapted = AutoModelForSequenceClassification.from_pretrained(saved, num_labels=1, pad_token_id=pad)
    finally:
        logging.disable(logging.NOTSET)
    torch.testing.assert_close(plain_scores(adapted, saved, make_rows(5)), expected, rtol=0, atol=1e-5)
    trainer.model.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(plain_scores(merged, saved, make_rows(5)), expected, rtol=0, atol=1e-5)
    again = make_trainer(tmp_path / "again", model=str(saved), tokenizer=AutoTokenizer.from_pretrained(saved))
    torch.testing.assert_close(scores_of(again, make_rows(5)), expected, rtol=0, atol=1e-6)
    assert any("score" in name for name, p in again.model.named_parameters() if p.requires_grad)


def test_a_few_steps_equal_a_plain_loop(tmp_path):
    """The same tokens, the plain class, Bradley-Terry and AdamW written out: the same losses and weights."""
    rows, tokenizer = make_rows(8), make_tokenizer()
    options = {
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "prefix_sharing": "off",
        "lean_activations": "off",
    }
    trainer = make_trainer(tmp_path, rows=rows, max_steps=4, **options)
    plain = AutoModelForSequenceClassification.from_config(trainer.model.config).double()
    plain.load_state_dict(trainer.model.state_dict())
    order = [b for epoch in range(2) for b in order_of(trainer, epoch)]
    trainer.train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    for batch in order[:4]:
        texts = conversations([rows[i] for i in batch])
        inputs = tokenizer.apply_chat_template(texts, padding=True, return_dict=True, return_tensors="pt")
        scores = plain(**inputs, use_cache=False).logits[:, 0]
        loss = -logsigmoid(scores[0::2] - scores[1::2]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [line["loss"] for line in lines_of(trainer)] == pytest.approx(losses, rel=1e-9)
    for (name, mine), other in zip(trainer.model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9, msg=name)


def order_of(trainer: RewardTrainer, epoch: int) -> list[list[int]]:
    """The rows of each step of an epoch."""
    loader = trainer.get_train_dataloader()
    loader.set_epoch(epoch)
    return [batch.row_id[::2].tolist() for batch in loader]


@pytest.mark.parametrize(
    ("loss", "size"),
    [
        (["regression", "bradley_terry"], (1, 4)),
        pytest.param(["plackett_luce"], (1, 4), marks=pytest.mark.gallery),
        pytest.param(["plackett_luce"], (2, 2), marks=pytest.mark.gallery),
        pytest.param(["bradley_terry"], (2, 2), marks=pytest.mark.gallery),
    ],
)
def test_gradient_and_metrics_do_not_depend_on_micro_batches(tmp_path, loss, size):
    options = {"rows": graded_rows(6), "loss_type": loss, "center_rewards_coefficient": 0.1, "learning_rate": 0.0}
    whole = make_trainer(tmp_path / "whole", **options)
    cut = make_trainer(
        tmp_path / "cut", per_device_train_batch_size=size[0], gradient_accumulation_steps=size[1], **options
    )
    for mine, reference in zip(step_gradients(cut), step_gradients(whole), strict=True):
        assert relative_distance(mine, reference) < 1e-12
    left_out = ("step_time", "epoch", "min_reward", "max_reward")  # the smallest of a micro-batch is of its size
    for mine, reference in zip(lines_of(cut), lines_of(whole), strict=True):
        kept = {name: value for name, value in reference.items() if name not in left_out}
        assert {name: mine[name] for name in kept} == pytest.approx(kept, rel=1e-9, abs=1e-9)


def first_loss(tmp_path: Path, rows: list[dict], **options) -> float:
    """The loss of all rows before the first step."""
    trainer = make_trainer(tmp_path, rows=rows, per_device_train_batch_size=len(rows), max_steps=1, **options)
    trainer.train()
    return lines_of(trainer)[0]["loss"]


@pytest.mark.gallery
def test_what_rows_say_beside_the_preference(tmp_path):
    """Margins, ties and weights reach the loss: each is worked out from the scores of the same model."""
    rows = make_rows(4)
    scores = scores_of(make_trainer(tmp_path / "0"), rows)
    lead = (scores[0::2] - scores[1::2]).tolist()

    def nll(x: float) -> float:
        return math.log1p(math.exp(-x))

    margins = first_loss(tmp_path / "1", [{**row, "margin": float(i)} for i, row in enumerate(rows)])
    assert margins == pytest.approx(sum(nll(d - i) for i, d in enumerate(lead)) / 4, rel=1e-9)
    ties = first_loss(tmp_path / "2", [{**row, "tie": i < 2} for i, row in enumerate(rows)])
    halves = sum((nll(d) + nll(-d)) / 2 for d in lead[:2])
    assert ties == pytest.approx((halves + sum(map(nll, lead[2:]))) / 4, rel=1e-9)
    weights = first_loss(tmp_path / "3", [{**row, "weight": float(i)} for i, row in enumerate(rows)])
    assert weights == pytest.approx(sum(i * nll(d) for i, d in enumerate(lead)) / 6, rel=1e-9)
    smoothed = first_loss(tmp_path / "4", rows, label_smoothing=0.2)
    assert smoothed == pytest.approx(sum(0.8 * nll(d) + 0.2 * nll(-d) for d in lead) / 4, rel=1e-9)
    centered = first_loss(tmp_path / "5", rows, center_rewards_coefficient=0.01)
    sums = (scores[0::2] + scores[1::2]).square().mean().item()
    assert centered == pytest.approx(sum(map(nll, lead)) / 4 + 0.01 * sums, rel=1e-9)


@pytest.mark.gallery
def test_scores_are_no_margin_unless_asked_for(tmp_path):
    """TRL reads the column `margin` alone; a data set with scores has the same loss there and here."""
    rows = make_rows(4)
    scored = [{**row, "score_chosen": 4.0, "score_rejected": 1.0} for row in rows]
    plain = first_loss(tmp_path / "1", rows)
    assert first_loss(tmp_path / "2", scored) == plain
    with_margin = first_loss(tmp_path / "3", [{**row, "margin": 3.0} for row in rows])
    assert first_loss(tmp_path / "4", scored, margin_from_scores=True) == with_margin != plain


def test_regression_on_rows_with_weights(tmp_path):
    rows = [
        {**row, "score_chosen": 1.0, "score_rejected": -2.0, "weight": 1.0 + i} for i, row in enumerate(make_rows(3))
    ]
    scores = scores_of(make_trainer(tmp_path / "0"), make_rows(3)).view(3, 2)
    squares = (scores - torch.tensor([1.0, -2.0], dtype=torch.float64)).square().sum(1).tolist()
    expected = sum(weight * square for weight, square in zip((1, 2, 3), squares, strict=True)) / 12
    assert first_loss(tmp_path / "1", rows, loss_type="regression") == pytest.approx(expected, rel=1e-9)
    with pytest.raises(DataError, match=r"about the scores that rows carry(?s:.*)score_chosen"):
        make_trainer(tmp_path / "2", loss_type="regression")


def test_metrics_are_trls_and_more(tmp_path):
    trainer = make_trainer(tmp_path, eval_rows=make_rows(6))
    trainer.train()
    trls = {"accuracy", "margin", "min_reward", "mean_reward", "max_reward", "num_tokens"}
    own = {"calibration_error", "score_length_correlation", "length_difference", "truncated"}
    assert set(lines_of(trainer)[0]) >= trls | own
    found = trainer.evaluate()
    scores = scores_of(trainer, make_rows(6))
    right = (scores[0::2] > scores[1::2]).double()
    assert found["eval_accuracy"] == pytest.approx(right.mean().item())
    assert found["eval_mean_reward"] == pytest.approx(scores.mean().item(), abs=1e-9)
    assert found["eval_margin"] == pytest.approx((scores[0::2] - scores[1::2]).mean().item(), abs=1e-9)
    batch = trainer.data_collator(list(trainer._prepare_dataset(make_rows(6), "these")))
    lengths = batch.loss_mask.sum(1).double()
    correlation = torch.corrcoef(torch.stack([lengths, scores]))[0, 1].item()
    assert found["eval_score_length_correlation"] == pytest.approx(correlation, abs=1e-9)
    confidence = torch.sigmoid((scores[0::2] - scores[1::2]).abs())
    gaps = 0.0
    for low in (0.5, 0.6, 0.7, 0.8, 0.9):
        inside = (confidence >= low) & (confidence < low + 0.1)
        if inside.any():
            share = right[inside].mean()
            gaps += float(inside.sum() * (share - confidence[inside].mean()).abs()) / 6
            assert found[f"eval_reliability/{low * 100:.0f}-{low * 100 + 10:.0f}"] == pytest.approx(share.item())
    assert found["eval_calibration_error"] == pytest.approx(gaps, abs=1e-9)
    assert trainer.estimates["eval_accuracy"].weight == 6


def test_sources_have_accuracies_of_their_own(tmp_path):
    trainer = make_trainer(tmp_path, rows={"first": make_rows(4), "second": make_rows(8)[4:]})
    trainer.train()
    line = lines_of(trainer)[-1]
    assert {name for name in line if name.startswith(("accuracy/", "margin/"))} <= {
        f"{kind}/{source}" for kind in ("accuracy", "margin") for source in ("first", "second")
    }
    assert "accuracy/second" in line or "accuracy/first" in line


def test_the_first_step_is_checked_against_the_plain_class(tmp_path):
    class Wrong(RewardTrainer):
        def score(self, model, batch):
            found = super().score(model, batch)
            return PairScores(scores=found.scores + 1, pairs=found.pairs)

    for trainer_class, is_right in ((RewardTrainer, True), (Wrong, False)):
        directory = tmp_path / trainer_class.__name__
        make_trainer(directory, trainer_class=trainer_class, max_steps=1).train()
        (event,) = [e for e in read_events(directory / "events.jsonl") if e["kind"] == "first_step"]
        assert event["ok"] is is_right


def test_a_loss_of_ones_own(tmp_path):
    @reward_loss("hinge_of_scores")
    def hinge(scores: PairScores, *, gap: float = 1.0):
        return torch.relu(gap - scores.difference)

    trainer = make_trainer(tmp_path, loss_type=["hinge_of_scores"], loss_kwargs={"gap": 2.0}, max_steps=1)
    trainer.train()
    assert trainer.describe_method()["losses"] == [{"name": "hinge_of_scores", "paper": None, "weight": 1.0}]


def test_the_head_is_trained_whatever_the_adapter_says(tmp_path):
    from peft import LoraConfig

    for name, given in {"0": LORA, "1": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")}.items():
        trainer = make_trainer(tmp_path / name, peft=given, dtype=torch.float32)
        trained = [n for n, parameter in trainer.model.named_parameters() if parameter.requires_grad]
        assert sum("score" in n for n in trained) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "bradley"}, "unknown reward loss 'bradley'"),
        ({"loss_type": "plackett_luce", "label_smoothing": 0.1}, "label_smoothing=0.1 is set, but the reward loss"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5; allowed: 0 up to"),
        ({"head_init": "ones"}, "head_init='ones'; allowed: normal, zeros"),
        ({"center_rewards_coefficient": -1.0}, "center_rewards_coefficient=-1.0; allowed: 0 or more"),
        ({"loss_weights": [1.0, 2.0]}, "loss_weights has 2 numbers for 1 losses"),
        ({"pad_token": "<none>"}, "pad_token='<none>' is no token of the tokenizer"),
        ({"pad_token": "<|im_end|>"}, "pad_token='<|im_end|>' ends answers"),
        ({"loss_type": lambda scores: scores.difference.mean()}, r"returned \(\) for two pairs of four rows"),
    ],
)
def test_options_that_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **options)


def test_options_of_trl(tmp_path):
    config = RewardConfig(output_dir=str(tmp_path), activation_offloading=False, chat_template_path=None)
    assert (config.learning_rate, config.max_length, config.truncation_mode) == (1e-4, 1024, "keep_end")
    with pytest.raises(ValueError, match="chat_template_path='other' is an option of TRL"):
        RewardConfig(output_dir=str(tmp_path), chat_template_path="other")


def test_a_trainer_of_ones_own(tmp_path):
    """`loss` may be another one, on the same scores."""

    class Margin(RewardTrainer):
        def loss(self, model, batch):
            scores = self.score(model, batch)
            return LossOutput.of(torch.relu(1 - scores.difference), per="pair")

    trainer = make_trainer(tmp_path, trainer_class=Margin, max_steps=1)
    trainer.train()
    assert lines_of(trainer)[0]["loss"] > 0


def test_what_was_measured_once_is_not_carried_on(tmp_path):
    """Bins without a pair at the latest evaluation are not those of an earlier one."""
    trainer = make_trainer(tmp_path, eval_rows=make_rows(6), max_steps=1)
    trainer.evaluate()
    before = {name: estimate for name, estimate in trainer.estimates.items() if "reliability/" in name}
    with torch.no_grad():
        trainer.model.score.weight.mul_(1e3)
    trainer.evaluate()
    after = {name: estimate for name, estimate in trainer.estimates.items() if "reliability/" in name}
    assert sum(e.weight for e in before.values()) == sum(e.weight for e in after.values()) == 6
    assert set(after) == {"eval_reliability/90-100"} != set(before)
