"""Compiled layers compute what they compute without a compiler, at every length, and where they get no cache."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from test_recomputed import attentions_of, checkpoint
from test_sharing import assert_same, gradients, make_batch, make_family

from burnish.models import attention
from burnish.models.compiled import compile_layers, compiled_line
from burnish.models.forward import forward, install_forward
from burnish.models.introspect import UnsupportedModelError
from conftest import make_model

OTHER = ((7, 4), ((0, 5), (1, 6), (1, 2)))
# What torch says while it traces, of the gradients of tensors that are no leaves.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture
def graphs():
    """Traces nothing that another test traced; afterwards the graphs, each once, that a backend was given."""
    torch._dynamo.reset()
    return []


def counting(graphs):
    """The backend `eager`, which runs what was traced as it is."""

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    return backend


@pytest.mark.parametrize(
    ("kind", "sharing"),
    [
        ("llama", "tree"),
        pytest.param("llama", "off", marks=pytest.mark.gallery),
        *(pytest.param(kind, "auto", marks=pytest.mark.gallery) for kind in ("qwen3_moe", "gemma3_text", "gpt2")),
        *(pytest.param(kind, "off", marks=pytest.mark.gallery) for kind in ("qwen3_moe", "gemma2", "gpt_oss")),
    ],
)
def test_nothing_changes(kind, sharing, graphs):
    """Log-probs, entropies and all gradients; batches of other lengths are traced no second time."""
    model = make_family(kind)
    install_forward(model, prefix_sharing=sharing)
    batches = [make_batch(), make_batch(*OTHER)]
    exact = [gradients(model, batch) for batch in batches]
    assert compile_layers(model, backend=counting(graphs)) == 2
    assert_same(gradients(model, batches[0]), exact[0])
    num_graphs = len(graphs)
    assert num_graphs > 0
    assert_same(gradients(model, batches[1]), exact[1])
    assert len(graphs) == num_graphs


def test_one_graph_for_all_layers(graphs):
    """Four layers are traced once, and names of weights stay."""
    model = make_model(num_hidden_layers=4)
    names = list(model.state_dict())
    install_forward(model, prefix_sharing="off")
    assert compile_layers(model, backend=counting(graphs)) == 4
    with torch.no_grad():
        forward(model, make_batch())
    assert len(graphs) == 1
    assert list(model.state_dict()) == names


def test_generation_is_not_compiled(graphs):
    """A layer that gets a cache runs as ever."""
    model = make_model()
    ids = torch.tensor([[5, 6, 7]])
    expected = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)
    compile_layers(model, backend=counting(graphs))
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None), expected)
    assert graphs == []


def test_a_copy_has_its_own_weights(graphs):
    """A deep copy, as a frozen reference is, answers from its own weights, and is compiled as well."""
    model, batch = make_model(num_hidden_layers=1), make_batch()
    install_forward(model, prefix_sharing="off")
    compile_layers(model, backend=counting(graphs))
    other = copy.deepcopy(model)
    with torch.no_grad():
        before = forward(model, batch).logps
        for weight in other.parameters():
            weight.mul_(1.5)
        assert torch.equal(forward(model, batch).logps, before)
        assert not torch.allclose(forward(other, batch).logps, before)


@pytest.mark.parametrize("kind", ["lfm2", "qwen3_next"])
def test_other_layers_are_refused(kind):
    """A recurrence is traced token by token."""
    with pytest.raises(UnsupportedModelError, match=r"has layers of (conv|linear_attention), .* torch_compile=False"):
        compile_layers(make_family(kind))


def test_the_line_says_what_is_left_out():
    assert compiled_line(2, backend=None, layout="tree") == "torch.compile (inductor): 2 layers, when they first run."
    assert "layout cache runs all that share a prompt on one" in compiled_line(2, backend="eager", layout="cache")


@pytest.mark.parametrize("kind", ["llama", pytest.param("gemma3_text", marks=pytest.mark.gallery)])
def test_layers_that_run_again_over_a_tree(kind, graphs):
    """What is compiled runs again as well, with its attention between; other lengths are traced no second time."""
    model = make_family(kind)
    install_forward(model, prefix_sharing="tree", gradient_checkpointing=True)
    batches = [make_batch(), make_batch(*OTHER)]
    exact = [gradients(model, batch) for batch in batches]
    compile_layers(model, backend=counting(graphs))
    checkpoint(model)
    seen = attentions_of(model)
    assert_same(gradients(model, batches[0]), exact[0])
    num_graphs = len(graphs)
    assert num_graphs > 0
    assert seen == [attention.NAME] * 2
    assert_same(gradients(model, batches[1]), exact[1])
    assert len(graphs) == num_graphs


@pytest.mark.slow
@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler (g++)"),
        ),
    ],
)
def test_backends(backend, checkpoints):
    """With a backward pass that is compiled too."""
    torch._dynamo.reset()
    model = make_model()
    install_forward(model, gradient_checkpointing=checkpoints)
    exact = gradients(model, make_batch())
    if checkpoints:
        checkpoint(model)
    compile_layers(model, backend=backend)
    assert_same(gradients(model, make_batch()), exact)
