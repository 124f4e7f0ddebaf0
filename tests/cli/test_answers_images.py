from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from burnish.cli.answers import greedy_answers, sample_prompts
from conftest import make_rows
from vision_models import FAMILIES, make_image, make_processor, make_vision_model


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_to_images_are_the_most_likely_tokens(family):
    """As a loop of argmax over the model's own logits; one image, two, none."""
    processor = make_processor(family)
    model = make_vision_model(family, processor, dtype=torch.float64)
    images = [[make_image(40, 9)], [make_image(9, 20, seed=1), make_image(16, 16, seed=2)], []]
    rows = Dataset.from_list([{**row, "images": images[i]} for i, row in enumerate(make_rows(3))])
    prompts = sample_prompts(rows, processor, 3)
    assert [prompt.shown.split(":")[0] for prompt in prompts] == ["Question 0", "Question 1", "Question 2"]
    answers = greedy_answers(model, processor.tokenizer, prompts, max_new_tokens=4, end_token_ids=(2,))
    for row, given, answer in zip(make_rows(3), images, answers, strict=False):
        content = [*[{"type": "image"}] * len(given), {"type": "text", "text": row["prompt"][0]["content"]}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(images=[given] if given else None, text=[text], return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        for _ in range(4):
            first = model(**inputs).logits[0, -1].argmax()[None, None]
            inputs["input_ids"] = torch.cat([inputs["input_ids"], first], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            if "mm_token_type_ids" in inputs:
                kinds = inputs["mm_token_type_ids"]
                inputs["mm_token_type_ids"] = torch.cat([kinds, torch.zeros_like(first)], dim=1)
            if int(first) == 2:
                break
        new = inputs["input_ids"][0, length:].tolist()
        assert answer.text == processor.tokenizer.decode(new, skip_special_tokens=True)
    stop = answers[0].text[:2]
    stopped = greedy_answers(
        model, processor.tokenizer, prompts[:1], max_new_tokens=4, end_token_ids=(2,), stop_strings=(stop,)
    )
    assert stopped[0].text.startswith(stop)
    assert not stopped[0].is_cut
    assert len(stopped[0].text) < len(answers[0].text)


def test_bad_images_are_left_out(tmp_path):
    rows = [{**row, "images": ["gone.png"] if i == 1 else []} for i, row in enumerate(make_rows(3))]
    prompts = sample_prompts(Dataset.from_list(rows), make_processor("smolvlm"), 3)
    assert [prompt.shown.split(":")[0] for prompt in prompts] == ["Question 0", "Question 2"]
