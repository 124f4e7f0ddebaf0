"""The matrix of a head with an adapter on it: the log-probs and gradients are those of the adapter's own forward."""

from __future__ import annotations

import pytest
import torch
from peft import LoHaConfig, LoraConfig, TrainableTokensConfig, get_peft_model
from torch import nn

from burnish.models.adapters import adapt, plain_model
from burnish.models.forward import forward, install_forward
from burnish.models.head_layer import Head, UnsupportedModelError, head_matrix
from burnish.models.introspect import disable_dropout, head_of
from burnish.types import TokenBatch
from conftest import make_model

TIED = "ignore:Model has `tie_word_embeddings=True`"
HEADS = {
    "lora": LoraConfig(r=4, target_modules=["q_proj", "lm_head"]),
    "rslora": LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=["lm_head"]),
    "dora": LoraConfig(r=4, use_dora=True, target_modules=["v_proj", "lm_head"]),
    "copy": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "embedding": LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]),
    "tied lora": LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True),
    "tied copy": LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"], ensure_weight_tying=True
    ),
    "tied by itself": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], ensure_weight_tying=True),
    "tokens": LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[5, 40, 41]),
    "only tokens": TrainableTokensConfig(token_indices=[5, 40, 41]),
}


def make_batch() -> TokenBatch:
    """Two prompts of three tokens with three completions."""
    generator = torch.Generator().manual_seed(3)
    completion_ids = torch.randint(3, 60, (3, 5), generator=generator)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    return TokenBatch(
        prompt_ids=torch.randint(3, 60, (2, 3), generator=generator),
        prompt_mask=torch.ones(2, 3, dtype=torch.bool),
        completion_ids=completion_ids,
        completion_mask=mask,
        loss_mask=mask,
        prompt_index=torch.tensor([0, 1, 1]),
        row_id=torch.arange(3),
    )


def adapted_model(config, *, tied: bool, dtype=torch.float64):
    """A model with a trained adapter: random weights everywhere, in evaluation mode."""
    model = adapt(make_model(0, dtype, tie_word_embeddings=tied), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return model.eval()


def own_logps(model: nn.Module, batch: TokenBatch) -> torch.Tensor:
    """Log-probs of the trained tokens through the model's own forward, row by row."""
    rows = []
    for row in range(len(batch)):
        ids = torch.cat([batch.prompt_ids[batch.prompt_index[row]], batch.completion_ids[row]])
        logits = model(input_ids=ids[None]).logits[0, len(ids) - batch.completion_ids.shape[1] - 1 : -1]
        logps = logits.log_softmax(-1).gather(1, batch.completion_ids[row][:, None])[:, 0]
        rows.append(logps * batch.loss_mask[row])
    return torch.stack(rows)


@pytest.mark.filterwarnings(TIED)
@pytest.mark.parametrize(
    ("name", "tied"), [(name, tied) for name in HEADS for tied in (True, False) if tied or not name.startswith("tied")]
)
def test_log_probs_and_gradients_are_those_of_the_adapter(name, tied):
    model, batch = adapted_model(HEADS[name], tied=tied), make_batch()
    install_forward(plain_model(model), prefix_sharing="off")  # as `own_logps` runs it
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    scored = forward(model, batch, needs=["entropy"]).logps
    own = own_logps(model, batch)
    torch.testing.assert_close(scored, own, rtol=1e-10, atol=1e-10)
    weights = torch.linspace(-1, 1, own.numel(), dtype=own.dtype).view_as(own)
    gradients = torch.autograd.grad((scored * weights).sum(), trained, allow_unused=True)
    expected = torch.autograd.grad((own * weights).sum(), trained, allow_unused=True)
    for found, wanted in zip(gradients, expected, strict=True):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    with model.disable_adapter():
        torch.testing.assert_close(forward(model, batch).logps, own_logps(model, batch), rtol=1e-10, atol=1e-10)


def test_a_float32_adapter_on_a_bfloat16_head_keeps_its_small_steps():
    """A step that bfloat16 rounds away is in the head's float32 matrix."""
    model = adapt(make_model(0, torch.bfloat16, tie_word_embeddings=False), HEADS["lora"])
    layer = plain_model(model).get_output_embeddings()
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(1e-6)
    head = head_of(plain_model(model))
    assert head.weight.dtype == torch.float32
    assert not torch.equal(head.weight, layer.base_layer.weight.float())
    install_forward(plain_model(model))
    assert forward(model, make_batch()).logps.dtype == torch.float32


def test_a_plain_head_is_itself():
    layer = nn.Linear(3, 5)
    assert head_matrix(layer, owner="M") == Head(layer.weight, layer.bias)


def test_dropout_on_the_head_is_refused_until_it_is_off():
    config = LoraConfig(r=4, target_modules=["lm_head"], lora_dropout=0.1)
    model = adapt(make_model(tie_word_embeddings=False), config)
    with pytest.raises(UnsupportedModelError, match=r"lora_dropout=0.1, which drops hidden states.*disable_dropout"):
        head_of(plain_model(model))
    assert disable_dropout(model) == 1
    assert head_of(plain_model(model)).weight.shape == (259, 32)


def test_a_merged_adapter_is_refused():
    model = get_peft_model(make_model(tie_word_embeddings=False), LoraConfig(r=4, target_modules=["lm_head"]))
    model.merge_adapter()
    with pytest.raises(UnsupportedModelError, match="is merged: call unmerge_adapter"):
        head_of(plain_model(model))


def test_another_kind_on_the_head_is_refused_by_name():
    model = adapt(make_model(tie_word_embeddings=False), LoHaConfig(r=4, target_modules=["lm_head"]))
    with pytest.raises(UnsupportedModelError, match=r"adapter of the kind peft\.tuners\.loha.*modules_to_save="):
        head_of(plain_model(model))
