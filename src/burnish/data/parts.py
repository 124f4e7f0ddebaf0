"""The content of a message as a list of parts: `{"type": "text", "text": ...}` and `{"type": "image"}`.

An image part says where an image stands; the images themselves are in the row's column, in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from burnish.data.errors import RowProblem

Part = Mapping[str, str]

IMAGE_COLUMNS = ("images", "image")
IMAGE_PART: Part = {"type": "image"}


def read_parts(column: str, content: Sequence[Any], *, where: str = "") -> str | list[Part]:
    """Content in canonical form: the joined text of its parts, or a list of parts if an image is among them.

    Args:
        column: the message's column, for errors.
        content: the parts; keys without a value are ignored, since tables fill them in.
        where: which message, for errors, with a blank at its end.

    Raises:
        RowProblem: a part that is no text and no image, or an image part that carries its image itself.

    Example:
        >>> read_parts("prompt", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])
        'ab'
    """
    parts = [_read_part(column, index, part, where) for index, part in enumerate(content)]
    return parts if num_images(parts) else text_of(parts)


def text_of(content: str | Sequence[Part]) -> str:
    """The text of a message's content; images are left out."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def num_images(content: str | Sequence[Part]) -> int:
    """Image parts of a message's content."""
    return 0 if isinstance(content, str) else sum(part["type"] == "image" for part in content)


def as_parts(content: str | Sequence[Part], *, num_images_first: int = 0) -> list[Part]:
    """Content as a list of parts, behind as many image parts."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    return [IMAGE_PART] * num_images_first + parts


def _read_part(column: str, index: int, part: Any, where: str) -> Part:
    place = f"{where}part {index} "
    fix = "A part is {'type': 'text', 'text': ...} or {'type': 'image'}."
    if not isinstance(part, Mapping):
        raise RowProblem(column, f"{place}is {type(part).__name__}", value=part, fix=fix)
    filled = {key: value for key, value in part.items() if value is not None}
    kind = filled.pop("type", None)
    if kind == "text":
        if not isinstance(filled.get("text"), str):
            raise RowProblem(column, f"{place}has no text", value=part, fix=fix)
        return {"type": "text", "text": filled["text"]}
    if kind != "image":
        raise RowProblem(column, f"{place}has an unknown type", value=kind, fix=f"{fix} Others are not built yet.")
    if filled.pop("text", "") or filled:
        fix = "Put the image into the column images, in the order of the parts, and leave {'type': 'image'} here."
        raise RowProblem(column, f"{place}carries its image itself", value=part, fix=fix)
    return IMAGE_PART
