from __future__ import annotations

from io import BytesIO

import datasets
import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from burnish.data.errors import DataError, RowProblem
from burnish.data.formats import ChatPreference
from burnish.data.images import (
    EncodedImage,
    attach_images,
    decode_image,
    encode_rows,
    place_images,
    read_images,
    stamp_files,
    without_decoding,
)
from vision_models import make_image

IMAGE = {"type": "image"}


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def pixels(image: EncodedImage) -> np.ndarray:
    return np.asarray(decode_image(image))


def chat(prompt, chosen="yes", rejected="no") -> ChatPreference:
    answers = ([{"role": "assistant", "content": content}] for content in (chosen, rejected))
    return ChatPreference([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, *answers)


def test_every_form_is_the_same_image(tmp_path):
    image = make_image(5, 4)
    path = tmp_path / "a.png"
    image.save(path)
    forms = [image, {"bytes": png(image), "path": None}, {"bytes": None, "path": str(path)}, str(path)]
    encoded = read_images({"images": forms})
    assert [image.name for image in encoded] == ["image 0", "image 1", str(path), str(path)]
    for one in encoded:
        np.testing.assert_array_equal(pixels(one), np.asarray(image))


@pytest.mark.parametrize(
    "row", [{}, {"images": None}, {"images": []}, {"image": None}, {"image": {"bytes": None, "path": None}}]
)
def test_a_row_without_images(row):
    assert read_images(row) == ()


def test_one_image_has_a_column_of_its_own():
    (image,) = read_images({"image": {"bytes": png(make_image(3, 2)), "path": "x.png"}, "images": []})
    assert (image.column, image.name, pixels(image).shape) == ("image", "x.png", (2, 3, 3))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"images": ["no/such.png"]}, r"no/such\.png cannot be read: No such file"),
        ({"images": ["."]}, "cannot be read: Is a directory"),
        ({"images": ["https://example.org/a.png"]}, "is a URL"),
        ({"images": [None]}, "item 0 is NoneType, no image"),
        ({"images": [{"bytes": None, "path": None}]}, "item 0 is dict, no image"),
        ({"images": [{"bytes": "text", "path": "a.png"}]}, "item 0 has no bytes and no path"),
        ({"images": [3]}, "item 0 is int"),
        ({"images": "a.png"}, "is str, not a list"),
        ({"image": "a.png", "images": ["b.png"]}, "filled beside images"),
    ],
)
def test_bad_images_are_named(row, words):
    with pytest.raises(RowProblem, match=words):
        read_images(row)


def test_a_missing_file_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RowProblem) as raised:
        read_images({"images": ["pictures/a.png"]})
    assert str(tmp_path / "pictures/a.png") in raised.value.fix


@pytest.mark.parametrize("content", [b"", b"no image", png(make_image(40, 40))[:300]], ids=["empty", "text", "cut"])
def test_broken_bytes_are_named(content):
    with pytest.raises(RowProblem, match=r"b\.png cannot be decoded"):
        decode_image(EncodedImage(content, "b.png"))


def test_a_turned_photograph_is_turned_upright():
    """EXIF orientation 6: the camera was held to the right, so 4 x 2 becomes 2 x 4."""
    file = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    make_image(4, 2).save(file, format="JPEG", exif=exif)
    assert decode_image(EncodedImage(file.getvalue(), "a.jpg")).size == (2, 4)


def test_the_digest_tells_images_apart():
    one, two = (EncodedImage(png(make_image(4, 4, seed=seed)), "a") for seed in (0, 1))
    assert one.digest == EncodedImage(one.content, "other name").digest
    assert one.digest != two.digest
    assert -(2**63) <= one.digest < 2**63


def test_images_stand_before_the_first_user_text():
    system = {"role": "system", "content": "brief"}
    prompt = [system, {"role": "user", "content": "what?"}, {"role": "user", "content": "now"}]
    placed = place_images(chat(prompt), 2)
    assert [turn["content"] for turn in placed.prompt] == [
        [{"type": "text", "text": "brief"}],
        [IMAGE, IMAGE, {"type": "text", "text": "what?"}],
        [{"type": "text", "text": "now"}],
    ]
    assert placed.chosen[0]["content"] == [{"type": "text", "text": "yes"}]
    assert placed.rejected[0] == {"role": "assistant", "content": [{"type": "text", "text": "no"}]}


def test_images_stand_where_the_parts_are():
    content = [{"type": "text", "text": "a"}, IMAGE, {"type": "text", "text": "b"}]
    placed = place_images(chat([{"role": "user", "content": content}]), 1)
    assert placed.prompt[0]["content"] == content


