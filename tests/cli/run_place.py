"""What the tests of run files share: a directory with a tiny model and rows, and a run whose screen is a text."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from burnish.cli.run import Outcome, run
from burnish.cli.runfile import load_runfile
from conftest import make_classifier, make_model, make_tokenizer

SUMS = [{"prompt": [{"role": "user", "content": f"{n} + 1 ="}], "answer": str(n + 1)} for n in range(8)]


def save_model(
    folder: str | Path, model: PreTrainedModel | None = None, tokenizer: PreTrainedTokenizerFast | None = None
) -> None:
    """A model, the tiny one if not given, and its tokenizer beside it."""
    (make_model() if model is None else model).save_pretrained(folder)
    (make_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder)


def save_classifier(folder: str | Path) -> None:
    """A smaller model that scores answers, with the same tokenizer."""
    save_model(folder, make_classifier(hidden_size=16, intermediate_size=24, num_hidden_layers=1))


def write_rows(path: str | Path, rows: Iterable[dict]) -> None:
    """One JSON object a line."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def start(path: str | Path, overrides: Sequence[str] = (), *, width: int = 120) -> tuple[Outcome, str]:
    """Train as the run file and these texts of `--set` say; what came of it, and what was shown."""
    screen = io.StringIO()
    outcome = run(load_runfile(path, list(overrides)), console=Console(file=screen, width=width))
    return outcome, screen.getvalue()
