"""Checkpoints without pickle: written whole or not at all, verified by SHA-256 before they are used.

A checkpoint is built in `.tmp-checkpoint-<step>`, synced, sealed by MANIFEST.json, and renamed. A name
without the prefix is therefore complete, and a file that changed afterwards is found by `verify`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from burnish.runtime.tree import CheckpointError, errno_of, load_tree, save_tree

__all__ = ["CheckpointError", "atomic_directory", "checkpoints", "load_tree", "newest_sound", "read_manifest"]
__all__ += ["remove_leftovers", "rotate", "save_tree", "sync_directory", "verify", "what_is_wrong"]

FORMAT = 1
MANIFEST = "MANIFEST.json"
UNFINISHED, SET_ASIDE, UPLOAD = ".tmp-", ".old-", ".hub-upload"

_CHUNK = 8 << 20
_NUMBERED = re.compile(r"checkpoint-(0|[1-9][0-9]*)")

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic_directory(
    target: Path, *, is_main: bool, barrier: Callable[[], None], manifest: Mapping[str, Any]
) -> Iterator[Path]:
    """Yield a directory that all ranks fill, which becomes `target` when every rank is done, or not at all.

    Only the main process creates, seals, renames and removes; an existing `target` is replaced at the end.

    Args:
        target: the directory to make.
        is_main: whether this is the one process that seals the directory.
        barrier: returns when every rank has called it; with a time-out, since a rank that fails does not.
        manifest: what MANIFEST.json says beside the files, such as the step and the world size; JSON.

    Raises:
        ValueError: `manifest` sets a key that is filled in here.
        CheckpointError: an OSError inside or while sealing; names the path, the bytes free and needed.
    """
    if reserved := {"format", "files", "sha256"} & manifest.keys():
        raise ValueError(f"The manifest of {target} may not set {sorted(reserved)}: these keys are filled in here.")
    temporary = target.with_name(UNFINISHED + target.name)
    try:
        if is_main:
            if target.is_symlink() or (target.exists() and not target.is_dir()):
                raise FileExistsError(f"{target} exists and is not a directory")
            _remove(temporary)
            temporary.mkdir(parents=True)
        barrier()
        yield temporary
        barrier()
        if is_main:
            _seal(temporary, manifest)
            _put_in_place(temporary, target)
        barrier()
    except BaseException as error:
        failure = _failure(error, temporary, target) if isinstance(error, OSError | SafetensorError) else None
        if is_main:
            _undo(temporary, target)
        if failure is not None:
            raise failure from error
        raise


def _seal(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Sync every file, list them all with size and digest in MANIFEST.json, and sync that last."""
    files: list[dict[str, Any]] = []
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise OSError(f"{path} is neither a file nor a directory; a checkpoint holds its own bytes")
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != MANIFEST:
            files.append({"name": name, "size": path.stat().st_size, "sha256": _sha256(path, sync=True)})
    with Path(directory, MANIFEST).open("wb") as file:
        file.write(_manifest_bytes({"format": FORMAT, **manifest, "files": files}))
        file.flush()
        os.fsync(file.fileno())
    for folder in [path for path in directory.rglob("*") if path.is_dir()]:
        sync_directory(folder)
    sync_directory(directory)


def _put_in_place(temporary: Path, target: Path) -> None:
    aside = target.with_name(SET_ASIDE + target.name)
    if target.exists():
        _remove(aside)
        target.rename(aside)
    temporary.rename(target)
    sync_directory(target.parent)
    _remove(aside)


def _undo(temporary: Path, target: Path) -> None:
    aside = target.with_name(SET_ASIDE + target.name)
    try:
        if aside.exists() and not target.exists():
            aside.rename(target)
        if temporary.is_dir():
            discarded = temporary.with_name(f"{temporary.name}-discarded")
            temporary.rename(discarded)  # another rank that is still writing finds no directory, and stops
            _remove(discarded)
    except OSError as error:
        logger.warning("%s could not be cleaned up and is removed at the next start: %s", temporary, error)


