from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from reward_rounds import make_answers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification

sys.path.insert(0, str(Path(__file__).parents[1] / "trainers"))
from reward_training import make_trainer, scores_of

from burnish.models.adapters import adapt
from burnish.rewards import Scorer
from burnish.rewards.models import ClassifierReward, RunningMoments
from conftest import make_model, make_rows, make_tokenizer


def make_classifier(num_labels: int = 1, **settings) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        num_labels=num_labels,
        **settings,
    )
    return LlamaForSequenceClassification(config)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A classifier with its tokenizer beside it."""
    directory = tmp_path_factory.mktemp("models") / "judge"
    make_classifier().save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return str(directory)


def by_hand(text: str) -> float:
    ids = make_tokenizer()(text, return_tensors="pt")["input_ids"]
    model = make_classifier().eval()
    return model(ids).logits[0, 0].item()


def score(choice, answers=None, **settings):
    scorer = Scorer(choice, **settings)
    return scorer.score(make_answers() if answers is None else answers, num_tokens=8)


def test_scores_are_the_logits_of_prompt_and_answer(place):
    """Whatever the batches: each row alone, two together, all at once."""
    answers = make_answers(["4", "a longer answer", "", "6 or 7"])
    expected = [by_hand(prompt + text) for prompt, text in zip(answers.prompts, answers.completions, strict=True)]
    for max_tokens in (1, 40, 10_000):
        table, log = score(place, answers, options={"judge": {"max_tokens": max_tokens}})
        assert table.names == ("judge",)
        assert table.rewards[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
        assert log.metrics["reward_truncated/judge"].total.item() == 0


def test_messages_go_through_the_classifiers_own_template():
    tokenizer = make_tokenizer("{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}")
    table, _ = score(make_classifier(), make_answers(["4"], conversational=True), processing_classes=tokenizer)
    assert table.rewards.item() == pytest.approx(by_hand("[user]Question 0[assistant]4"), abs=1e-6)


def test_messages_without_a_template_are_refused():
    with pytest.raises(ValueError, match=r"has no chat template.*reward_processing_classes"):
        score(make_classifier(), make_answers(conversational=True), processing_classes=make_tokenizer(None))


def test_long_rows_lose_their_beginning_and_are_counted(place):
    answers = make_answers(["4", "x" * 100])
    table, log = score(place, answers)
    assert table.rewards[1].item() == pytest.approx(by_hand("x" * 64), abs=1e-6)
    assert log.metrics["reward_truncated/judge"].total.item() == 0.5
    shorter, _ = score(place, answers, options={"judge": {"max_length": 3}})
    assert shorter.rewards[0].item() == pytest.approx(by_hand(" 04"), abs=1e-6)


def test_a_cut_row_keeps_the_token_that_it_begins_with():
    reward = ClassifierReward(make_classifier(), make_tokenizer())
    assert reward._cut([1, 60, 61, 62], 3) == [1, 61, 62]
    assert reward._cut([59, 60, 61, 62], 3) == [60, 61, 62]


def test_models_and_functions_together():
    table, _ = score(
        ["number", make_classifier(), lambda completions: [0] * len(completions)],
        processing_classes=[None, make_tokenizer(), None],
        weights=[1, 0.5, 1],
    )
    assert table.names == ("number", "LlamaForSequenceClassification", "lambda")
    assert table.rewards.shape == (4, 3)


def test_a_model_runs_in_this_thread_without_gradients():
    model = make_classifier()
    score(model, processing_classes=make_tokenizer(), timeout=0.001)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("choice", "settings", "message"),
    [
        (make_classifier(2), {"processing_classes": make_tokenizer()}, "has 2 labels"),
        (make_classifier(), {}, "is in memory only: pass reward_processing_classes"),
        (torch.nn.Linear(1, 1), {}, "Linear is none"),
        ("number", {"processing_classes": make_tokenizer()}, "'number', which is no model"),
        (["number", "number"], {"processing_classes": make_tokenizer()}, "has 1 entries for 2"),
    ],
)
def test_models_that_cannot_be_rewards(choice, settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Scorer(choice, **settings)


def test_a_language_model_is_no_classifier(tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is LlamaForCausalLM; it has to be a sequence classifier"):
        Scorer(str(tmp_path))


def test_a_classifier_without_its_head_is_refused(place, tmp_path):
    shutil.copytree(place, tmp_path / "judge")
    weights = load_file(tmp_path / "judge" / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "score" not in k}, tmp_path / "judge" / "model.safetensors")
    with pytest.raises(ValueError, match=r"comes without the weights \['score.weight'\]"):
        Scorer(str(tmp_path / "judge"))


def test_running_moments():
    """Scores 1, 2, 3: mean 2, standard deviation 1; frozen until the round is over."""
    moments = RunningMoments()
    scores = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    moments.collect(scores)
    assert moments.normalize(scores).tolist() == [1, 2, 3]
    moments.update(lambda sums: sums)
    assert moments.normalize(scores).tolist() == pytest.approx([-1, 0, 1])
    other = RunningMoments()
    other.load_state_dict(moments.state_dict())
    assert other.normalize(scores).tolist() == pytest.approx([-1, 0, 1])


def test_normalised_rewards_follow_past_rounds_and_not_evaluations(place):
    scorer, answers = Scorer(place, options={"judge": {"normalize": True}}), make_answers()
    raw, _ = scorer.score(answers, num_tokens=8)
    scorer.score(make_answers(["other"]), num_tokens=8, frozen=True)
    scorer.update(lambda sums: sums)
    state = scorer.state_dict()
    normal, _ = scorer.score(answers, num_tokens=8)
    expected = (raw.rewards - raw.rewards.mean()) / raw.rewards.std()
    assert torch.allclose(normal.rewards, expected, atol=1e-5)
    resumed = Scorer(place, options={"judge": {"normalize": True}})
    resumed.load_state_dict(state)
    assert torch.equal(resumed.score(answers, num_tokens=8)[0].rewards, normal.rewards)


@pytest.mark.parametrize("peft", [None, {"type": "lora", "r": 4, "target_modules": ["q_proj"]}], ids=["full", "lora"])
@pytest.mark.parametrize("is_chat", [True, False], ids=["chat", "text"])
def test_a_saved_reward_model_by_its_path(tmp_path, peft, is_chat):
    """What RewardTrainer saved says as a reward what it said to its trainer, to 1e-5: conversations and plain texts."""
    make_model(max_position_embeddings=256).save_pretrained(tmp_path / "base")
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "base")
    rows = make_rows(8) if is_chat else [{"prompt": "Sky? ", "chosen": "blue" * i, "rejected": "red"} for i in (1, 2)]
    trainer = make_trainer(
        tmp_path / "run", model=str(tmp_path / "base"), rows=rows, peft=peft, tokenizer=tokenizer, max_steps=3
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "judge"))
    expected = scores_of(trainer, rows)
    prompts = [row["prompt"] for row in rows for _ in range(2)]
    completions = [row[side] for row in rows for side in ("chosen", "rejected")]
    reward = ClassifierReward(str(tmp_path / "judge"))
    found = torch.tensor(reward(prompts, completions, append_eos=True, max_tokens=128))
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-5)
    assert reward.name == "judge"


def test_an_adapter_without_a_head_is_refused(tmp_path):
    make_model().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    model = adapt(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), {"r": 2, "target_modules": ["q_proj"]})
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"has no head, and .*base has none either"):
        ClassifierReward(str(tmp_path / "adapter"))
