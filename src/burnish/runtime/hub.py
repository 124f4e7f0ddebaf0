"""What goes up to the hub: a folder of its own, listed and looked through before anything leaves the machine."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from burnish.runtime.checkpoint import UPLOAD
from burnish.runtime.manifest import SECRET_SHAPE

NUM_LISTED_PROBLEMS = 8
# What a checkpoint holds beside a model; the rest of its files is the model.
TRAINING_STATE = re.compile(
    r"(optimizer|scheduler|scaler|trainer_extra|rank_state_\d+)\.(json|safetensors)|trainer_state\.json|MANIFEST\.json"
)

_PRIVATE = re.compile(r"\.env(\..*)?|.*\.(pem|key|p12|keystore)|id_(rsa|dsa|ecdsa|ed25519)|\.netrc|\.git-credentials")
_PICKLES = re.compile(r".*\.(bin|pt|pth|pkl|pickle|ckpt|joblib)")


class UploadRefusedError(ValueError):
    """A folder that may not go up: the message names every file and what is wrong with it."""


def upload_folder(run_dir: Path, name: str = "") -> Path:
    """A new, empty folder of the run directory for an upload; one of that name that was left over is removed."""
    folder = run_dir / f"{UPLOAD}{f'-{name}' if name else ''}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def link_files(files: Iterable[Path], source: Path, target: Path) -> None:
    """Put files of `source` under the same names into `target`, without a second copy where the disk allows it."""
    for path in files:
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except OSError:
            shutil.copy2(path, place)


def model_files(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint that `from_pretrained` reads, without those that only resuming needs."""
    return [path for path in files_of(checkpoint) if not TRAINING_STATE.fullmatch(path.name)]


def files_of(folder: Path) -> list[Path]:
    """Every file below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def check_upload(folder: Path, *, secrets: Sequence[str | None] = ()) -> str:
    """The files of a folder in one line, after looking through them.

    Args:
        folder: what would go up.
        secrets: texts that may be in no file, such as the token of the upload.

    Raises:
        UploadRefusedError: a private file, a pickle, a link, or a file that holds a secret or what looks like one.
    """
    files = files_of(folder)
    problems = [f"{path.relative_to(folder)}: {problem}" for path in files if (problem := _problem(path, secrets))]
    if problems:
        more = len(problems) - NUM_LISTED_PROBLEMS
        lines = [*problems[:NUM_LISTED_PROBLEMS], *([f"and {more} more"] if more > 0 else [])]
        raise UploadRefusedError(
            "Nothing was uploaded, since these files may not go up:\n- "
            + "\n- ".join(lines)
            + "\nFix: take the secret out of the files of the model or its tokenizer, or upload the others by hand."
        )
    size = sum(path.stat().st_size for path in files)
    return f"{len(files)} files, {size:,} bytes: {', '.join(str(path.relative_to(folder)) for path in files)}"


def _problem(path: Path, secrets: Sequence[str | None]) -> str | None:
    if path.is_symlink():
        return "a link, whose target may lie anywhere"
    name = path.name.lower()
    if _PRIVATE.fullmatch(name):
        return "a private file by its name"
    if _PICKLES.fullmatch(name):
        return "a pickle by its name, which runs code when it is loaded"
    if name.endswith(".safetensors"):
        return None  # tensors
    text = path.read_text(encoding="utf-8", errors="replace")
    if any(secret in text for secret in secrets if secret):
        return "holds the token of this upload"
    found = SECRET_SHAPE.search(text)
    return f"holds what looks like a secret, {found[0][:6]}…" if found else None