@pytest.mark.parametrize(
    ("row", "num_given", "column", "words"),
    [
        (chat([{"role": "user", "content": [IMAGE]}]), 2, "prompt", "has 1 image parts for 2 images"),
        (chat([{"role": "user", "content": [IMAGE]}]), 0, "prompt", "has 1 image parts for 0 images"),
        (chat([{"role": "system", "content": "a"}]), 1, "prompt", "no user message"),
        (chat("a", chosen=[IMAGE]), 1, "chosen", "images belong to the prompt"),
        (chat("a", rejected=[IMAGE]), 0, "rejected", "images belong to the prompt"),
    ],
)
def test_images_without_a_place_are_bad_rows(row, num_given, column, words):
    with pytest.raises(RowProblem, match=words) as raised:
        place_images(row, num_given)
    assert raised.value.column == column


def test_rows_of_a_list_fit_into_a_table(tmp_path):
    image = make_image(3, 3)
    rows = [{"images": [image, "a.png"]}, {"images": None}, {"image": image, "prompt": "b"}, {"prompt": "c"}]
    encoded = encode_rows(rows)
    assert [item["path"] for item in encoded[0]["images"]] == [None, "a.png"]
    np.testing.assert_array_equal(pixels(read_images(encoded[2])[0]), np.asarray(image))
    assert encoded[1:2] + encoded[3:] == [{"images": None}, {"prompt": "c"}]
    assert rows[0]["images"][0] is image


def test_an_image_without_pixels_is_named():
    with pytest.raises(DataError, match=r"row 1, column 'images'.*cannot be encoded"):
        encode_rows([{"images": []}, {"images": [Image.new("RGB", (0, 0))]}])


@pytest.mark.parametrize("column", ["images", "image"])
def test_a_missing_file_is_found_row_by_row(tmp_path, column):
    """`datasets` would fail while it reads the row; undecoded, the row can be named."""
    path = tmp_path / "a.png"
    make_image(3, 3).save(path)
    feature = datasets.Image() if column == "image" else datasets.List(datasets.Image())
    value = str(path) if column == "image" else [str(path)]
    dataset = Dataset.from_list(
        [{column: value, "n": 1}], features=datasets.Features({column: feature, "n": datasets.Value("int64")})
    )
    path.unlink()
    undecoded = without_decoding(dataset)
    with pytest.raises(RowProblem, match=r"a\.png cannot be read"):
        read_images(undecoded[0])
    with pytest.raises(FileNotFoundError):
        dataset[0]


def test_rows_of_text_are_left_alone():
    dataset = Dataset.from_list([{"prompt": "a"}])
    assert without_decoding(dataset) is dataset
    assert attach_images(dataset, dataset) is dataset


@pytest.mark.parametrize("indices", [[0, 1, 2], [2, 0]], ids=["whole", "selected"])
def test_prepared_rows_keep_their_images(indices):
    """One for one, also of a data set that is a selection; and not decoded."""
    images = [make_image(2 + size, 2, seed=size) for size in range(3)]
    source = Dataset.from_list([{"images": [image], "text": "x"} for image in images]).select(indices)
    prepared = Dataset.from_list([{"n": index} for index in indices])
    attached = attach_images(prepared, source)
    assert attached.column_names == ["n", "images"]
    for row in attached:
        assert set(row["images"][0]) == {"bytes", "path"}
        np.testing.assert_array_equal(pixels(read_images(row)[0]), np.asarray(images[row["n"]]))


@pytest.mark.parametrize("form", ["paths", "one path", "dicts", "features", "one feature"])
def test_a_changed_file_changes_the_stamp(tmp_path, form):
    """So that a cache of token ids is not found again; the other rows have none, or an image of bytes."""
    path = tmp_path / "a.png"
    make_image(3, 3).save(path)
    inside = {"bytes": png(make_image(2, 2)), "path": "inside.png"}
    values = {
        "paths": [[str(path)], None, []],
        "one path": [str(path), None],
        "dicts": [[{"bytes": None, "path": str(path)}, inside], None],
        "features": [[str(path), inside], []],
        "one feature": [str(path), inside, None],
    }
    column = "image" if form.startswith("one") else "images"
    feature = datasets.Image() if form == "one feature" else datasets.List(datasets.Image())
    features = datasets.Features({column: feature}) if "feature" in form else None
    dataset = Dataset.from_dict({column: values[form]}, features=features)
    before = stamp_files(dataset)
    assert stamp_files(dataset) == before
    make_image(3, 4).save(path)
    changed = stamp_files(dataset)
    assert changed != before
    path.unlink()
    assert stamp_files(dataset) not in (before, changed)


def test_rows_without_files_have_one_stamp():
    rows = [{"images": [make_image(3, 3)]}, {"images": []}]
    assert stamp_files(Dataset.from_list(rows)) == stamp_files(Dataset.from_list([{"prompt": "a"}]))
