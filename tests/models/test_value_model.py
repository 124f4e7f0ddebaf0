from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from burnish.models.adapters import adapt, plain_model
from burnish.models.head_layer import UnsupportedModelError
from burnish.models.value import install_values, load_value_model, row_scores, token_values
from burnish.types import TokenBatch
from conftest import TINY, make_model, make_tokenizer

PROMPTS = [[11, 12, 13, 14, 15], [21]]
COMPLETIONS = [[31, 32, 33], [41], [51, 52, 53, 54], []]
PROMPT_INDEX = [0, 0, 1, 1]
FAMILIES = ("Llama", "Qwen2", "Gemma3Text")


def make_batch(*, padding_id: int = 0) -> TokenBatch:
    """Two prompts of different lengths and four completions, one of them empty."""
    completions = torch.tensor([c + [padding_id] * (4 - len(c)) for c in COMPLETIONS])
    mask = torch.tensor([[True] * len(c) + [False] * (4 - len(c)) for c in COMPLETIONS])
    return TokenBatch(
        prompt_ids=torch.tensor([[padding_id] * (5 - len(p)) + p for p in PROMPTS]),
        prompt_mask=torch.tensor([[False] * (5 - len(p)) + [True] * len(p) for p in PROMPTS]),
        completion_ids=completions,
        completion_mask=mask,
        loss_mask=mask & False,  # which tokens a policy would train is no matter here
        prompt_index=torch.tensor(PROMPT_INDEX),
        row_id=torch.tensor([0, 0, 1, 1]),
    )


