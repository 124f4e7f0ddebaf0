"""Images of a row: where they come from, where they stand in the prompt, and how they are kept.

A row has a column `images`, a list, or `image`, one. An image is a `PIL.Image.Image`, `{"bytes": ..., "path": ...}`
as `datasets` keeps it, or the path of a file. All of them belong to the prompt. They stand where its messages have
`{"type": "image"}` parts; in messages without any, before the text of the first user message.

Prepared rows keep the images as they were given, encoded, never as pixel values: those are made when a batch is.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import datasets
import pyarrow as pa
from datasets import Dataset

from burnish.data.errors import DataError, RowProblem, excerpt
from burnish.data.formats import ChatPreference, TextPreference
from burnish.data.messages import Message
from burnish.data.parts import IMAGE_COLUMNS, as_parts, num_images
from burnish.data.plain import is_nothing

if TYPE_CHECKING:
    from PIL.Image import Image

DIGEST_COLUMN = "image_digests"  # of a prepared row
DIGEST_BYTES = 8
IMAGE_FIX = "An image is a PIL image, {'bytes': ..., 'path': ...} or the path of a file."

Row = TypeVar("Row", bound=Mapping[str, Any])


@dataclass(frozen=True)
class EncodedImage:
    """An image as it was given, not decoded.

    Attributes:
        content: the bytes of its file.
        name: its path, or its place in the row, for errors.
        column: its column, for errors.
    """

    content: bytes
    name: str
    column: str = IMAGE_COLUMNS[0]

    @property
    def digest(self) -> int:
        """A hash of the bytes that fits into int64: the image is the same as when the row was prepared."""
        digest = hashlib.blake2b(self.content, digest_size=DIGEST_BYTES).digest()
        return int.from_bytes(digest, "big", signed=True)


def read_images(row: Mapping[str, Any]) -> tuple[EncodedImage, ...]:
    """The images of a row in their order; () if it has none.

    Raises:
        RowProblem: both columns are filled, no image, or a file that cannot be read.
    """
    filled = [column for column in IMAGE_COLUMNS if not is_nothing(row.get(column))]
    if not filled:
        return ()
    if len(filled) > 1:
        raise RowProblem("image", "is filled beside images", value=row["image"], fix="Keep one of the two columns.")
    column, value = filled[0], row[filled[0]]
    if column == "images" and not isinstance(value, list | tuple):
        fix = "Give a list of images, or rename the column to image."
        raise RowProblem(column, f"is {type(value).__name__}, not a list", value=value, fix=fix)
    items = value if column == "images" else [value]
    return tuple(_read_image(column, index, item) for index, item in enumerate(items))


def decode_image(image: EncodedImage) -> Image:
    """The pixels, turned upright where the file says how.

    Raises:
        ImportError: Pillow is not installed.
        RowProblem: the bytes are no image, or too large a one.
    """
    if importlib.util.find_spec("PIL") is None:
        raise ImportError("the rows have images, and reading them needs Pillow: pip install 'burnish[vision]'")
    from PIL import ExifTags, ImageOps
    from PIL import Image as Pillow

    try:
        decoded = Pillow.open(BytesIO(image.content))
        decoded.load()
        turned = decoded.getexif().get(ExifTags.Base.Orientation) is not None
        return ImageOps.exif_transpose(decoded) if turned else decoded
    except Exception as error:  # decoders of broken files raise almost anything
        fix = "Repair or replace the file, or remove the row."
        problem = f"{image.name} cannot be decoded: {type(error).__name__}: {error}"
        raise RowProblem(image.column, problem, value=image.content[:16], fix=fix) from error


def place_images(row: ChatPreference, num_given: int) -> ChatPreference:
    """The row with the content of every message as parts, and an image part for each image.

    Args:
        row: messages whose content is text, or parts where images stand.
        num_given: images of the row.

    Raises:
        RowProblem: as many image parts as images are not there, or an answer has one.
    """
    for column, answer in (("chosen", row.chosen), ("rejected", row.rejected)):
        if any(num_images(turn["content"]) for turn in answer):
            fix = "Move the image into the prompt, which both answers share, or remove the row."
            raise RowProblem(column, "has an image part: images belong to the prompt", value=answer, fix=fix)
    num_placed = sum(num_images(turn["content"]) for turn in row.prompt)
    first = next((index for index, turn in enumerate(row.prompt) if turn["role"] == "user"), None)
    if num_placed == 0 and num_given and first is None:
        fix = "Add a user message, or image parts where the images stand."
        raise RowProblem("prompt", "has images, but no user message to stand in", value=row.prompt, fix=fix)
    if num_placed not in (0, num_given):
        fix = "Give one {'type': 'image'} part for each image, or none: then the images stand first."
        problem = f"has {num_placed} image parts for {num_given} images"
        raise RowProblem("prompt", problem, value=row.prompt, fix=fix)
    missing = num_given - num_placed
    prompt = [_with_parts(turn, missing if index == first else 0) for index, turn in enumerate(row.prompt)]
    chosen, rejected = ([_with_parts(turn) for turn in answer] for answer in (row.chosen, row.rejected))
    return replace(row, prompt=prompt, chosen=chosen, rejected=rejected)


def refuse_images(preference: TextPreference | ChatPreference | None, row: Mapping[str, Any]) -> None:
    """A model of text takes no images.

    Args:
        preference: the row in canonical form; None for a row of token ids.
        row: the row.

    Raises:
        RowProblem: it has images, or a message with an image part.
    """
    fix = (
        "Pass processing_class=AutoProcessor.from_pretrained(...) and a vision-language model, or remove the images, "
        "if the rows make sense without them."
    )
    for column in IMAGE_COLUMNS:
        if not is_nothing(row.get(column)):
            problem = "has images, but processing_class is a tokenizer"
            raise RowProblem(column, problem, value=row[column], fix=fix)
    if isinstance(preference, ChatPreference):
        for turn in (*preference.prompt, *preference.chosen, *preference.rejected):
            if num_images(turn["content"]):
                problem = "has an image part, but processing_class is a tokenizer"
                raise RowProblem("prompt", problem, value=turn["content"], fix=fix)


def image_columns(dataset: Dataset) -> list[str]:
    """The columns of a data set that hold images, under names that are read."""
    return [column for column in IMAGE_COLUMNS if column in dataset.column_names]


def encode_rows(rows: Sequence[Row]) -> list[Row | dict[str, Any]]:
    """Rows of a list with their PIL images as `{"bytes": ..., "path": ...}`, which fits into a table.

    Raises:
        DataError: an image that cannot be encoded; the message names the row.
    """
    return [_encode_row(index, row) for index, row in enumerate(rows)]


def without_decoding(dataset: Dataset) -> Dataset:
    """The same rows with images as `{"bytes": ..., "path": ...}`, so that a missing file is found row by row."""
    columns = image_columns(dataset)
    if not columns:
        return dataset
    encoded = copy.deepcopy(dataset)  # no byte of the table is copied
    features = encoded.info.features
    assert features is not None  # a Dataset has them
    for column in columns:
        features[column] = _undecoded(features[column])
    return encoded


def stamp_files(dataset: Dataset) -> str:
    """A hash of the size and time of change of every image that is kept as a file; changes when one of them does."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for column in image_columns(dataset):
        for batch in dataset.select_columns([column]).with_format("arrow").iter(batch_size=100):
            for path in _file_paths(cast("pa.Table", batch).column(column).combine_chunks()):
                digest.update(f"{path} {_stamp(path)}\n".encode())
    return digest.hexdigest()


