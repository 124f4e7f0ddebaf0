from __future__ import annotations

import copy
import inspect
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from burnish import forward
from burnish.models import head
from burnish.models.forward import NEEDS, install_forward, teacher_of
from burnish.models.head import STATISTICS
from burnish.types import TokenBatch
from conftest import make_model

PROMPTS = [[11, 12, 13, 14, 15], [21]]
COMPLETIONS = [[31, 32, 33], [41], [51, 52, 53, 54]]
PROMPT_INDEX = [0, 0, 1]
OF_ONE_MODEL = [name for name in NEEDS if name not in ("divergence", "aux_loss")]


def make_batch(*, padding_id: int = 0, extra_padding: int = 0) -> TokenBatch:
    """Two prompts of different lengths and three completions; every padded place holds `padding_id`."""
    width, length = 5 + extra_padding, 4 + extra_padding
    return TokenBatch(
        prompt_ids=torch.tensor([[padding_id] * (width - len(p)) + p for p in PROMPTS]),
        prompt_mask=torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in PROMPTS]),
        completion_ids=torch.tensor([c + [padding_id] * (length - len(c)) for c in COMPLETIONS]),
        completion_mask=torch.tensor([[True] * len(c) + [False] * (length - len(c)) for c in COMPLETIONS]),
        loss_mask=torch.tensor([[True] * len(c) + [False] * (length - len(c)) for c in COMPLETIONS]),
        prompt_index=torch.tensor(PROMPT_INDEX),
        row_id=torch.tensor([0, 0, 1]),
    )


def take_rows(batch: TokenBatch, order: list[int]) -> TokenBatch:
    per_row = ("completion_ids", "completion_mask", "loss_mask", "prompt_index", "row_id")
    return replace(batch, **{name: batch[name][order] for name in per_row})


@pytest.fixture
def installed():
    model = make_model(dtype=torch.float64)
    install_forward(model)
    return model


@torch.no_grad()
def logps_of(model, batch: TokenBatch) -> torch.Tensor:
    return forward(model, batch).logps


@torch.no_grad()
def test_alignment(installed):
    """logps[n, t] is the log-prob of completion token t after the prompt and the tokens before it: no off-by-one."""
    stats = forward(installed, make_batch(), needs=OF_ONE_MODEL)
    for row, (prompt, completion) in enumerate(zip([PROMPTS[p] for p in PROMPT_INDEX], COMPLETIONS, strict=True)):
        for position, token in enumerate(completion):
            context = torch.tensor([prompt + completion[:position]])
            log_probs = installed(input_ids=context).logits[0, -1].log_softmax(0)
            assert float(stats.logps[row, position]) == pytest.approx(float(log_probs[token]), abs=1e-6)
            entropy = float(-(log_probs.exp() * log_probs).sum())
            assert float(stats.entropy[row, position]) == pytest.approx(entropy, abs=1e-6)
            assert bool(stats.extra["top1"][row, position]) is (int(log_probs.argmax()) == token)
            projected = installed.lm_head(stats.hidden[row, position]).log_softmax(0)
            torch.testing.assert_close(projected, log_probs, rtol=0, atol=1e-6)


@torch.no_grad()
def test_shapes_and_zeros_outside_the_loss_mask(installed):
    batch = make_batch()
    batch = replace(batch, loss_mask=batch.loss_mask & (torch.arange(4) != 1))  # the second token is not trained
    stats = forward(installed, batch, needs=OF_ONE_MODEL)
    assert stats.mask is batch.loss_mask
    assert stats.hidden.shape == (3, 5, 32)
    for values in (stats.logps, stats.entropy, *stats.extra.values()):
        assert values.shape == (3, 4)
        assert not values[~batch.loss_mask].any()
    assert (stats.logps[batch.loss_mask] < 0).all()
    untouched = logps_of(installed, make_batch())
    assert torch.equal(stats.logps[batch.loss_mask], untouched[batch.loss_mask])


def test_what_is_not_needed_is_not_computed(installed):
    stats = forward(installed, make_batch())
    assert (stats.entropy, stats.hidden, stats.aux_loss, dict(stats.extra)) == (None, None, None, {})


def test_unknown_need(installed):
    known = "known: entropy, top1, mean_logit, sum_p2, hidden, divergence, aux_loss"
    with pytest.raises(ValueError, match=rf"unknown token statistics \['top5'\]; {known}"):
        forward(installed, make_batch(), needs=("top5",))


def test_padding_content_changes_nothing(installed):
    """Bit for bit, whichever ids stand where no token is."""
    clean = logps_of(installed, make_batch())
    for garbage in (2, 99, 258):
        assert torch.equal(logps_of(installed, make_batch(padding_id=garbage)), clean)


def test_amount_of_padding_changes_nothing(installed):
    clean, padded = logps_of(installed, make_batch()), logps_of(installed, make_batch(extra_padding=6))
    torch.testing.assert_close(padded[:, :4], clean, rtol=0, atol=1e-9)
    assert not padded[:, 4:].any()


def test_order_of_rows_changes_nothing(installed):
    batch, order = make_batch(), [2, 0, 1]
    torch.testing.assert_close(
        logps_of(installed, take_rows(batch, order)), logps_of(installed, batch)[order], rtol=0, atol=1e-9
    )


def test_rows_of_one_batch_do_not_see_each_other(installed):
    batch = make_batch()
    together = logps_of(installed, batch)
    for row in range(3):
        alone = logps_of(installed, take_rows(batch, [row]))
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-9)


def test_a_batch_without_trained_tokens(installed):
    """Zero log-probs, zero gradient, and a backward that runs."""
    batch = make_batch()
    stats = forward(installed, replace(batch, loss_mask=torch.zeros_like(batch.loss_mask)))
    stats.logps.sum().backward()
    assert not stats.logps.any()
    assert all(p.grad is None or not p.grad.any() for p in installed.parameters())


