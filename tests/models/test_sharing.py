"""Sharing a prompt changes nothing: states, statistics and every gradient are those of plain rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from burnish.models.forward import forward, install_forward
from burnish.models.introspect import trunk_of
from burnish.models.layout import LAYOUTS, run_rows
from burnish.models.sharing import Sharing, choose_sharing, run_trunk
from burnish.types import TokenBatch
from conftest import SMALL, make_model

WINDOWED = {"head_dim": 8, "sliding_window": 6}
GEMMA = {**WINDOWED, "query_pre_attn_scalar": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
EAGER = {"attn_implementation": "eager"}
# family -> (settings, the layout that it takes)
FAMILIES = {
    "llama": ({}, "tree"),
    "qwen2": ({"tie_word_embeddings": True}, "tree"),
    "qwen3": ({"head_dim": 8}, "tree"),
    "qwen3_moe": ({"head_dim": 8, "decoder_sparse_step": 1, **EXPERTS}, "tree"),
    "mistral": (WINDOWED, "tree"),
    "gemma2": ({**GEMMA, **EAGER}, "cache"),
    "gemma3_text": (GEMMA, "tree"),
    "gpt_oss": ({**WINDOWED, "num_local_experts": 4, "num_experts_per_tok": 2, **EAGER}, "cache"),
    "phi3": ({}, "tree"),
    "olmo2": ({}, "tree"),
    "granite": ({}, "tree"),
    "cohere2": (WINDOWED, "tree"),
    "smollm3": ({}, "tree"),
    "lfm2": ({"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}, "cache"),
    "qwen3_next": (
        {
            "head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "shared_expert_intermediate_size": 16,
            **EXPERTS,
        },
        "rows",
    ),
    "falcon_h1": (
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8},
        "rows",
    ),
    "gpt2": ({}, "tree"),
}


def make_family(kind: str):
    """In float64 where transformers can: not its masks of eager attention, nor its products of experts."""
    torch.manual_seed(0)
    settings = {**SMALL, **FAMILIES[kind][0]}
    attention = settings.pop("attn_implementation", "sdpa")
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**settings), attn_implementation=attention)
    is_narrow = attention == "eager" or "num_experts" in settings
    return model.to(torch.float32 if is_narrow else torch.float64).eval()


def make_batch(prompts=(9, 1, 4), completions=((0, 7), (1, 3), (0, 5), (2, 1), (2, 6))) -> TokenBatch:
    """Prompts of some lengths, and completions as (prompt, length), in any order; some not trained at the start."""
    generator = torch.Generator().manual_seed(3)
    width, length = max(prompts), max(size for _, size in completions)
    prompt_mask = torch.tensor([[column >= width - n for column in range(width)] for n in prompts])
    mask = torch.tensor([[column < n for column in range(length)] for _, n in completions])
    loss_mask = mask.clone()
    loss_mask[0, 0] = False
    return TokenBatch(
        prompt_ids=torch.randint(3, 64, prompt_mask.shape, generator=generator) * prompt_mask,
        prompt_mask=prompt_mask,
        completion_ids=torch.randint(3, 64, mask.shape, generator=generator) * mask,
        completion_mask=mask,
        loss_mask=loss_mask,
        prompt_index=torch.tensor([prompt for prompt, _ in completions]),
        row_id=torch.arange(len(completions)),
    )


def gradients(model, batch: TokenBatch) -> dict[str, torch.Tensor]:
    """Of a sum in which every log-prob and entropy has another factor."""
    model.zero_grad()
    stats = forward(model, batch, needs={"entropy"})
    factors = torch.linspace(-1, 2, stats.logps.numel(), dtype=stats.logps.dtype).view(stats.logps.shape)
    (stats.logps * factors + 0.3 * stats.required_entropy * factors.flip(0)).sum().backward()
    return {"logps": stats.logps.detach()} | {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def assert_same(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> None:
    assert found.keys() == exact.keys()
    tolerance = 1e-5 if exact["logps"].dtype == torch.float64 else 2e-4  # norms are computed in float32
    for name, expected in exact.items():
        scale = max(float(expected.abs().max()), 1e-3)
        torch.testing.assert_close(found[name] / scale, expected / scale, atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("kind", FAMILIES)
def test_families(kind):
    """The layout that a family takes gives the log-probs and gradients of plain rows, beyond its windows too."""
    model, batch = make_family(kind), make_batch()
    assert install_forward(model, prefix_sharing="off").layout == "rows"
    exact = gradients(model, batch)
    sharing = install_forward(model)
    assert sharing.layout == FAMILIES[kind][1], sharing.line()
    assert_same(gradients(model, batch), exact)


@pytest.mark.parametrize("layout", ["tree", "cache"])
@pytest.mark.parametrize(
    "shape",
    [
        ((5,), ((0, 4), (0, 4))),
        ((5, 5), ((0, 3), (1, 3), (0, 3), (1, 3))),
        ((3, 6), ((1, 2), (1, 5), (1, 1), (0, 4), (1, 3))),
        ((1, 1), ((0, 1), (1, 1), (0, 1))),
    ],
    ids=["pair", "square", "ragged", "single tokens"],
)
def test_shapes(layout, shape):
    """Groups of one size or several, rows in any order, with and without padding."""
    model, batch = make_model().double(), make_batch(*shape)
    trunk = trunk_of(model)
    there = torch.cat([torch.ones_like(batch.completion_mask[:, :1]), batch.completion_mask], dim=1)
    exact, found = run_rows(trunk, batch).hidden, LAYOUTS[layout](trunk, batch).hidden
    torch.testing.assert_close(found[there], exact[there], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["tree", "cache"])
def test_router_logits_are_those_of_rows(layout):
    """A mixture's load is counted as if every completion had its prompt to itself."""
    trunk, batch = trunk_of(make_family("qwen3_moe")), make_batch()
    exact = run_rows(trunk, batch, output_router_logits=True)
    found = LAYOUTS[layout](trunk, batch, output_router_logits=True)
    for own, expected in zip(found.router_logits, exact.router_logits, strict=True):
        torch.testing.assert_close(own[_there(found)].sum(0), expected[_there(exact)].sum(0), atol=1e-4, rtol=1e-4)
    assert found.attention_mask.sum() == exact.attention_mask.sum()


