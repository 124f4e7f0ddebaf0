from __future__ import annotations

from io import BytesIO

import pytest

from burnish.data.chat import render_text
from burnish.data.encode import encode_texts
from burnish.data.errors import DataError, RowProblem
from burnish.data.formats import ChatPreference
from burnish.data.images import EncodedImage
from burnish.data.placeholders import (
    WrittenImages,
    image_token_ids,
    match_images,
    placeholder_of,
    render_with_images,
    write_images,
)
from burnish.data.truncate import RowTokens, TruncationPolicy, truncate
from conftest import make_tokenizer
from vision_models import FAMILIES, make_image, make_processor


def encoded(width: int, height: int, *, seed: int = 0) -> EncodedImage:
    file = BytesIO()
    make_image(width, height, seed=seed).save(file, format="PNG")
    return EncodedImage(file.getvalue(), f"{width}x{height}")


IMAGES = [encoded(40, 9), encoded(20, 30, seed=1)]


def sides(prompt: str, chosen: str = "yes", rejected: str = "no"):
    return render_text(prompt, chosen), render_text(prompt, rejected)


def pair_of(prompt: list[int]) -> RowTokens:
    return RowTokens(prompt=prompt, completions=([70, 2], [71, 2]), masks=([True] * 2, [True] * 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_get_the_tokens_of_the_processor(family):
    """Both answers, although the processor only saw one; the trained text is what it was."""
    processor = make_processor(family)
    mark = processor.image_token
    texts, written = write_images(processor, *sides(f"a{mark}b{mark}c "), IMAGES)
    assert written.record == {"image_digests": [image.digest for image in IMAGES]}
    for side, answer in zip(texts, ("yes", "no"), strict=True):
        text = [f"a{mark}b{mark}c {answer}"]
        pictures = [[make_image(40, 9), make_image(20, 30, seed=1)]]
        expected = processor(images=pictures, text=text, add_special_tokens=False)["input_ids"][0]
        assert encode_texts(processor.tokenizer, [side.text])[0].ids == list(expected)
        ((start, end),) = side.spans
        assert side.text[start:end] == answer


def test_an_image_of_qwen_has_as_many_tokens_as_merged_patches():
    """40 x 9 becomes 40 x 8: 10 x 2 patches of 4 pixels, 2 x 2 of them merged into one token: 5."""
    processor = make_processor("qwen2_vl")
    texts, written = write_images(processor, *sides(f"a{processor.image_token}b"), IMAGES[:1])
    assert texts[0].text == "a" + 5 * "<|image_pad|>" + "byes"
    assert written.token_ids == {processor.image_token_id}


def test_an_image_of_smolvlm_has_tokens_around_its_tiles():
    """40 x 9 becomes 32 x 16: two tiles of 16 x 16, and the whole; 4 tokens each, behind two tokens of their own."""
    processor = make_processor("smolvlm")
    texts, images = write_images(processor, *sides("<image>a"), IMAGES[:1])
    tile = "<fake_token_around_image>{}" + 4 * "<image>"
    written = tile.format("<row_1_col_1>") + tile.format("<row_1_col_2>") + "\n\n" + tile.format("<global-img>")
    assert texts[1].text == written + "<fake_token_around_image>ano"
    names = ["<fake_token_around_image>", "<image>", "<row_1_col_1>", "<row_1_col_2>", "<global-img>"]
    assert images.token_ids == set(processor.tokenizer.convert_tokens_to_ids(names))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_of_text_stays_as_it_is(family):
    texts = sides("what? ")
    assert write_images(make_processor(family), *texts, []) == (texts, WrittenImages())


@pytest.mark.parametrize(
    ("texts", "images", "column", "words"),
    [
        (sides("no place"), IMAGES[:1], "prompt", "has 0 times <image> for 1 images"),
        (sides("<image> and <image>"), IMAGES[:1], "prompt", "has 2 times <image> for 1 images"),
        (sides("about <image>"), [], "prompt", "has 1 times <image> for 0 images"),
        (sides("<image>", chosen="see <image>"), IMAGES[:1], "chosen", "which stands for an image"),
        (sides("text", rejected="see <image>"), [], "rejected", "which stands for an image"),
    ],
)
def test_placeholders_and_images_must_agree(texts, images, column, words):
    with pytest.raises(RowProblem, match=words) as raised:
        write_images(make_processor("smolvlm"), *texts, images)
    assert raised.value.column == column


def test_an_image_that_the_processor_refuses_is_a_bad_row():
    """Qwen2-VL takes no image that is more than 200 times as wide as high."""
    processor = make_processor("qwen2_vl")
    with pytest.raises(RowProblem, match="refuses the images: absolute aspect ratio"):
        write_images(processor, *sides(processor.image_token), [encoded(201, 1)])


def test_broken_images_are_bad_rows():
    with pytest.raises(RowProblem, match="picture cannot be decoded"):
        write_images(make_processor("smolvlm"), *sides("<image>"), [EncodedImage(b"?", "picture")])


def test_a_processor_without_placeholders_is_refused():
    with pytest.raises(DataError, match="has no image_token"):
        placeholder_of(make_tokenizer())


def test_only_special_tokens_are_image_tokens():
    """The line break between two rows of tiles is a token of any text."""
    processor = make_processor("smolvlm")
    ids = image_token_ids(processor.tokenizer, ["<image>\n<global-img>"])
    assert ids == {processor.image_token_id, processor.tokenizer.convert_tokens_to_ids("<global-img>")}


@pytest.mark.parametrize(
    ("policy", "is_whole"),
    [
        (TruncationPolicy(max_prompt_length=4), True),
        (TruncationPolicy(max_prompt_length=3), False),
        (TruncationPolicy(max_length=6, truncation_mode="keep_end"), True),
        (TruncationPolicy(max_length=5, truncation_mode="keep_end"), False),
        (TruncationPolicy(max_length=6), True),
    ],
    ids=str,
)
def test_image_tokens_are_never_cut(policy, is_whole):
    """Prompt [50, 9, 9, 51, 52], of which 9 stands for the image: one token may go, two may not. Answers have two."""
    pair = pair_of([50, 9, 9, 51, 52])
    cut, images = truncate(pair, policy), WrittenImages(frozenset([9]))
    if is_whole:
        images.check_whole(pair.prompt, cut.prompt, policy)
        return
    with pytest.raises(RowProblem, match="prompt 5, of which images 2; left 3, of which images 1"):
        images.check_whole(pair.prompt, cut.prompt, policy)


@pytest.mark.parametrize("family", FAMILIES)
def test_token_ids_must_have_the_images_written_out(family):
    processor = make_processor(family)
    text = "".join(["a", processor.image_token, "b"])
    images = [[make_image(40, 9)]]
    prompt = list(processor(images=images, text=[text], add_special_tokens=False)["input_ids"][0])
    answers, row = ([70, 2], [71, 2]), {"images": [make_image(40, 9)]}
    written = match_images(prompt, answers, row, processor=processor)
    assert processor.image_token_id in written.token_ids
    assert written.digests == (IMAGES[0].digest,)
    with pytest.raises(RowProblem, match=r"has 0 image tokens; its 1 images take \d+"):
        match_images([70, 71], answers, row, processor=processor)
    with pytest.raises(RowProblem, match=r"has \d+ image tokens; its 0 images take 0"):
        match_images(prompt, answers, {}, processor=processor)
    with pytest.raises(RowProblem, match="images belong to the prompt") as raised:
        match_images([70], ([70], [processor.image_token_id]), {}, processor=processor)
    assert raised.value.column == "rejected_input_ids"


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ({"images": ["gone.png"]}, "images", "has images, but processing_class is a tokenizer"),
        ({"image": {"bytes": b"", "path": None}}, "image", "has images, but processing_class is a tokenizer"),
        ({}, "prompt", "has an image part, but processing_class is a tokenizer"),
    ],
)
def test_a_tokenizer_takes_no_images(row, column, words):
    """Nor parts that an image would stand in; a row of token ids with images neither."""
    question = [{"role": "user", "content": [{"type": "image"}]}]
    chat = ChatPreference(question, *([{"role": "assistant", "content": text}] for text in "ab"))
    with pytest.raises(RowProblem, match=words) as raised:
        render_with_images(make_tokenizer(), chat, row, processor=None)
    assert raised.value.column == column
    if row:
        with pytest.raises(RowProblem, match=words):
            match_images([70], ([70], [71]), row, processor=None)