def test_gradients_are_those_of_the_plain_computation(installed):
    """Every parameter, tied head included, against the model's own logits row by row."""
    batch, plain = make_batch(), make_model(dtype=torch.float64)
    forward(installed, batch).logps.sum().backward()
    total = 0
    for prompt, completion in zip([PROMPTS[p] for p in PROMPT_INDEX], COMPLETIONS, strict=True):
        ids = torch.tensor(prompt + completion)
        log_probs = plain(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1].log_softmax(1)
        total = total + log_probs.gather(1, ids[len(prompt) :, None]).sum()
    total.backward()
    for (name, mine), other in zip(installed.named_parameters(), plain.parameters(), strict=True):
        assert float((mine.grad - other.grad).norm() / other.grad.norm()) < 1e-6, name


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_gradient_checkpointing_changes_nothing(installed, use_reentrant):
    batch, checkpointed = make_batch(), make_model(dtype=torch.float64)
    for model in (installed, checkpointed):
        install_forward(model, prefix_sharing="off")
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # renamed in transformers 5.23
    next(getattr(checkpointed, name) for name in names if hasattr(checkpointed, name))({"use_reentrant": use_reentrant})
    teacher = make_model(1, torch.float64)
    install_forward(teacher)
    runs: list[int] = []
    checkpointed.model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    for model in (installed, checkpointed):
        needs = ("entropy", "divergence")
        stats = forward(model.train(), batch, needs=needs, teacher=teacher_of(teacher, batch))
        (stats.logps.sum() + 0.5 * stats.entropy.sum() + 2 * stats.extra["divergence"].sum()).backward()
    for mine, other in zip(checkpointed.parameters(), installed.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=1e-12)
    assert len(runs) == 2  # once, and once more in the backward pass


def test_inside_one_call_of_distributed_data_parallel(installed):
    """All statistics come out of the wrapped call, and the gradients of a world of one are those of the bare model."""
    batch, bare = make_batch(), make_model(dtype=torch.float64)
    teacher = make_model(1, torch.float64)
    for model in (bare, teacher):
        install_forward(model)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(installed)
        other = teacher_of(torch.nn.parallel.DistributedDataParallel(teacher), batch)
        for model in (wrapped, bare):
            stats = forward(model, batch, needs=("entropy", "divergence"), teacher=other)
            (stats.logps.sum() + stats.entropy.sum() + stats.extra["divergence"].sum()).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for mine, expected in zip(installed.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-12, atol=1e-12)


def test_bfloat16_autocast_reaches_trunk_and_head():
    model = make_model()
    install_forward(model)
    exact = logps_of(model, make_batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = logps_of(model, make_batch())
    assert low.dtype == torch.float32
    assert 0 < float((low - exact).norm() / exact.norm()) < 0.02


def test_other_calls_are_the_models_own(installed):
    plain = make_model(dtype=torch.float64)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(installed(ids).logits, plain(ids).logits)
    assert inspect.signature(installed.forward) == inspect.signature(plain.forward)
    assert installed.state_dict().keys() == plain.state_dict().keys()


def test_generate_still_works(installed):
    settings = {"max_new_tokens": 5, "do_sample": False}
    ids = torch.tensor([[5, 6, 7]])
    expected = make_model(dtype=torch.float64).generate(ids, attention_mask=torch.ones_like(ids), **settings)
    assert torch.equal(installed.generate(ids, attention_mask=torch.ones_like(ids), **settings), expected)


def test_a_copy_scores_with_its_own_weights(installed):
    before = logps_of(installed, make_batch())
    twin = copy.deepcopy(installed)
    with torch.no_grad():
        twin.model.layers[0].mlp.down_proj.weight.zero_()
    assert torch.equal(logps_of(installed, make_batch()), before)
    assert not torch.allclose(logps_of(twin, make_batch()), before)
    assert twin.forward.__self__ is twin


def test_installing_twice_is_installing_once(installed):
    before = logps_of(installed, make_batch())
    install_forward(installed)
    assert torch.equal(logps_of(installed, make_batch()), before)


def test_save_and_load(installed, tmp_path):
    """A checkpoint is a plain model: `from_pretrained` needs nothing of ours."""
    installed.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert "forward" not in vars(loaded)
    install_forward(loaded)
    assert torch.equal(logps_of(loaded, make_batch()), logps_of(installed, make_batch()))


def test_all_logits_at_once_give_the_same(installed, monkeypatch):
    """Of every token of the answers and by autograd: values and all gradients, with a token that is not trained."""
    batch = make_batch()
    batch = replace(batch, loss_mask=batch.loss_mask & (torch.arange(batch.loss_mask.shape[1]) > 0))

    other = copy.deepcopy(installed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)

    def outcome() -> dict[str, torch.Tensor]:
        installed.zero_grad()
        teacher = teacher_of(other, batch)
        stats = forward(installed, batch, needs=(*STATISTICS, "divergence"), teacher=teacher)
        (stats.logps.square().sum() + stats.required_entropy.sum()).backward()
        values = {"logps": stats.logps, "entropy": stats.required_entropy, **stats.extra}
        grads = {name: parameter.grad.clone() for name, parameter in installed.named_parameters()}
        return {name: tensor.detach() for name, tensor in (values | grads).items()}

    tiled = outcome()
    monkeypatch.setattr(head, "TILED", False)
    openly = outcome()
    assert tiled.keys() == openly.keys()
    assert len(tiled) > len(STATISTICS)
    for name, values in openly.items():
        torch.testing.assert_close(tiled[name], values, rtol=1e-9, atol=1e-9, msg=name)
