"""Every Python snippet of the README and the pages runs.

The snippets of a page run from top to bottom in one namespace, like a notebook, in an empty directory, without a
network. There they find

- `my-model`: a directory with a tiny random model and its tokenizer;
- `smollm2-135m`, the embedded model: the same tiny model;
- `rows.jsonl`: twelve preference rows as messages;
- `recipe:NAME`: the data sets of the package, as they are.

A snippet after a line `<!-- skip: reason -->` is not run.
"""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path

import pytest

from burnish.models.embedded import EMBEDDED
from conftest import make_model, make_rows, make_tokenizer

ROOT = Path(__file__).parents[2]
SNIPPET = re.compile(r"(?P<skip><!-- skip: \S.*? -->\s*\n)?^```python\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)


def snippets(path: Path) -> list[str]:
    """The code of each snippet, moved down by empty lines so that an error names the line of the page."""
    text = path.read_text(encoding="utf-8")
    found = [match for match in SNIPPET.finditer(text) if not match["skip"]]
    return ["\n" * text.count("\n", 0, match.start("code")) + match["code"] for match in found]


PAGES = [
    path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if path.is_file() and snippets(path)
]


def save_tiny_model(directory: Path) -> None:
    make_model(max_position_embeddings=2048).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """The directory of the module docstring, as the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    save_tiny_model(tmp_path / "my-model")
    for name, model in EMBEDDED.items():
        save_tiny_model(tmp_path / model.hub_name)  # where the name leads without the package
        try:
            save_tiny_model(tmp_path / "cache" / "models" / f"{name}-{metadata.version(model.distribution)}")
        except metadata.PackageNotFoundError:
            continue
    lines = [json.dumps(row) for row in make_rows(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_snippets_run(page, workplace, capsys):
    namespace = {"__name__": "snippet"}
    for code in snippets(page):
        exec(compile(code, str(page), "exec", dont_inherit=True), namespace)


def test_a_skipped_snippet_gives_its_reason(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- skip: needs a GPU -->\n```python\n1 / 0\n```\n\n```python\nx = 1\n```\n")
    assert [code.strip() for code in snippets(page)] == ["x = 1"]
    page.write_text("<!-- skip: -->\n```python\n1 / 0\n```\n")
    assert len(snippets(page)) == 1
