"""Where code that a model wrote may run: a jail of Linux namespaces, without network, files, processes or rights.

Without namespaces nothing runs, unless `unsafe_local=True` says that the machine itself may be harmed. A jail is no
virtual machine: it is as strong as the kernel. See docs/rewards.md for what it does and what it does not.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from burnish.rewards import jail
from burnish.rewards.worker import start_process

LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
CHUNK = 65536
SPARE_SECONDS = 2.0  # for building the jail and starting the interpreter


class SandboxError(RuntimeError):
    """The code was not run: there is no sandbox on this machine, or it could not be built."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of time, and of processor time.
        memory: bytes of address space.
        output: bytes of stdout and of stderr.
        disk: bytes of files.
        processes: and threads.
    """

    seconds: float = 10.0
    memory: int = 512 * 2**20
    output: int = 64 * 2**10
    disk: int = 16 * 2**20
    processes: int = 16


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What came of a program.

    Attributes:
        exit_code: 128 and the number of a signal if one ended it, as at the limit of processor time; None if it was
            stopped.
        stdout: up to the limit of output.
        stderr: up to the limit of output.
        stopped: the limit that it was stopped at: `seconds` or `output`; None if it ended by itself.
    """

    exit_code: int | None
    stdout: str
    stderr: str
    stopped: str | None = None


def run_python(program: str, *, stdin: str = "", limits: Limits | None = None, unsafe_local: bool = False) -> RunResult:
    """Run a Python program that nobody has read, with the standard library alone.

    Args:
        program: its source.
        stdin: its input.
        limits: what it may use.
        unsafe_local: run it as this user, with limits of time, memory and output alone: it can read and write what
            this user can, and reach the network.

    Raises:
        SandboxError: there is no sandbox here.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="burnish-sandbox-", ignore_cleanup_errors=True) as directory:
        root = Path(directory)
        for name in ("root", "home"):
            (root / name).mkdir()
        read, write = os.pipe()
        try:
            settings = _settings(program, limits, root, status=write, jailed=not unsafe_local)
            (root / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
            process = start_process(
                [sys.executable, "-I", jail.__file__, str(root / "settings.json")],
                pass_fds=[write],
                start_new_session=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"LANG": "C.UTF-8"},
                cwd="/",
            )
        finally:
            os.close(write)
        try:
            result = _watch(process, stdin.encode("utf-8", "surrogatepass"), limits)
        finally:
            _end(process)
            with os.fdopen(read, encoding="utf-8") as status:
                problem = status.read()
    if problem:
        raise SandboxError(
            f"the sandbox could not be built ({problem}). It needs Linux >= 5.12 and leave to make namespaces: root, "
            "or unprivileged user namespaces. Code was not run; unsafe_local=True runs it without a sandbox"
        )
    return result


@functools.lru_cache(maxsize=1)
def sandbox_problem() -> str | None:
    """Why no program can be run here, or None; tried once."""
    try:
        result = run_python("print(6 * 7)")
    except (SandboxError, OSError) as error:
        return str(error)
    return None if result.stdout == "42\n" else f"a program that prints 42 gave {result}"


def _settings(program: str, limits: Limits, root: Path, *, status: int, jailed: bool) -> dict[str, object]:
    python = os.path.realpath(sys.executable)
    standard = [os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
    library = sysconfig.get_config_var("LIBDIR")
    wanted = {*LIBRARIES, python, *standard, *([os.path.realpath(library)] if library else [])}
    visible = sorted(path for path in wanted if os.path.exists(path))
    seconds = int(limits.seconds) + 1
    return {
        "program": program,
        "status": status,
        "parent": os.getpid(),
        "jailed": jailed,
        "root": str(root / "root"),
        "home": str(root / "home"),
        "python": python,
        "visible": [path for path in visible if not any(path.startswith(f"{other}/") for other in visible)],
        "disk": limits.disk,
        "user": 2**30 + secrets.randbelow(2**29),  # nobody else's, so that its processes can be counted
        "limits": {
            "RLIMIT_CPU": seconds,
            "RLIMIT_AS": limits.memory,
            "RLIMIT_FSIZE": limits.disk,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
            **({"RLIMIT_NPROC": limits.processes} if jailed else {}),
        },
    }


def _watch(process: subprocess.Popen[bytes], stdin: bytes, limits: Limits) -> RunResult:
    """Feed and read a program until it ends or reaches a limit."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    deadline = time.monotonic() + limits.seconds + SPARE_SECONDS
    texts: dict[IO[bytes], bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    stopped = None
    with selectors.DefaultSelector() as selector:
        for stream in texts:
            selector.register(stream, selectors.EVENT_READ)
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        while stopped is None and any(key.fileobj in texts for key in selector.get_map().values()):
            for key, _ in selector.select(max(deadline - time.monotonic(), 0)):
                if key.fileobj is process.stdin:
                    stdin = _feed(process.stdin, stdin)
                    if not stdin:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                elif chunk := os.read(key.fd, CHUNK):
                    texts[key.fileobj] += chunk  # pyright: ignore[reportArgumentType]
                else:
                    selector.unregister(key.fileobj)
            if any(len(text) > limits.output for text in texts.values()):
                stopped = "output"
            elif time.monotonic() >= deadline:
                stopped = "seconds"
        if stopped is None:
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                stopped = "seconds"
    stdout, stderr = (bytes(text[: limits.output]).decode("utf-8", "replace") for text in texts.values())
    code = process.returncode if stopped is None else None
    return RunResult(exit_code=code, stdout=stdout, stderr=stderr, stopped=stopped)


def _feed(stream: IO[bytes], text: bytes) -> bytes:
    """Write what the pipe takes; what is left, nothing if nobody reads any more."""
    try:
        return text[os.write(stream.fileno(), text[:CHUNK]) :] if text else b""
    except BrokenPipeError:
        return b""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the processes of the jail, whatever they have done to themselves."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
