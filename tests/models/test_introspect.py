from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from burnish.models.forward import forward, install_forward
from burnish.models.introspect import (
    HeadSpec,
    UnsupportedModelError,
    disable_dropout,
    end_token_ids,
    head_of,
    inspect_head,
    logits_of,
    num_dropouts,
    trunk_of,
)
from burnish.types import TokenBatch
from conftest import SMALL, make_model, make_tokenizer

GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
FAMILIES = {
    "llama": ({}, HeadSpec()),
    "qwen2": ({"tie_word_embeddings": True}, HeadSpec()),
    "qwen3": ({"head_dim": 8}, HeadSpec()),
    "gemma2": (
        {**GEMMA, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, "attn_implementation": "eager"},
        HeadSpec(softcap=3.0),
    ),
    "gemma3_text": (GEMMA, HeadSpec()),
    "granite": ({"logits_scaling": 4.0}, HeadSpec(scale=0.25)),
    "cohere2": ({"logit_scale": 0.125, "sliding_window": 8}, HeadSpec(scale=0.125)),
    "olmo2": ({}, HeadSpec()),
    "phi": ({}, HeadSpec()),
    "phi3": ({}, HeadSpec()),
    "mistral": ({"sliding_window": 8}, HeadSpec()),
    "smollm3": ({}, HeadSpec()),
    "gpt2": ({}, HeadSpec()),
}


def make_family(kind: str, **overrides):
    """A random model; what a fresh model has at 0 or 1 (norms, biases) is made random too.

    In float64, but for eager attention, which transformers computes in float32 with float64's smallest number as its
    mask: NaN wherever a row is padding.
    """
    torch.manual_seed(0)
    settings, _ = FAMILIES.get(kind, ({}, None))
    settings = {**SMALL, **settings, **overrides}
    attention = settings.pop("attn_implementation", "sdpa")
    config = CONFIG_MAPPING[kind](**settings)
    dtype = torch.float32 if attention == "eager" else torch.float64
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_batch() -> TokenBatch:
    """Prompts of 9, 1 and 4 tokens with five completions of 1 to 7, longer than the sliding windows together."""
    generator = torch.Generator().manual_seed(3)
    lengths, sizes = [9, 1, 4], [7, 3, 5, 1, 6]
    prompt_mask = torch.tensor([[column >= 9 - n for column in range(9)] for n in lengths])
    completion_mask = torch.tensor([[column < n for column in range(7)] for n in sizes])
    return TokenBatch(
        prompt_ids=torch.randint(3, 64, (3, 9), generator=generator) * prompt_mask,
        prompt_mask=prompt_mask,
        completion_ids=torch.randint(3, 64, (5, 7), generator=generator) * completion_mask,
        completion_mask=completion_mask,
        loss_mask=completion_mask,
        prompt_index=torch.tensor([0, 0, 1, 2, 2]),
        row_id=torch.arange(5),
    )


@torch.no_grad()
def own_logps(model, batch: TokenBatch) -> torch.Tensor:
    """Row by row without padding, through the model's own logits and a full log-softmax."""
    logps = torch.zeros(batch.completion_ids.shape, dtype=torch.float64)
    for row, prompt in enumerate(batch.prompt_index.tolist()):
        start = batch.prompt_ids[prompt][batch.prompt_mask[prompt]]
        answer = batch.completion_ids[row][batch.completion_mask[row]]
        logits = type(model).forward(model, input_ids=torch.cat([start, answer])[None], use_cache=False).logits[0]
        log_probs = logits[len(start) - 1 : -1].double().log_softmax(-1)
        logps[row, : len(answer)] = log_probs.gather(1, answer[:, None]).squeeze(1)
    return logps


@pytest.mark.parametrize("kind", FAMILIES)
def test_families(kind):
    """The transform of the head is found, and the one forward gives the model's own log-probs."""
    model, batch = make_family(kind), make_batch()
    install_forward(model)
    assert inspect_head(model) == FAMILIES[kind][1]
    expected = own_logps(model, batch)
    with torch.no_grad():
        logps = forward(model, batch).logps
    assert expected[batch.loss_mask].abs().min() > 1e-3
    torch.testing.assert_close(logps.double(), expected, rtol=1e-5, atol=1e-5)


