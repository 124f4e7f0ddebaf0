"""Every Python snippet of the README and the pages runs.

The snippets of a page run from top to bottom in one namespace, like a notebook, in an empty directory, without a
network. There they find

- `my-model`: a directory with a tiny random model and its tokenizer; every tenth token ends an answer of it;
- `my-reward-model`: one with a tiny random sequence classifier;
- `smollm2-135m`, the embedded model: the same tiny model;
- `rows.jsonl`: twelve preference rows as messages;
- `problems.jsonl`: three prompts as messages, each with a `solution`;
- `recipe:NAME`: the data sets of the package, as they are.

A snippet after a line `<!-- skip: reason -->` is not run.
"""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path
from shutil import copytree

import pytest

from burnish.cli.runfile import load_runfile
from burnish.models.embedded import EMBEDDED
from conftest import make_classifier, make_model, make_rows, make_tokenizer

ROOT = Path(__file__).parents[2]
SNIPPET = re.compile(r"(?P<skip><!-- skip: \S.*? -->\s*\n)?^```python\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)


def snippets(path: Path) -> list[str]:
    """The code of each snippet, moved down by empty lines so that an error names the line of the page."""
    text = path.read_text(encoding="utf-8")
    found = [match for match in SNIPPET.finditer(text) if not match["skip"]]
    return ["\n" * text.count("\n", 0, match.start("code")) + match["code"] for match in found]


PAGES = [
    path
    for path in [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "docs" / "seams").glob("*.md")),
    ]
    if path.is_file() and snippets(path)
]
SLOW_PAGES = {
    "data.md",
    "reference.md",
    "trl-examples.md",
    "trl-grpo-examples.md",
    "trl-reward-examples.md",
    "trl-sft-kto-examples.md",
}  # several runs each
RUN_FILE = re.compile(r"^```yaml\n(method: .*?)^```", re.DOTALL | re.MULTILINE)


def save_tiny_model(directory: Path) -> None:
    model = make_model(max_position_embeddings=2048)
    model.generation_config.eos_token_id = list(range(2, 259, 10))
    model.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)


def save_tiny_classifier(directory: Path) -> None:
    make_classifier(hidden_size=16, intermediate_size=24, num_hidden_layers=1).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)


@pytest.fixture(scope="module")
def furnished(tmp_path_factory) -> Path:
    """The directory of the module docstring, to be copied."""
    folder = tmp_path_factory.mktemp("furnished")
    save_tiny_model(folder / "my-model")
    save_tiny_classifier(folder / "my-reward-model")
    for name, model in EMBEDDED.items():
        copytree(folder / "my-model", folder / model.hub_name)  # where the name leads without the package
        try:
            version = metadata.version(model.distribution)
        except metadata.PackageNotFoundError:
            continue
        copytree(folder / "my-model", folder / "cache" / "models" / f"{name}-{version}")
    problems = [{"prompt": [{"role": "user", "content": f"{n} + 1 ="}], "solution": f"${n + 1}$"} for n in range(3)]
    for name, rows in (("rows", make_rows(12)), ("problems", problems)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def workplace(furnished, tmp_path, monkeypatch) -> Path:
    """A copy of that directory, as the current one."""
    copytree(furnished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.gallery) if p.name in SLOW_PAGES else p for p in PAGES],
    ids=lambda path: path.name,
)
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


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_whole_run_files_are_sound(page, workplace):
    """A YAML block that names method, model and data is one that `burnish train` takes."""
    texts = RUN_FILE.findall(page.read_text(encoding="utf-8"))
    for text in [text for text in texts if "\nmodel: " in text and "\ndata: " in text]:
        (workplace / "run.yaml").write_text(text)
        assert load_runfile("run.yaml").method in text