def attach_images(prepared: Dataset, source: Dataset) -> Dataset:
    """Prepared rows beside the image columns of the rows that they were made from, one for one."""
    columns = image_columns(source)
    if not columns:
        return prepared
    return datasets.concatenate_datasets([prepared, without_decoding(source).select_columns(columns)], axis=1)


def _read_image(column: str, index: int, value: Any) -> EncodedImage:
    if _is_pillow(value):
        value = datasets.Image().encode_example(value)
    if isinstance(value, str | Path):
        value = {"path": str(value)}
    if not isinstance(value, Mapping) or is_nothing(value):
        raise RowProblem(column, f"item {index} is {type(value).__name__}, no image", value=value, fix=IMAGE_FIX)
    content, path = value.get("bytes"), value.get("path")
    if isinstance(content, bytes):
        return EncodedImage(content, path or f"image {index}", column)
    if not isinstance(path, str) or content is not None:
        raise RowProblem(column, f"item {index} has no bytes and no path", value=value, fix=IMAGE_FIX)
    return EncodedImage(_read_file(column, path), path, column)


def _read_file(column: str, path: str) -> bytes:
    if "://" in path:
        fix = "Download the images first: nothing is fetched while a data set is prepared."
        raise RowProblem(column, "is a URL, not a file", value=path, fix=fix)
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        fix = f"Give the path of a file (looked for {Path(path).expanduser().absolute()}), or remove the row."
        raise RowProblem(column, f"{path} cannot be read: {error.strerror}", value=path, fix=fix) from error


def _file_paths(images: Any) -> list[str]:
    """Of an arrow array of images, at any depth: the paths of those without bytes."""
    while pa.types.is_list(images.type) or pa.types.is_large_list(images.type):
        images = images.flatten()
    if pa.types.is_struct(images.type):
        names = [images.type.field(index).name for index in range(images.type.num_fields)]
        fields = dict(zip(names, images.flatten(), strict=True))
        if not {"path", "bytes"} <= fields.keys():
            return []
        images = fields["path"].filter(fields["bytes"].is_null())
    return [path for path in images.to_pylist() if isinstance(path, str)]


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).expanduser().stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _with_parts(turn: Message, num_images_first: int = 0) -> dict[str, Any]:
    return {**turn, "content": as_parts(turn["content"], num_images_first=num_images_first)}


def _encode_row(index: int, row: Row) -> Row | dict[str, Any]:
    columns = [column for column in IMAGE_COLUMNS if isinstance(row, Mapping) and row.get(column) is not None]
    if not columns:
        return row
    return {**row, **{column: _encode(index, column, row[column]) for column in columns}}


def _encode(index: int, column: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_encode(index, column, item) for item in value]
    if isinstance(value, str | Path):
        return {"bytes": None, "path": str(value)}  # one type for the column, whatever the other rows give
    if not _is_pillow(value):
        return value
    try:
        return datasets.Image().encode_example(value)
    except Exception as error:  # encoders refuse images without pixels and odd modes in many ways
        raise DataError(
            f"row {index}, column {column!r}: {excerpt(value)} cannot be encoded: {type(error).__name__}: {error}"
        ) from error


def _is_pillow(value: Any) -> bool:
    """A `PIL.Image.Image`, told without importing Pillow, which rows of text do not need."""
    return any(base.__module__ == "PIL.Image" for base in type(value).__mro__)


def _undecoded(feature: Any) -> Any:
    """The feature with `decode=False` in every `datasets.Image` of it."""
    if isinstance(feature, datasets.Image):
        return replace(feature, decode=False)
    if isinstance(feature, list):
        return [_undecoded(item) for item in feature]
    if is_dataclass(feature) and not isinstance(feature, type) and "feature" in vars(feature):
        return replace(feature, feature=_undecoded(vars(feature)["feature"]))
    return feature
