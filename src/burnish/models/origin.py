"""Where a model came from, without asking a network: its name on the hub, and its licence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from burnish.models.embedded import EMBEDDED
from burnish.models.load import cache_directory

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)


@dataclass(frozen=True)
class Origin:
    """The name of a model on the hub and its licence, each None where it is not known."""

    hub_name: str | None
    license: str | None


def origin_of(name: str) -> Origin:
    """The origin of a model, by the name or directory that it was loaded from.

    A directory says it in the front matter of its README.md; a name of two parts that is no directory is a name on the
    hub, whose licence is not looked up.
    """
    path = Path(name)
    for short_name, model in EMBEDDED.items():
        if path.parent == cache_directory() / "models" and path.name.startswith(f"{short_name}-"):
            return Origin(model.hub_name, model.license)
    if name and path.is_dir():
        return Origin(None, _license_in(path / "README.md"))
    known = {model.hub_name: model.license for model in EMBEDDED.values()}
    return Origin(name if _HUB_NAME.fullmatch(name) else None, known.get(name))


def _license_in(readme: Path) -> str | None:
    try:
        matter = _FRONT_MATTER.match(readme.read_text(encoding="utf-8"))
        content = yaml.safe_load(matter[1]) if matter else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    stated = content.get("license") if isinstance(content, dict) else None
    return stated if isinstance(stated, str) else None
