from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

from burnish.data.collate import PreferenceCollator
from burnish.models import head
from burnish.models.forward import forward, install_forward, teacher_of
from conftest import make_model

SIZES = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.5,
}  # fmt: skip


def make_batch():
    row = {
        "row_id": 0,
        "prompt_input_ids": [11, 12, 13],
        "chosen_input_ids": [14, 15, 16],
        "chosen_loss_mask": [True, False, True],
        "rejected_input_ids": [17],
        "rejected_loss_mask": [True],
    }
    return PreferenceCollator(0)([row, {**row, "prompt_input_ids": [18, 20, 21], "rejected_input_ids": [19]}])


def make(family: str, seed: int):
    torch.manual_seed(seed)
    if family == "softcap":
        config = Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0, attn_implementation="eager")
        model = Gemma2ForCausalLM(config)
    elif family == "scale":
        model = CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25))
    else:
        return make_model(seed, torch.float64)
    return model.double().eval()


def dense_kl(model, teacher, batch) -> torch.Tensor:
    """(N, T) the same from whole logits of each row, by the models' own forward."""
    divergence = torch.zeros(batch.completion_ids.shape, dtype=torch.float64)
    for row in range(len(batch)):
        prompt = batch.prompt_ids[batch.prompt_index[row]][batch.prompt_mask[batch.prompt_index[row]]]
        ids = torch.cat([prompt, batch.completion_ids[row][batch.completion_mask[row]]])[None]
        log_p, log_q = (m(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for m in (model, teacher))
        per_token = (log_q.exp() * (log_q - log_p)).sum(-1)
        divergence = divergence.index_put((torch.tensor(row), torch.arange(len(per_token))), per_token)
    return divergence * batch.loss_mask


@pytest.mark.parametrize("family", ["plain", "softcap", "scale"])
def test_value_and_gradient_agree_with_whole_logits(family):
    model, teacher, batch = make(family, 0), make(family, 1), make_batch()
    for one in (model, teacher):
        install_forward(one)
    found = forward(model, batch, needs=("divergence",), teacher=teacher_of(teacher, batch)).extra["divergence"]
    weights = torch.rand(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (found * weights).sum().backward()
    mine = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert all(parameter.grad is None for parameter in teacher.parameters())
    model.zero_grad()
    expected = dense_kl(model, teacher, batch)
    (expected * weights).sum().backward()
    close = (
        {"rtol": 1e-5, "atol": 1e-7} if family != "plain" else {"rtol": 1e-8, "atol": 1e-11}
    )  # the others normalise in float32
    torch.testing.assert_close(found.detach(), expected.detach(), **close)
    assert float(found.detach().sum()) > 0.1
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(mine[name], parameter.grad, **close)


def test_a_model_does_not_diverge_from_itself():
    model, batch = make_model(0, torch.float64), make_batch()
    install_forward(model)
    divergence = forward(model, batch, needs=("divergence",), teacher=teacher_of(model, batch)).extra["divergence"]
    assert float(divergence.detach().abs().max()) < 1e-12
    divergence.sum().backward()
    assert all(float(p.grad.abs().max()) < 1e-12 for p in model.parameters())


def test_tiles_change_nothing(monkeypatch):
    model, teacher, batch = make_model(0, torch.float64), make_model(1, torch.float64), make_batch()
    for one in (model, teacher):
        install_forward(one)
    other = teacher_of(teacher, batch)
    whole = forward(model, batch, needs=("divergence",), teacher=other).extra["divergence"]
    monkeypatch.setattr(head, "MIN_TILE_ROWS", 1)
    monkeypatch.setitem(head.TILE_BYTES, "cpu", 4 * 259 * 2)
    assert head.tile_rows(259, "cpu") == 2
    cut = forward(model, batch, needs=("divergence",), teacher=other).extra["divergence"]
    torch.testing.assert_close(cut, whole, rtol=1e-12, atol=1e-14)


def test_it_works_under_autocast():
    model, teacher, batch = make_model(0), make_model(1), make_batch()
    for one in (model, teacher):
        install_forward(one)
    exact = forward(model, batch, needs=("divergence",), teacher=teacher_of(teacher, batch)).extra["divergence"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = forward(model, batch, needs=("divergence",), teacher=teacher_of(teacher, batch)).extra["divergence"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.02)


def test_what_cannot_be_compared_is_refused():
    model, batch = make_model(), make_batch()
    install_forward(model)
    with pytest.raises(ValueError, match="divergence compares two models: pass teacher="):
        forward(model, batch, needs=("divergence",))
    with pytest.raises(ValueError, match=r"unknown token statistics \['entropie'\]; known: entropy"):
        forward(model, batch, needs=("entropie",))
    other = teacher_of(model, batch)
    with pytest.raises(ValueError, match="the policy has 259 tokens, the reference 200"):
        forward(model, batch, needs=("divergence",), teacher=replace(other, weight=other.weight[:200]))
