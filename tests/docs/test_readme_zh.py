"""Both READMEs say the same: code, headings, links and marks do not drift apart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
BLOCK = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    return BLOCK.sub("", text)


def links(text: str) -> list[str]:
    """Where links lead, in order; those from one README to the other are left out."""
    return [target for target in re.findall(r"\]\(([^)]+)\)", prose(text)) if not target.startswith("README")]


def test_code_blocks_are_identical():
    blocks = BLOCK.findall(ENGLISH)
    assert len(blocks) >= 7
    assert BLOCK.findall(CHINESE) == blocks


def test_headings_have_the_same_levels_in_order():
    english, chinese = (re.findall(r"^(#+) ", prose(text), re.MULTILINE) for text in (ENGLISH, CHINESE))
    assert len(english) >= 6
    assert chinese == english


def test_links_lead_to_the_same_places():
    assert sorted(links(CHINESE)) == sorted(links(ENGLISH))
    assert all((ROOT / target).exists() for target in links(CHINESE))


@pytest.mark.parametrize("kind", [r"^- \*\*", r"`make [a-z-]+`", r"`[^`\n]+`"], ids=["points", "commands", "code"])
def test_as_many_of_a_kind(kind):
    """Points of a list, commands, and inline code in either language."""
    english, chinese = (re.findall(kind, prose(text), re.MULTILINE) for text in (ENGLISH, CHINESE))
    assert sorted(chinese) == sorted(english)


def test_each_leads_to_the_other():
    assert "](README.zh-CN.md)" in ENGLISH
    assert "](README.md)" in CHINESE


def test_the_translation_is_one():
    """Most letters of its prose are Chinese; lines are short."""
    text = re.sub(r"`[^`]*`|\([^)]*\)", "", prose(CHINESE))
    chinese, latin = len(re.findall(r"[\u4e00-\u9fff]", text)), len(re.findall(r"[A-Za-z]", text))
    assert chinese > 2 * latin
    assert max(map(len, CHINESE.splitlines())) <= 140
