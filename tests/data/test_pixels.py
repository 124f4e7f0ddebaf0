from __future__ import annotations

import pickle
from io import BytesIO

import pytest
import torch

from burnish.data.collate import PreferenceCollator
from burnish.data.errors import DataError
from burnish.data.images import DIGEST_COLUMN, read_images
from burnish.data.pixels import ImageCollator, prompt_inputs
from vision_models import FAMILIES, make_image, make_processor


def png(width: int, height: int, *, seed: int = 0) -> bytes:
    file = BytesIO()
    make_image(width, height, seed=seed).save(file, format="PNG")
    return file.getvalue()


def prepared_row(row_id: int, prompt: list[int], *images: bytes) -> dict:
    row = {"images": [{"bytes": content, "path": None} for content in images]}
    return {
        **row,
        "row_id": row_id,
        "prompt_input_ids": prompt,
        "chosen_input_ids": [70, 2],
        "chosen_loss_mask": [True, True],
        "rejected_input_ids": [71, 2],
        "rejected_loss_mask": [True, True],
        DIGEST_COLUMN: [image.digest for image in read_images(row)],
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_those_of_the_processor(family):
    processor = make_processor(family)
    text = f"a{processor.image_token}b{processor.image_token}"
    pictures = [make_image(40, 9), make_image(20, 30, seed=1)]
    expected = processor(images=[pictures], text=[text], return_tensors="pt")
    prompt = expected.pop("input_ids")[0].tolist()
    expected.pop("attention_mask")
    images = read_images({"images": pictures})
    inputs = prompt_inputs(processor, images, prompt)
    assert set(inputs) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(inputs[name], tensor[0] if name == "mm_token_type_ids" else tensor)


def test_each_prompt_has_its_own():
    """One image, none, two; 16 x 8 pixels are 4 x 2 patches, 8 x 8 (filled up to 64 pixels) 2 x 2."""
    processor = make_processor("qwen2_vl")
    mark = processor.image_token_id
    rows = [
        prepared_row(5, [60, mark, mark], png(16, 8)),
        prepared_row(6, [60, 61]),
        prepared_row(7, [mark, 60, mark, mark], png(8, 8), png(16, 8)),
    ]
    batch = ImageCollator(PreferenceCollator(0), processor)(rows)
    first, none, two = batch.extra
    assert none == {}
    assert first["image_grid_thw"].tolist() == [[1, 2, 4]]
    assert two["image_grid_thw"].tolist() == [[1, 2, 2], [1, 2, 4]]
    assert two["pixel_values"].shape == (4 + 8, 2 * 3 * 4 * 4)
    assert first["mm_token_type_ids"].tolist() == [0, 1, 1]
    assert two["mm_token_type_ids"].tolist() == [1, 0, 1, 1]
    assert batch.row_id.tolist() == [5, 5, 6, 6, 7, 7]


def test_the_parcel_moves_with_its_images():
    processor = make_processor("smolvlm")
    collator = ImageCollator(PreferenceCollator(0), processor)
    batch = collator([prepared_row(0, [60], png(4, 4))])
    assert batch.to("meta").extra[0]["pixel_values"].device.type == "meta"


def test_a_changed_image_is_named(tmp_path):
    """The token ids are those of the image that was there when the row was prepared."""
    path = tmp_path / "a.png"
    path.write_bytes(png(16, 8))
    row = {**prepared_row(9, [60], png(16, 8)), "images": [str(path)]}
    collator = ImageCollator(PreferenceCollator(0), make_processor("smolvlm"))
    collator([row])
    path.write_bytes(png(16, 8, seed=1))
    with pytest.raises(DataError, match=r"row 9 .*has changed since then; found .*a\.png"):
        collator([row])
    path.unlink()
    with pytest.raises(DataError, match=r"row 9 .*a\.png cannot be read"):
        collator([row])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_collator_goes_to_other_processes(family):
    collator = ImageCollator(PreferenceCollator(0), make_processor(family))
    restored = pickle.loads(pickle.dumps(collator))
    row = prepared_row(0, [60], png(16, 8))
    first, second = (one([row]).extra[0] for one in (collator, restored))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
