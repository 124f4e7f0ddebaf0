"""The load-balancing loss of a batch is the model's own, on the same rows without padding."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from burnish import forward
from burnish.models.forward import install_forward
from burnish.models.introspect import RouterSpec, inspect_router
from burnish.models.layout import RowOutputs
from burnish.models.routing import load_balancing_loss
from burnish.types import TokenBatch
from conftest import make_model

EXPERTS, TOP_K = 4, 2
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "num_experts_per_tok": TOP_K,
}  # fmt: skip
FAMILIES = {
    "mixtral": {"num_local_experts": EXPERTS},
    "qwen2_moe": {"num_experts": EXPERTS, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {"num_experts": EXPERTS, "moe_intermediate_size": 16, "head_dim": 8},
    "olmoe": {"num_experts": EXPERTS},
    "gpt_oss": {"num_local_experts": EXPERTS, "head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "granitemoe": {"num_local_experts": EXPERTS},
    "phimoe": {"num_local_experts": EXPERTS},
    "qwen3_5_moe_text": {
        "num_experts": EXPERTS, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "head_dim": 8,
        "layer_types": ["full_attention", "full_attention"],
    },
}  # fmt: skip
PROMPTS = [[11, 12, 13, 14], [21, 22]]
COMPLETIONS = [[31, 32, 33], [41], [51, 52]]
PROMPT_INDEX = [0, 0, 1]
ROWS = [PROMPTS[p] + c for p, c in zip(PROMPT_INDEX, COMPLETIONS, strict=True)]


def make_mixture(family: str, dtype: torch.dtype = torch.float32, **overrides):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{**SIZES, **FAMILIES.get(family, {}), **overrides})
    experts = {"experts_implementation": "eager"} if dtype == torch.float64 else {}  # the default knows no float64
    return AutoModelForCausalLM.from_config(config, dtype=dtype, **experts).eval()


def make_batch(*, padding_id: int = 0, extra_padding: int = 0) -> TokenBatch:
    width, length = 4 + extra_padding, 3 + extra_padding
    completion_mask = torch.tensor([[t < len(c) for t in range(length)] for c in COMPLETIONS])
    return TokenBatch(
        prompt_ids=torch.tensor([[padding_id] * (width - len(p)) + p for p in PROMPTS]),
        prompt_mask=torch.tensor([[t >= width - len(p) for t in range(width)] for p in PROMPTS]),
        completion_ids=torch.tensor([c + [padding_id] * (length - len(c)) for c in COMPLETIONS]),
        completion_mask=completion_mask,
        loss_mask=completion_mask & (torch.arange(length) != 1),  # what is not trained is routed all the same
        prompt_index=torch.tensor(PROMPT_INDEX),
        row_id=torch.arange(3),
    )


def take_row(batch: TokenBatch, row: int) -> TokenBatch:
    per_row = ("completion_ids", "completion_mask", "loss_mask", "prompt_index", "row_id")
    return replace(batch, **{name: batch[name][[row]] for name in per_row})


def loss_of_unpadded_rows(model) -> torch.Tensor:
    """E sum_e (share of tokens that chose e) (mean probability of e), from each row's router logits alone."""
    outputs = [model(torch.tensor([ids]), output_router_logits=True, use_cache=False) for ids in ROWS]
    probs = torch.cat([logits.float().softmax(-1) for output in outputs for logits in output.router_logits])
    chosen = torch.zeros_like(probs).scatter(1, probs.topk(TOP_K).indices, 1.0)
    return EXPERTS * (chosen.mean(0) * probs.mean(0)).sum()


@pytest.mark.parametrize(
    ("logits", "expected"),
    [([[1, 0], [0, 1], [9, 0]], 1.0), ([[1, 0], [1, 0], [0, 9]], 1.5), ([[1, 0], [1, 0], [0, -9]], 1.5)],
    ids=["balanced", "all to one", "padding elsewhere"],
)
def test_two_tokens_by_hand(logits, expected):
    """E = 2, k = 1, probabilities 3/4 and 1/4; the third token is padding.

    Balanced: 2 (1/2 1/2 + 1/2 1/2) = 1. All to the first: 2 (1 x 3/4 + 0 x 1/4) = 3/2.
    """
    router_logits = (math.log(3.0) * torch.tensor(logits, dtype=torch.float64),)
    rows = RowOutputs(torch.zeros(1, 2, 1), torch.tensor([[1, 1, 0]]), router_logits)
    found = load_balancing_loss(RouterSpec(load_balancing_loss_func, 2, 1), rows)
    assert float(found) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_value_and_gradient_are_those_of_unpadded_rows(family):
    """Three rows of different lengths, padded on both sides, against the formula written out."""
    model, plain = make_mixture(family), make_mixture(family)
    install_forward(model)
    stats = forward(model, make_batch(extra_padding=2), needs=("aux_loss",))
    assert stats.aux_loss.shape == ()
    expected = loss_of_unpadded_rows(plain)
    torch.testing.assert_close(stats.aux_loss, expected, rtol=1e-6, atol=1e-6)
    stats.aux_loss.backward()
    expected.backward()
    moved = 0
    for (name, mine), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)
        moved += other.grad is not None and bool(other.grad.any())
    assert moved > 4


