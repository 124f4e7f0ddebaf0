"""Tiny random vision-language models with their processors, built in code: no network, no torchvision.

The processors run on Pillow. Qwen2-VL's has no video processor, which would need torchvision; SmolVLM's model goes
with Idefics3's processor, as SmolVLM 1 does, since SmolVLM 2's needs num2words.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from transformers import (
    Idefics3Processor,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from burnish.models.vision import without_videos
from conftest import make_tokenizer

FAMILIES = ("smolvlm", "qwen2_vl")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}IMAGE{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def make_processor(family: str) -> ProcessorMixin:
    """Images of at most 4 SmolVLM tiles of 16 tokens, or at most 32 Qwen2-VL tokens."""
    tokenizer = make_tokenizer(None)
    if family == "smolvlm":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<row_1_col_1>", "<row_1_col_2>", "<global-img>"]})
        images = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
        template = TEMPLATE.replace("IMAGE", "<image>")
        return Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template)
    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    images = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 64, "longest_edge": 1024})
    template = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    return without_videos(Qwen2VLProcessor)(images, tokenizer, chat_template=template)


def make_vision_model(
    family: str, processor: ProcessorMixin, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Two layers of text and two of vision over the processor's vocabulary, in evaluation mode."""
    torch.manual_seed(seed)
    vocabulary = {"vocab_size": len(processor.tokenizer), **TEXT}
    common = {"image_token_id": processor.image_token_id, "tie_word_embeddings": True}
    if family == "smolvlm":
        vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = SmolVLMConfig(
            text_config={"model_type": "llama", **vocabulary},
            vision_config={**vision, "image_size": 16, "patch_size": 4, "initializer_range": 0.2},
            scale_factor=2,
            **common,
        )
        return SmolVLMForConditionalGeneration(config).to(dtype).eval()
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config={**vocabulary, "rope_parameters": rope},
        vision_config={**vision, "initializer_range": 0.2},
        video_token_id=processor.video_token_id,
        vision_start_token_id=processor.tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=processor.tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        **common,
    )
    return Qwen2VLForConditionalGeneration(config).to(dtype).eval()


def make_image(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
