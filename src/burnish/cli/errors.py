"""From an exception to what the user sees, and to the exit code."""

from __future__ import annotations

import contextlib
import errno
import traceback
from collections.abc import Iterator

import typer

from burnish.cli.runfile import RunFileError

OK, INTERNAL, USAGE, DATA, DIVERGED, STORAGE, INTERRUPTED = 0, 1, 2, 3, 5, 6, 130

# By name, so that no error message has to wait for torch to be imported.
EXIT_CODES = {
    "burnish.data.errors.DataError": DATA,
    "burnish.runtime.guard.DivergedError": DIVERGED,
    "burnish.runtime.tree.CheckpointError": STORAGE,
    "safetensors._safetensors_rust.SafetensorError": STORAGE,  # a full disk, a damaged file
}
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
USER_ERRORS = (ValueError, TypeError, OSError, ImportError)


def exit_code(error: BaseException) -> int:
    """The exit code of an error; `INTERNAL` for one that is not the user's to fix."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    for kind in type(error).__mro__:
        if (code := EXIT_CODES.get(f"{kind.__module__}.{kind.__qualname__}")) is not None:
            return code
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        return STORAGE
    return USAGE if isinstance(error, USER_ERRORS) else INTERNAL


@contextlib.contextmanager
def shown_to_user(*, debug: bool) -> Iterator[None]:
    """Show an error without its traceback and end with its exit code; one of ours, or under `debug`, with it."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        _print("Interrupted.")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        code = exit_code(error)
        if debug or code == INTERNAL:
            _print(traceback.format_exc())
        _print(f"Error: {error}" if str(error) else f"Error: {type(error).__name__}")
        if not debug and code != INTERNAL and not isinstance(error, RunFileError):
            _print("(--debug shows where this was raised)")
        raise typer.Exit(code) from None


def printable(text: str) -> str:
    """Text in which the characters that steer a terminal are written out; for stdout and stderr alike, no markup."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _print(text: str) -> None:
    typer.echo(printable(text), err=True)