def family(name: str) -> transformers.PreTrainedModel:
    """A tiny random causal model of one family."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**TINY, head_dim=8)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def critic():
    model = load_value_model(make_model(dtype=torch.float64), tokenizer=make_tokenizer())
    install_values(model)
    return model


@torch.no_grad()
def plain_scores(model, rows: list[list[int]]) -> torch.Tensor:
    """What the plain class says of token ids, padded on the right, as a user would call it."""
    pad = model.config.pad_token_id
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    return model(input_ids=ids, attention_mask=(ids != pad).long()).logits[:, 0]


def whole_rows() -> list[list[int]]:
    return [PROMPTS[p] + completion for p, completion in zip(PROMPT_INDEX, COMPLETIONS, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_the_score_is_the_plain_classs(name):
    """Of each row, and of each beginning of it: the value before token t is the score of the text up to it."""
    model = load_value_model(family(name), tokenizer=make_tokenizer())
    install_values(model)
    batch = make_batch()
    values = token_values(model, batch)
    assert values.shape == (4, 5)
    torch.testing.assert_close(row_scores(values, batch), plain_scores(model, whole_rows()), rtol=0, atol=1e-5)
    for row, (prompt, completion) in enumerate(zip(PROMPT_INDEX, COMPLETIONS, strict=True)):
        for length in range(len(completion) + 1):
            alone = plain_scores(model, [PROMPTS[prompt] + completion[:length]])
            torch.testing.assert_close(values[row, length], alone[0], rtol=0, atol=1e-5)
        assert not values[row, len(completion) + 1 :].any()


@torch.no_grad()
def test_padding_content_changes_nothing(critic):
    clean = token_values(critic, make_batch())
    assert torch.equal(token_values(critic, make_batch(padding_id=99)), clean)


@pytest.mark.parametrize("layout", ["off", "cache", "tree"])
def test_gradients_are_those_of_the_plain_class(critic, layout):
    """With a shared prompt computed once or not; the norms of these models are float32 in any case."""
    batch, plain = make_batch(), copy.deepcopy(critic)
    assert install_values(critic, prefix_sharing=layout).layout == ("rows" if layout == "off" else layout)
    row_scores(token_values(critic, batch), batch).sum().backward()
    for row in whole_rows():
        plain(input_ids=torch.tensor([row])).logits.sum().backward()
    for mine, other in zip(critic.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_trunk_in_bfloat16_has_a_float32_head():
    model = load_value_model(make_model(dtype=torch.bfloat16), tokenizer=make_tokenizer())
    install_values(model)
    assert (model.score.weight.dtype, next(model.model.parameters()).dtype) == (torch.float32, torch.bfloat16)
    batch = make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = token_values(model, batch)
    assert values.dtype == torch.float32
    assert not torch.equal(values, values.bfloat16().float())  # the sum of the head was not rounded
    torch.testing.assert_close(row_scores(values, batch), plain_scores(model, whole_rows()), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("head_init", "spread"), [("zeros", 0.0), ("normal", 33**-0.5)])
def test_a_fresh_head_is_seeded_and_nothing_else_is(head_init, spread):
    causal = make_model()
    random = torch.get_rng_state()
    first, same, other = (
        load_value_model(causal, tokenizer=make_tokenizer(), head_init=head_init, seed=seed).score.weight.detach()
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(first, same)
    assert torch.equal(first, other) is (head_init == "zeros")
    assert float(first.std()) == pytest.approx(spread, rel=0.3)


@torch.no_grad()
def test_from_a_causal_model_on_disk(tmp_path, capfd):
    """The same as from the model in memory, bit for bit, and nothing is said of the heads that differ."""
    causal = make_model()
    causal.save_pretrained(tmp_path)
    stored = load_value_model(str(tmp_path), tokenizer=make_tokenizer(), seed=3)
    in_memory = load_value_model(causal, tokenizer=make_tokenizer(), seed=3)
    assert capfd.readouterr().err.find("score") == -1
    for (name, mine), other in zip(stored.named_parameters(), in_memory.parameters(), strict=True):
        assert torch.equal(mine, other), name
    in_memory.model.layers[0].mlp.down_proj.weight.zero_()
    assert causal.model.layers[0].mlp.down_proj.weight.any()  # the trunk was copied


@torch.no_grad()
def test_saved_and_loaded(critic, tmp_path):
    """As the plain class, and by ours, with the same numbers; the head is not made anew."""
    critic.save_pretrained(tmp_path)
    expected = row_scores(token_values(critic, make_batch()), make_batch())
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64).eval()
    torch.testing.assert_close(plain_scores(plain, whole_rows()), expected, rtol=0, atol=1e-9)
    ours = load_value_model(str(tmp_path), tokenizer=make_tokenizer(), init_kwargs={"dtype": torch.float64}).eval()
    install_values(ours)
    assert torch.equal(row_scores(token_values(ours, make_batch()), make_batch()), expected)


@torch.no_grad()
def test_padding_gets_an_id_of_its_own():
    """A text that ends with the end token keeps its score at it, although the tokenizer pads with it."""
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = load_value_model(make_model(pad_token_id=2), tokenizer=tokenizer)
    install_values(model)
    assert model.config.pad_token_id == 0
    assert tokenizer.pad_token_id == 2
    batch = replace(make_batch(), completion_ids=torch.where(make_batch().completion_mask, 2, 2))
    rows = [PROMPTS[p] + [2] * len(c) for p, c in zip(PROMPT_INDEX, COMPLETIONS, strict=True)]
    torch.testing.assert_close(
        row_scores(token_values(model, batch), batch), plain_scores(model, rows), rtol=0, atol=1e-5
    )


def test_an_adapter_with_a_head_of_its_own(tmp_path):
    """`modules_to_save` trains a copy of the head; the values are those of the plain class around it."""
    make_model().save_pretrained(tmp_path / "base")
    base = load_value_model(str(tmp_path / "base"), tokenizer=make_tokenizer())
    options = {
        "type": "lora",
        "task_type": "SEQ_CLS",
        "r": 2,
        "modules_to_save": ["score"],
        "target_modules": ["q_proj"],
    }
    model = adapt(base, options)
    install_values(plain_model(model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    batch = make_batch()
    scores = row_scores(token_values(model, batch), batch)
    torch.testing.assert_close(scores.detach(), plain_scores(model, whole_rows()), rtol=0, atol=1e-5)
    scores.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        name for name, p in model.named_parameters() if p.requires_grad
    }
    model.save_pretrained(tmp_path / "adapter")
    again = load_value_model(str(tmp_path / "adapter"), tokenizer=make_tokenizer()).eval()
    install_values(plain_model(again))
    assert torch.equal(row_scores(token_values(again, batch), batch), scores)


def test_what_cannot_be_a_critic(tmp_path):
    tokenizer = make_tokenizer()
    several = AutoModelForSequenceClassification.from_config(make_model(num_labels=3).config)
    with pytest.raises(UnsupportedModelError, match="num_labels=3 has no head `score` of one number"):
        load_value_model(several, tokenizer=tokenizer)
    with pytest.raises(TypeError, match="model is int"):
        load_value_model(3, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="model_init_kwargs is for models given by name"):
        load_value_model(make_model(), tokenizer=tokenizer, init_kwargs={"dtype": torch.float32})
    with pytest.raises(ValueError, match="head_init='ones'; allowed: zeros, normal"):
        load_value_model(make_model(), tokenizer=tokenizer, head_init="ones")