class Twisted(type(make_model())):
    """A model that changes its logits in a way that nobody announced."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        return CausalLMOutputWithPast(logits=output.logits + 0.1 * output.logits**2)


def test_a_head_that_is_not_understood_is_refused():
    plain = make_model()
    with pytest.raises(UnsupportedModelError, match=r"Twisted changes its logits in a way that is not known"):
        install_forward(Twisted(plain.config).eval())
    assert inspect_head(plain) == HeadSpec()


def test_a_model_whose_logits_are_nan_is_refused():
    model = make_model()
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(UnsupportedModelError, match="is off by nan"):
        inspect_head(model)


def test_a_scale_that_the_config_names_but_the_model_ignores():
    """The transform is what reproduces the logits, not what a field is called."""
    assert inspect_head(make_model(logit_scale=0.5, final_logit_softcapping=2.0)) == HeadSpec()


def test_inspection_keeps_the_mode():
    model = make_model().train()
    inspect_head(model)
    assert model.training
    assert all(module.training for module in model.modules())


def test_an_adapted_head_is_refused():
    model = make_model(tie_word_embeddings=False)
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(UnsupportedModelError, match=r"is Sequential, not a plain torch.nn.Linear"):
        head_of(model)


def test_an_encoder_decoder_is_refused():
    small = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    model = AutoModelForSeq2SeqLM.from_config(CONFIG_MAPPING["t5"](**small, decoder_start_token_id=0))
    with pytest.raises(UnsupportedModelError, match=r"T5ForConditionalGeneration has no decoder-only trunk"):
        trunk_of(model)


def test_logits_of_by_hand():
    """2 tanh(1.5 x 2 / 2) = 2 tanh 1.5 = 1.8102965073."""
    raw = torch.tensor(2.0, dtype=torch.float64)
    assert float(logits_of(HeadSpec(scale=1.5, softcap=2.0), raw)) == pytest.approx(1.8102965072897328, abs=1e-12)
    assert float(logits_of(HeadSpec(scale=1.5), raw)) == 3.0


DROPOUTS = {
    "llama": {"attention_dropout": 0.5},
    "phi3": {"attention_dropout": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"hidden_dropout": 0.5, "attention_dropout": 0.5, "attn_implementation": "eager"},
    "gpt_neox": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "granite": {"attention_dropout": 0.5},
    "starcoder2": {"attention_dropout": 0.5, "residual_dropout": 0.5, "embedding_dropout": 0.5},
}


@pytest.mark.parametrize("kind", DROPOUTS)
def test_disable_dropout(kind):
    """In training mode the model is random before, and gives what evaluation mode gives after."""
    model = make_family(kind, **DROPOUTS[kind])
    inputs = {"input_ids": torch.arange(1, 9)[None], "use_cache": False}
    with torch.no_grad():
        evaluated = model(**inputs).logits
        model.train()
        assert not torch.allclose(model(**inputs).logits, evaluated)
        assert disable_dropout(model) > 0
        assert num_dropouts(model) == 0
        torch.testing.assert_close(model(**inputs).logits, evaluated)
    assert disable_dropout(model) == 0


def test_a_model_without_dropout_counts_none():
    assert num_dropouts(make_model()) == 0


def test_end_token_ids():
    """The tokenizer's end of sequence first, then the generation config's, each once."""
    model, tokenizer = make_model(), make_tokenizer()
    assert end_token_ids(model, tokenizer) == (2,)
    model.generation_config = GenerationConfig(eos_token_id=[7, 2, 9])
    assert end_token_ids(model, tokenizer) == (2, 7, 9)
    model.generation_config = GenerationConfig(eos_token_id=7)
    assert end_token_ids(model, tokenizer) == (2, 7)
    model.generation_config = None
    assert end_token_ids(model, tokenizer) == (2,)
