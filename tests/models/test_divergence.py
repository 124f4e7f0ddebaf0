from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_head import WidestTensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from burnish.data.collate import PreferenceCollator
from burnish.models import head
from burnish.models.divergence import Teacher, divergence_from
from burnish.models.forward import forward, install_forward, teacher_of
from burnish.models.introspect import HeadSpec
from conftest import make_model

SPECS = [HeadSpec(), HeadSpec(scale=0.25), HeadSpec(softcap=2.0), HeadSpec(scale=1.5, softcap=3.0)]

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
    elif family == "multiplied":
        model = CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25))
    elif family == "divided":
        model = GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0))
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


def make_operands(
    rows: int = 5, vocabulary: int = 7, dtype: torch.dtype = torch.float64, size: float = 1.0
) -> tuple[list[torch.Tensor], Teacher]:
    """Hidden states (R, 4), weight and bias of a model, all with gradient, and a teacher of another width, (R, 1) rows."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, 4), (vocabulary, 4), (vocabulary,), (rows, 2, 3), (vocabulary, 3), (vocabulary,)]
    tensors = [size * torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    return [t.requires_grad_() for t in tensors[:3]], Teacher(*tensors[3:], HeadSpec())


def test_two_tokens_by_hand():
    """Teacher (3/4, 1/4), model (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2 = 0.1308; the gradient is p - q = (-1/4, 1/4)."""
    weight = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    hidden, mask = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    head_of_teacher = torch.tensor([[math.log(3.0)], [0.0]], dtype=torch.float64)
    teacher = Teacher(torch.ones(1, 2, 1, dtype=torch.float64), head_of_teacher, None, HeadSpec())
    found = divergence_from(teacher, mask, hidden, weight, None, spec=HeadSpec())
    assert found.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-15)
    found.sum().backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[-0.25], [0.25]], dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("teacher_spec", SPECS, ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_gradcheck(spec, teacher_spec):
    """Finite differences in hidden states, weight and bias; the teacher has its own width, scale and softcap."""
    operands, teacher = make_operands()
    teacher, mask = replace(teacher, spec=teacher_spec), torch.ones(5, 1, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda *inputs: divergence_from(teacher, mask, *inputs, spec=spec), operands)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("interpolation", [0.25, 1.0])
def test_between_teacher_and_model(interpolation, spec):
    """b KL(q || m) + (1 - b) KL(p || m) with m = b q + (1 - b) p, from whole distributions; at 1, KL(p || q)."""
    operands, teacher = make_operands()
    teacher, mask = replace(teacher, spec=spec, interpolation=interpolation), torch.ones(5, 1, dtype=torch.bool)

    def log_probs(hidden, weight, bias):
        logits = spec.scale * (hidden @ weight.T + bias)
        return (logits if spec.softcap is None else spec.softcap * torch.tanh(logits / spec.softcap)).log_softmax(-1)

    log_p, log_q = log_probs(*operands), log_probs(teacher.hidden[:, 0], teacher.weight, teacher.bias)
    p, q = log_p.exp(), log_q.exp()
    m = interpolation * q + (1 - interpolation) * p
    expected = (1 - interpolation) * (p * (log_p - m.log())).sum(1) + interpolation * (q * (log_q - m.log())).sum(1)
    if interpolation == 1:
        expected = (p * (log_p - log_q)).sum(1)
    torch.testing.assert_close(divergence_from(teacher, mask, *operands, spec=spec), expected, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *inputs: divergence_from(teacher, mask, *inputs, spec=spec), operands)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("interpolation", [0.0, 0.5, 1.0])
def test_finite_at_extremes(interpolation, spec):
    """Logits of thousands in float32: not negative, and nothing overflows."""
    operands, teacher = make_operands(dtype=torch.float32, size=1000.0)
    teacher = replace(teacher, interpolation=interpolation)
    divergence = divergence_from(teacher, torch.ones(5, 1, dtype=torch.bool), *operands, spec=spec)
    divergence.sum().backward()
    assert (divergence >= 0).all()
    assert all(tensor.isfinite().all() for tensor in (divergence, *(operand.grad for operand in operands)))


def test_no_rows():
    operands, teacher = make_operands(rows=0)
    divergence = divergence_from(teacher, torch.ones(0, 1, dtype=torch.bool), *operands, spec=HeadSpec())
    assert divergence.shape == (0,)
    divergence.sum().backward()
    assert not operands[1].grad.any()


def test_scratch_does_not_grow_with_the_rows(monkeypatch):
    """500 and 5,000 rows over a vocabulary of 2,053: nothing wider than one tile, forward and backward."""
    monkeypatch.setitem(head.TILE_BYTES, "cpu", 100 * 4 * 2053)
    widest = []
    for rows in (500, 5000):
        operands, teacher = make_operands(rows, 2053, torch.float32)
        teacher = replace(teacher, hidden=torch.ones(rows, 2, 4), weight=torch.ones(2053, 4))
        with WidestTensor(2053, 4) as seen:
            spec, mask = HeadSpec(softcap=30.0), torch.ones(rows, 1, dtype=torch.bool)
            divergence_from(teacher, mask, *operands, spec=spec).sum().backward()
        widest.append(seen.elements)
    assert widest == [100 * 2053] * 2


@pytest.mark.parametrize("family", ["plain", "softcap", "multiplied", "divided"])
def test_value_and_gradient_agree_with_whole_logits(family):
    model, teacher, batch = make(family, 0), make(family, 1), make_batch()
    for one in (model, teacher):
        install_forward(one, prefix_sharing="off")  # as `dense_kl` runs it
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
    assert not divergence.any()
    divergence.sum().backward()
    assert not any(parameter.grad.any() for parameter in model.parameters())


def test_zero_outside_the_loss_mask_and_nothing_flows_there():
    """The chosen row's second token and the padding of the shorter row are not trained."""
    model, teacher, batch = make("plain", 0), make("plain", 1), make_batch()
    for one in (model, teacher):
        install_forward(one)
    divergence = forward(model, batch, needs=("divergence",), teacher=teacher_of(teacher, batch)).extra["divergence"]
    assert divergence.dtype == torch.float64
    assert not divergence[~batch.loss_mask].any()
    assert (divergence[batch.loss_mask] > 0).all()
    assert not teacher_of(teacher, batch).hidden.requires_grad


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
    with pytest.raises(ValueError, match=r"interpolation=1.5; allowed: 0, KL\(teacher \|\| model\), to 1"):
        replace(other, interpolation=1.5)
    with pytest.raises(ValueError, match=r"of another batch: \(4, 3\) rows and states, expected \(4, 4\)"):
        forward(model, batch, needs=("divergence",), teacher=replace(other, hidden=other.hidden[:, 1:]))