def _there(rows) -> torch.Tensor:
    return rows.attention_mask.flatten().bool()


def test_padding_content_is_never_read():
    """Whatever stands in the padding of ids, the states of the tokens stay bit for bit."""
    trunk, batch = trunk_of(make_model().double()), make_batch()
    other = replace(
        batch,
        prompt_ids=batch.prompt_ids.masked_fill(~batch.prompt_mask, 41),
        completion_ids=batch.completion_ids.masked_fill(~batch.completion_mask, 57),
    )
    there = batch.completion_mask
    one, two = (LAYOUTS["tree"](trunk, given).hidden[:, 1:] for given in (batch, other))
    assert torch.equal(one[there], two[there])


class Counted(torch.nn.Module):
    """Counts the tokens that a layer is run over."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.num_tokens = layer, 0

    def forward(self, states):
        self.num_tokens += states.shape[0] * states.shape[1]
        return self.layer(states)


def test_tree_runs_over_each_token_once():
    """24 tokens of prompts and completions, no padding; plain rows run over 5 x 16."""
    trunk, batch = trunk_of(make_model()), make_batch()
    counted = trunk.layers[0].mlp = Counted(trunk.layers[0].mlp)
    LAYOUTS["tree"](trunk, batch)
    assert counted.num_tokens == 14 + 22
    counted.num_tokens = 0
    run_rows(trunk, batch)
    assert counted.num_tokens == 5 * 16


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda trunk: trunk.activation_checkpointing_enable(), "recomputed"),
        (lambda trunk: setattr(trunk.layers[0].self_attn, "attention_dropout", 0.5), "dropout"),
    ],
    ids=["checkpointing", "dropout"],
)
def test_rows_where_sharing_is_wrong(change, why):
    """Training with recomputed activations or dropout runs plain rows; evaluation shares again."""
    trunk, batch = trunk_of(make_model()), make_batch()
    counted = trunk.layers[0].mlp = Counted(trunk.layers[0].mlp)
    change(trunk)
    for training, num_tokens in ((True, 5 * 16), (False, 14 + 22)):
        trunk.train(training)
        counted.num_tokens = 0
        run_trunk(trunk, batch, sharing=Sharing("tree"))
        assert counted.num_tokens == num_tokens, why


def test_no_sharing_without_anything_to_save():
    """One completion a prompt and no padding: plain rows."""
    trunk, batch = trunk_of(make_model()), make_batch((4, 4), ((0, 3), (1, 3)))
    assert torch.equal(run_trunk(trunk, batch, sharing=Sharing("tree")).hidden, run_rows(trunk, batch).hidden)


def test_fallback_says_why():
    assert "layout rows). Not cache: it has layers of linear_attention" in _line("qwen3_next")
    assert "layout rows). Not cache: it has layers of hybrid, recurrent" in _line("falcon_h1")
    assert "layout cache). Not tree: it cannot run so (attention with" in _line("gemma2")


def _line(kind: str) -> str:
    return choose_sharing(trunk_of(make_family(kind))).line()


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "lfm2"])
def test_a_wanted_layout_that_is_wrong_is_refused(kind):
    with pytest.raises(ValueError, match=r"prefix_sharing='tree': Not tree: .* Set prefix_sharing='auto', or 'off'"):
        choose_sharing(trunk_of(make_family(kind)), "tree")


def test_unknown_word():
    with pytest.raises(ValueError, match="prefix_sharing='always'; allowed: auto, tree, cache, off"):
        choose_sharing(trunk_of(make_model()), "always")
