from __future__ import annotations

import pickle

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, Qwen2VLProcessor, SmolVLMConfig

from burnish.models.forward import install_forward
from burnish.models.introspect import HeadSpec, inspect_head, places_tokens, reads_images
from burnish.models.vision import (
    image_inputs,
    is_vision_config,
    join_rows,
    load_processor,
    plain_inputs,
    tokenizer_of,
    without_videos,
)
from burnish.types import TokenBatch
from conftest import make_model, make_tokenizer
from vision_models import FAMILIES, make_image, make_processor, make_vision_model


def make_batch(extra) -> TokenBatch:
    """Prompts [60, 9, 61] and [62], of which 9 is an image token; rows of prompt 1, 0, 0 with 2, 1 and 1 tokens."""
    completion_mask = torch.tensor([[True, True], [True, False], [True, False]])
    return TokenBatch(
        prompt_ids=torch.tensor([[0, 60, 9, 61], [0, 0, 0, 62]]),
        prompt_mask=torch.tensor([[False, True, True, True], [False, False, False, True]]),
        completion_ids=torch.tensor([[70, 71], [72, 0], [73, 0]]),
        completion_mask=completion_mask,
        loss_mask=completion_mask,
        prompt_index=torch.tensor([1, 0, 0]),
        row_id=torch.arange(3),
        extra=extra,
    )


@pytest.mark.parametrize("extra", [(), ({}, {})])
def test_a_batch_of_text_has_no_inputs(extra):
    assert image_inputs(make_batch(extra)) == {}


def test_tensors_follow_the_rows():
    """Patches of prompt 1, then those of prompt 0 twice."""
    extra = ({"patches": torch.tensor([[1.0], [2.0]])}, {"patches": torch.tensor([[3.0]])})
    assert image_inputs(make_batch(extra))["patches"].tolist() == [[3.0], [1.0], [2.0], [1.0], [2.0]]


def test_a_prompt_without_images_adds_nothing():
    extra = ({"patches": torch.tensor([[1.0]])}, {})
    assert image_inputs(make_batch(extra))["patches"].tolist() == [[1.0], [1.0]]


def test_kinds_of_tokens_stand_where_the_tokens_do():
    """Behind the padding on the left; 0 in padding, in completions, and for prompts of text."""
    extra = ({"mm_token_type_ids": torch.tensor([0, 1, 0])}, {})
    kinds = image_inputs(make_batch(extra))["mm_token_type_ids"]
    assert kinds.tolist() == [[0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0]]


def test_join_fills_up_with_zeros():
    """Samples of 1 and 2 tiles of 1 x 2 and 2 x 1 pixels: (2, 2, 2, 2)."""
    joined = join_rows([torch.ones(1, 1, 1, 2), torch.ones(1, 2, 2, 1)])
    assert joined.tolist() == [[[[1, 1], [0, 0]], [[0, 0], [0, 0]]], [[[1, 0], [1, 0]], [[1, 0], [1, 0]]]]
    mask = join_rows([torch.ones(2, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)])
    assert mask.tolist() == [True, True, False]


def test_a_row_alone_has_no_padding():
    pixels = torch.ones(1, 3)
    extra = ({"mm_token_type_ids": torch.tensor([0, 1, 0]), "pixel_values": pixels}, {})
    batch = make_batch(extra)
    image_row, text_row = plain_inputs(batch, 2), plain_inputs(batch, 0)
    assert image_row["input_ids"].tolist() == [[60, 9, 61, 73]]
    assert image_row["mm_token_type_ids"].tolist() == [[0, 1, 0, 0]]
    assert image_row["pixel_values"] is pixels
    assert {name: tensor.tolist() for name, tensor in text_row.items()} == {"input_ids": [[62, 70, 71]]}
    assert set(plain_inputs(make_batch(()), 2)) == {"input_ids"}


@pytest.mark.parametrize("family", FAMILIES)
def test_models_are_told_apart(family):
    model = make_vision_model(family, make_processor(family))
    assert reads_images(model)
    assert not reads_images(make_model())
    assert places_tokens(model.model) == (family == "qwen2_vl")
    assert is_vision_config(model.config)
    assert not is_vision_config(LlamaConfig())


def test_the_text_part_of_a_checkpoint_is_no_vision_model():
    assert not is_vision_config(SmolVLMConfig(architectures=["LlamaForCausalLM"]))
    assert is_vision_config(SmolVLMConfig(architectures=["SmolVLMForConditionalGeneration"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_found_and_other_calls_do_not_change(family):
    processor = make_processor(family)
    model = make_vision_model(family, processor, dtype=torch.float64)
    inputs = processor(images=[[make_image(16, 8)]], text=[f"a{processor.image_token}"], return_tensors="pt")
    with torch.no_grad():
        before = model(**inputs).logits
        install_forward(model)
        assert inspect_head(model) == HeadSpec()
        torch.testing.assert_close(model(**inputs).logits, before, atol=0, rtol=0)


def test_a_processor_without_videos_makes_the_same_of_images():
    """And goes through pickle, which looks for a class in its module."""
    processor = make_processor("qwen2_vl")
    assert isinstance(processor, Qwen2VLProcessor)
    assert type(processor).__name__ == "Qwen2VLProcessor"
    restored = pickle.loads(pickle.dumps(processor))
    for one in (processor, restored):
        outputs = one(images=[make_image(16, 8)], text=["a<|image_pad|>"])
        assert outputs["input_ids"][0].count(processor.image_token_id) == 2  # 4 x 2 patches, merged by 2 x 2
    plain = type(make_processor("smolvlm"))
    assert without_videos(plain) is plain


@pytest.mark.parametrize("family", FAMILIES)
def test_a_processor_is_saved_and_loaded(tmp_path, family):
    processor = make_processor(family)
    make_vision_model(family, processor).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = load_processor(str(tmp_path), config=AutoConfig.from_pretrained(tmp_path))
    assert loaded.chat_template == processor.chat_template
    text = [f"a{processor.image_token}b"]
    expected, outputs = (
        one(images=[[make_image(40, 9)]], text=text, return_tensors="pt") for one in (processor, loaded)
    )
    assert expected.keys() == outputs.keys()
    assert all(torch.equal(expected[name], outputs[name]) for name in expected)


def test_the_tokenizer_writes_the_template_of_its_processor():
    processor = make_processor("smolvlm")
    tokenizer = tokenizer_of(processor)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<|im_start|>user\n<image>a<|im_end|>\n"
    assert processor.tokenizer.chat_template is None
    plain = make_tokenizer()
    assert tokenizer_of(plain) is plain
