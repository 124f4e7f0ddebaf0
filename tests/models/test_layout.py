"""A padded batch of prompts with images has the states of each row alone through the model's own processor."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from burnish import forward
from burnish.models.forward import install_forward
from burnish.models.introspect import trunk_of
from burnish.models.layout import run_rows
from burnish.types import TokenBatch
from vision_models import FAMILIES, make_image, make_processor, make_vision_model

IMAGES = [[make_image(40, 9)], [make_image(20, 30, seed=1), make_image(16, 8, seed=2)], []]
TEXTS = ["Look: @?", "@ and then @, long words after both", "no image"]
COMPLETIONS = [[70, 71, 2], [80, 2], [90, 91, 92, 93, 2], [100, 2], [110, 111]]
PROMPT_INDEX = [1, 0, 0, 2, 1]


def prompt_inputs(processor, prompt: int) -> dict[str, torch.Tensor]:
    """What the processor makes of one prompt alone."""
    text = TEXTS[prompt].replace("@", processor.image_token)
    return dict(processor(images=[IMAGES[prompt]] if IMAGES[prompt] else None, text=[text], return_tensors="pt"))


def make_batch(processor, *, extra_padding: int = 0) -> TokenBatch:
    inputs = [prompt_inputs(processor, prompt) for prompt in range(3)]
    prompts = [item.pop("input_ids")[0] for item in inputs]
    for item in inputs:
        item.pop("attention_mask")
    extra = tuple(
        {name: tensor[0] if name == "mm_token_type_ids" else tensor for name, tensor in item.items()} if images else {}
        for item, images in zip(inputs, IMAGES, strict=True)
    )
    width, length = max(map(len, prompts)) + extra_padding, 5 + extra_padding
    prompt_mask = torch.stack([torch.arange(width) >= width - len(ids) for ids in prompts])
    completion_mask = torch.stack([torch.arange(length) < len(ids) for ids in COMPLETIONS])
    return TokenBatch(
        prompt_ids=torch.stack([torch.cat([torch.zeros(width - len(ids)).long(), ids]) for ids in prompts]),
        prompt_mask=prompt_mask,
        completion_ids=torch.tensor([ids + [0] * (length - len(ids)) for ids in COMPLETIONS]),
        completion_mask=completion_mask,
        loss_mask=completion_mask,
        prompt_index=torch.tensor(PROMPT_INDEX),
        row_id=torch.arange(5),
        extra=extra,
    )


@torch.no_grad()
def plain_token_logps(model, processor, row: int) -> torch.Tensor:
    """Log-probs of one row: no padding, no batch, the processor's own inputs, the model's own logits."""
    inputs = prompt_inputs(processor, PROMPT_INDEX[row])
    completion = torch.tensor([COMPLETIONS[row]])
    prompt_length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], completion], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(completion)], dim=1)
    logits = model(**inputs, use_cache=False).logits[0, prompt_length - 1 : -1]
    return logits.log_softmax(-1).gather(1, completion[0][:, None]).squeeze(1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_rows_are_the_plain_rows(family, dtype, tolerance):
    """Five rows of three prompts (one image, two of other sizes, none), out of order: all as scored alone."""
    processor = make_processor(family)
    model = make_vision_model(family, processor, dtype=dtype)
    expected = [plain_token_logps(model, processor, row) for row in range(5)]
    install_forward(model)
    with torch.no_grad():
        stats = forward(model, make_batch(processor, extra_padding=3))
    for row, logps in enumerate(expected):
        torch.testing.assert_close(stats.logps[row, : len(logps)], logps, atol=tolerance, rtol=0)
        assert (stats.logps[row, len(logps) :] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_images_are_read(family):
    """Other pixels, other log-probs, for the rows of that prompt and for no others."""
    processor = make_processor(family)
    model = make_vision_model(family, processor, dtype=torch.float64)
    install_forward(model)
    batch = make_batch(processor)
    first = {**batch.extra[0], "pixel_values": -batch.extra[0]["pixel_values"]}
    with torch.no_grad():
        before = forward(model, batch).sequence_sum()
        after = forward(model, replace(batch, extra=(first, *batch.extra[1:]))).sequence_sum()
    changed = (before - after).abs() > 1e-6
    assert changed.tolist() == [prompt == 0 for prompt in PROMPT_INDEX]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_images_needs_none(family):
    """Left padding does not shift a text-only row: the state is that of the row alone."""
    processor = make_processor(family)
    model = make_vision_model(family, processor, dtype=torch.float64)
    batch = make_batch(processor)
    keep = torch.tensor([3])
    text = replace(
        batch,
        completion_ids=batch.completion_ids[keep],
        completion_mask=batch.completion_mask[keep],
        loss_mask=batch.loss_mask[keep],
        prompt_index=batch.prompt_index[keep],
        row_id=batch.row_id[keep],
        extra=({}, {}, {}),
    )
    expected = plain_token_logps(model, processor, 3)
    install_forward(model)
    with torch.no_grad():
        torch.testing.assert_close(forward(model, text).logps[0, :2], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_vision_tower(family):
    processor = make_processor(family)
    model = make_vision_model(family, processor)
    install_forward(model)
    forward(model, make_batch(processor)).logps.sum().backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert without == []


def test_the_trunk_is_all_that_lies_below_the_head():
    """Not the language model alone, whose forward takes no images."""
    processor = make_processor("smolvlm")
    model = make_vision_model("smolvlm", processor)
    assert trunk_of(model) is model.model


@pytest.mark.parametrize("family", FAMILIES)
def test_states_reach_from_the_prompt_to_the_last_token(family):
    """(N, T+1, H) = (5, 6, 32); the first is the prompt's last state, the same for rows of one prompt."""
    processor = make_processor(family)
    model = make_vision_model(family, processor, dtype=torch.float64)
    with torch.no_grad():
        hidden = run_rows(trunk_of(model), make_batch(processor)).hidden
    assert hidden.shape == (5, 6, 32)
    torch.testing.assert_close(hidden[1, 0], hidden[2, 0], atol=1e-12, rtol=0)
    assert not torch.allclose(hidden[0, 0], hidden[1, 0])


def test_the_batch_is_not_changed():
    processor = make_processor("qwen2_vl")
    model = make_vision_model("qwen2_vl", processor)
    batch = make_batch(processor)
    before = copy.deepcopy(batch.extra)
    with torch.no_grad():
        run_rows(trunk_of(model), batch)
    for old, new in zip(before, batch.extra, strict=True):
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in old)
