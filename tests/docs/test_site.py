"""Every page is in the navigation of the site, which loads nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import burnish
import burnish.testing

ROOT = Path(__file__).parents[2]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages(nav: list | dict | str) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from pages(part)


def test_every_page_is_in_the_navigation_once():
    listed = list(pages(SITE["nav"]))
    assert sorted(listed) == sorted(
        path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")
    )


def test_the_build_is_strict_and_loads_nothing():
    assert SITE["strict"] is True
    assert SITE["validation"]["nav"]["omitted_files"] == "warn"
    assert SITE["theme"]["font"] is False
    assert not SITE.get("extra_javascript", []) + SITE.get("extra_css", [])


@pytest.mark.parametrize("module", [burnish, burnish.testing])
def test_every_public_name_is_on_the_page_of_the_api(module):
    shown = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {f"{module.__name__}.{name}" for name in module.__all__} <= set(shown)
    assert len(shown) == len(set(shown))