@pytest.mark.parametrize("family", FAMILIES)
def test_one_row_is_what_the_plain_model_reports(family):
    model = make_mixture(family)
    install_forward(model)
    with torch.no_grad():
        for row, ids in enumerate(ROWS):
            own = model(torch.tensor([ids]), output_router_logits=True).aux_loss
            found = forward(model, take_row(make_batch(extra_padding=1), row), needs=("aux_loss",)).aux_loss
            assert float(found) == pytest.approx(float(own), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_changes_no_other_statistic(family):
    model = make_mixture(family)
    install_forward(model)
    with torch.no_grad():
        plain, with_loss = (forward(model, make_batch(), needs=needs) for needs in ((), ("aux_loss",)))
    assert plain.aux_loss is None
    assert torch.equal(plain.logps, with_loss.logps)
    assert dict(with_loss.extra) == {}


@torch.no_grad()
def test_padding_content_changes_nothing():
    model = make_mixture("mixtral")
    install_forward(model)
    clean, garbage = (forward(model, make_batch(padding_id=i), needs=("aux_loss",)).aux_loss for i in (0, 63))
    assert torch.equal(clean, garbage)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_autocast(family):
    """Value near that of float32, gradients of every router, all finite."""
    model = make_mixture(family).train()
    install_forward(model)
    with torch.no_grad():
        exact = forward(model, make_batch(), needs=("aux_loss",)).aux_loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stats = forward(model, make_batch(), needs=("aux_loss", "entropy"))
    assert stats.aux_loss.dtype == torch.float32
    assert stats.aux_loss.item() == pytest.approx(exact.item(), rel=0.1)
    (stats.aux_loss - stats.logps.sum() + stats.entropy.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def enable_checkpointing(model, *, use_reentrant: bool) -> None:
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # renamed in transformers 5.23
    next(getattr(model, name) for name in names if hasattr(model, name))({"use_reentrant": use_reentrant})


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_gradient_checkpointing_changes_nothing(family):
    plain, checkpointed = (make_mixture(family, torch.float64).train() for _ in range(2))
    enable_checkpointing(checkpointed, use_reentrant=False)
    for model in (plain, checkpointed):
        install_forward(model, prefix_sharing="off")
        stats = forward(model, make_batch(), needs=("aux_loss",))
        (stats.aux_loss - stats.logps.sum()).backward()
    for mine, other in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=1e-12)


def test_a_loss_without_its_gradient_is_refused():
    """Reentrant checkpointing runs the routers without gradient: the loss would be a number that trains nothing."""
    model = make_mixture("mixtral").train()
    install_forward(model)
    enable_checkpointing(model, use_reentrant=True)
    with pytest.raises(ValueError, match="has no gradient: reentrant activation checkpointing"):
        forward(model, make_batch(), needs=("aux_loss",))
    with torch.no_grad():
        assert forward(model.eval(), make_batch(), needs=("aux_loss",)).aux_loss.item() > 0


def test_a_dense_model_has_none():
    model = make_model()
    install_forward(model)
    with pytest.raises(
        ValueError, match="aux_loss is the load-balancing loss of a mixture of experts; LlamaForCausalLM"
    ):
        forward(model, make_batch(), needs=("aux_loss",))


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("qwen3_moe", {"mlp_only_layers": [0, 1]}),
        ("glm4_moe", {"n_routed_experts": 4, "moe_intermediate_size": 16, "head_dim": 8, "first_k_dense_replace": 1}),
        ("doge", {"is_moe": True, "num_experts": 16}),
    ],
    ids=["no layer is a mixture", "no loss in the family", "a loss of other sizes"],
)
def test_families_without_a_known_loss(family, overrides):
    """They train as before; the loss alone is refused."""
    model = make_mixture(family, **overrides)
    assert inspect_router(model) is None
    install_forward(model)
    assert forward(model, make_batch()).logps.isfinite().all()
    with pytest.raises(ValueError, match="reports no such loss"):
        forward(model, make_batch(), needs=("aux_loss",))


class Derived(MixtralForCausalLM):
    """A user's class in a module of its own."""


class Doubled(MixtralForCausalLM):
    """A model whose loss is not what its family's function says."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.aux_loss = None if output.aux_loss is None else 2 * output.aux_loss
        return output


def test_the_loss_is_the_models_own_or_none():
    config = MixtralConfig(**SIZES, num_local_experts=EXPERTS)
    assert inspect_router(Derived(config)) == RouterSpec(load_balancing_loss_func, EXPERTS, TOP_K)
    assert inspect_router(Doubled(config)) is None


def test_inspection_keeps_the_mode():
    model = make_mixture("mixtral").train()
    assert inspect_router(model) is not None
    assert all(module.training for module in model.modules())