def _failure(error: BaseException, temporary: Path, target: Path) -> CheckpointError:
    written = _bytes_in(temporary)
    earlier = checkpoints(target.parent)
    needed = max(written, _bytes_in(earlier[0]) if earlier else 0)
    folder = next((parent for parent in target.parents if parent.exists()), Path("/"))
    free = shutil.disk_usage(folder).free
    return CheckpointError(
        f"The checkpoint {target} was not saved: {error}\n"
        f"Free: {free:,} bytes. Needed: at least {needed:,} bytes, of which {written:,} were written.\n"
        "Earlier checkpoints are untouched.\n"
        "Fix: remove the cause; for space, use an output_dir on another disk or a lower save_total_limit.",
        errno=errno_of(error),
    )


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` survive a power loss, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path, *, sync: bool = False) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        if sync:
            os.fsync(file.fileno())
    return digest.hexdigest()


def _manifest_bytes(content: Mapping[str, Any]) -> bytes:
    """JSON that ends in the digest of the rest, so that a damaged manifest is recognised too."""
    plain = {key: value for key, value in content.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(plain, allow_nan=False).encode()).hexdigest()
    return (json.dumps({**plain, "sha256": digest}, indent=1, allow_nan=False) + "\n").encode()


def read_manifest(directory: Path) -> dict[str, Any]:
    """MANIFEST.json of a checkpoint, itself verified.

    Raises:
        CheckpointError: it is missing, damaged, or of a newer format.
    """
    path = Path(directory, MANIFEST)
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
        newer = content["format"] > FORMAT
        damaged = raw != _manifest_bytes(content)
        rows = [(row["name"], row["size"], row["sha256"]) for row in content["files"]]
    except FileNotFoundError as error:
        raise CheckpointError(f"{MANIFEST} is missing: the save did not finish", errno=error.errno) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{MANIFEST} cannot be read: {error!r}", errno=errno_of(error)) from error
    if newer:
        raise CheckpointError(f"{MANIFEST} has format {content['format']}; this version reads up to {FORMAT}")
    if damaged or any(type(name) is not str for name, _, _ in rows):
        raise CheckpointError(f"{MANIFEST} is damaged: it does not match its own digest")
    return content


def verify(directory: Path, *, digests: bool = True) -> list[str]:
    """What is wrong with a checkpoint, one sentence each; empty if it is sound.

    Args:
        directory: the checkpoint.
        digests: compare SHA-256 too, which reads every byte; without it only names and sizes are compared.
    """
    try:
        files = read_manifest(directory)["files"]
    except CheckpointError as error:
        return [str(error)]
    problems = [_problem(directory, **row, digests=digests) for row in files]
    return [problem for problem in problems if problem is not None]


def _problem(directory: Path, *, name: str, size: int, sha256: str, digests: bool) -> str | None:
    path = directory / name
    root = directory.resolve()
    if root not in path.resolve().parents or ".." in Path(name).parts:
        return f"{name} lies outside the checkpoint"
    if not path.is_file():
        return f"{name} is missing"
    if path.stat().st_size != size:
        return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
    try:
        sound = not digests or _sha256(path) == sha256
    except OSError as error:
        return f"{name} cannot be read: {error}"
    return None if sound else f"{name} was changed after it was written (SHA-256 differs)"


def what_is_wrong(directory: Path, problems: Sequence[str]) -> str:
    """What keeps a run from resuming from what was given as a checkpoint, whose problems `verify` has found."""
    if not directory.is_dir():
        return f"there is no checkpoint {directory} (looked for {directory.absolute()})."
    if inside := checkpoints(directory):
        return f"{directory} is no checkpoint but has {len(inside)} of them: give one, such as {inside[0]}."
    if not _NUMBERED.fullmatch(directory.name) and not (directory / MANIFEST).exists():
        return f"{directory} is no checkpoint of Burnish, which has {MANIFEST} beside its files: give it as the model."
    return f"checkpoint {directory} is damaged: {'; '.join(problems[:3])}."


def checkpoints(run_dir: Path) -> list[Path]:
    """The `checkpoint-<step>` directories of a run, newest step first; a symlink is none of them."""
    found = [(int(match[1]), path) for path in _folders(run_dir) if (match := _NUMBERED.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def newest_sound(run_dir: Path, *, on_skip: Callable[[Path, list[str]], None]) -> Path | None:
    """The newest checkpoint that verifies, or None; `on_skip(path, problems)` hears of each one passed over.

    A checkpoint that a crash caught between the two renames of a replacement is put back first.
    """
    _put_back(run_dir)
    for path in checkpoints(run_dir):
        problems = verify(path)
        if not problems:
            return path
        on_skip(path, problems)
    return None


def rotate(run_dir: Path, *, keep: int | None, protected: Iterable[Path]) -> list[Path]:
    """Delete the oldest checkpoints until `keep` are left, and return them; None keeps all.

    Never deleted: the newest, the newest with all its files, and those in `protected`; these count as kept.

    Raises:
        ValueError: `keep` is below 1.
    """
    if keep is None:
        return []
    if keep < 1:
        raise ValueError(f"save_total_limit={keep} would delete every checkpoint; use 1 or more, or None to keep all.")
    found = checkpoints(run_dir)
    complete = [path for path in found if not verify(path, digests=False)]
    spared = {path.resolve() for path in (*protected, *found[:1], *complete[:1])}
    deletable = [path for path in reversed(found) if path.resolve() not in spared]
    doomed = deletable[: max(0, len(found) - keep)]
    for path in doomed:
        unfinished = path.with_name(UNFINISHED + path.name)
        _remove(path.with_name(SET_ASIDE + path.name))
        _remove(unfinished)
        path.rename(unfinished)  # killed half-way, it is a leftover and not half a checkpoint
        _remove(unfinished)
    return doomed


def remove_leftovers(run_dir: Path) -> list[Path]:
    """Delete what interrupted saves and uploads left in a run that no process is writing, and return it."""
    _put_back(run_dir)
    prefixes = (f"{UNFINISHED}checkpoint-", f"{SET_ASIDE}checkpoint-", UPLOAD)
    doomed = [path for path in _folders(run_dir) if path.name.startswith(prefixes)]
    for path in doomed:
        _remove(path)
    return doomed


def _put_back(run_dir: Path) -> None:
    for path in _folders(run_dir):
        target = path.with_name(path.name.removeprefix(SET_ASIDE))
        if path.name.startswith(SET_ASIDE) and not target.exists() and not verify(path, digests=False):
            with contextlib.suppress(FileNotFoundError):  # another rank was first
                path.rename(target)
            logger.warning("%s was put back: a crash had interrupted its replacement", target)


def _folders(run_dir: Path) -> list[Path]:
    if not run_dir.is_dir():
        return []
    with os.scandir(run_dir) as entries:
        return sorted(run_dir / entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


def _remove(directory: Path) -> None:
    if directory.is_dir() and not directory.is_symlink():
        shutil.rmtree(directory)


def _bytes_in(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another rank is writing, and replaces its files
            total += path.stat().st_size if path.is_file() else 0
    return total
