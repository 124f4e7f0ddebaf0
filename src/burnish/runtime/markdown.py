"""The few forms of Markdown that a model card is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells; a bar in a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def folded(title: str, content: str) -> str:
    """Content that opens at a click."""
    return f"<details>\n<summary>{title}</summary>\n\n{content}\n\n</details>"


def block(language: str, lines: Sequence[str]) -> str:
    """Lines as they are, in a code block whose fence is longer than any run of backticks inside."""
    text = "\n".join(lines)
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}{language}\n{text}\n{fence}"


def code(value: Any) -> str:
    """A value in one line, as code."""
    return f"`{one_line(str(value)).replace('`', chr(39))}`"


def one_line(text: str) -> str:
    """A text with every run of white space as one blank."""
    return " ".join(text.split())
