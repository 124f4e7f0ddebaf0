"""Worker processes that can be killed: one for each function that can be imported, started when it is first called.

A call that hangs, with or without the interpreter's lock, that crashes or that exits costs the process, with all that
it has forked, and nothing else: the next call gets a new one. Workers have a session of their own, so that a signal
to the training process is not theirs, and end with it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, is_dataclass
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from types import FunctionType, SimpleNamespace
from typing import Any, ClassVar

from burnish.rewards.calls import CRASH, LOAD, RESULT, TIMEOUT, Reply
from burnish.rewards.child import BOOT
from burnish.rewards.returns import AnswerShape

START_SECONDS = 120.0  # for the import of the function's module
LARGEST_REPLY = 64 * 2**20
MOST_OUTPUT = 64 * 2**10  # bytes of output of one call that are shown
TAIL = 4096
FRAME = re.compile(r'File "(.*)", line ([0-9]+) in (\S+)')  # of faulthandler, the innermost first
LOOK = 0.1  # seconds between two looks at whether the process is there

# Linux ends a worker when the thread that started it ends; this one ends with the interpreter.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="burnish-workers")


def start_process(command: Sequence[str], **settings: Any) -> subprocess.Popen[bytes]:
    """Start a process from the thread that lives as long as the interpreter."""
    process: Any = _starter.submit(partial(subprocess.Popen, command, **settings)).result()
    return process


@dataclass(frozen=True)
class Target:
    """A function by the name that a new process imports it under, its settings, and a package that it will need."""

    module: str
    qualname: str
    settings: dict[str, Any]
    package: str = ""


def target_of(function: Callable[..., Any], *, package: str = "") -> Target | None:
    """How a new process gets hold of a function; None for lambdas, closures, objects and functions of a script."""
    settings: dict[str, Any] = {}
    while isinstance(function, partial):
        if function.args:
            return None
        settings = {**function.keywords, **settings}
        function = function.func
    if not isinstance(function, FunctionType) or function.__module__ == "__main__" or os.name != "posix":
        return None
    place: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        place = vars(place).get(name) if isinstance(place, type | type(sys)) else None
    if place is not function or not _can_be_found(function.__module__):
        return None
    return Target(function.__module__, function.__qualname__, settings, package)


def _can_be_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:
        return False


class _Copier(ForkingPickler):
    """Copies tensors. What torch registers shares their memory, which needs the main process to answer."""

    _extra_reducers: ClassVar[dict[type, Any]] = {}


class Worker:
    """The process of one function."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._running: _Running | None = None

    def call(
        self, arguments: dict[str, Any], shapes: Sequence[AnswerShape], wants: Sequence[str], seconds: float | None
    ) -> Reply:
        """Call the function in its process, under a limit; a process that is not there is started, without one."""
        if self._running is None:
            self._running = _Running(self.target)
            reply = self._receive(START_SECONDS, "has not been imported")
            if reply.kind is not None:
                self.close()
                return reply
        state = arguments.get("trainer_state")
        if is_dataclass(state):
            arguments["trainer_state"] = SimpleNamespace(**vars(state))
        try:
            message = _Copier.dumps(({**arguments, **self.target.settings}, list(shapes), list(wants)))
            self._running.connection.send_bytes(message)
        except (BrokenPipeError, ConnectionResetError):
            return self._ended()
        except Exception as error:
            hint = "reward_isolation='none' calls the function in this process"
            return Reply(kind=LOAD, failure=f"has arguments that cannot be sent to its worker ({error}): {hint}")
        return self._receive(seconds, "has not come back")

    def close(self) -> None:
        """End the process and all that it has started."""
        running, self._running = self._running, None
        if running is not None:
            running.kill()

    def _receive(self, seconds: float | None, what: str) -> Reply:
        running = self._running
        assert running is not None
        start = time.monotonic()
        running.output.new_call()
        try:
            while not running.connection.poll(LOOK):
                if seconds is not None and time.monotonic() - start > seconds:
                    return self._stopped(f"{what} after {seconds:g} s, and its worker was stopped")
                if running.process.poll() is not None and not running.connection.poll():
                    return self._ended()
            return Reply.from_json(running.connection.recv_bytes(LARGEST_REPLY).decode())
        except (EOFError, ConnectionResetError):
            return self._ended()
        except OSError:
            self.close()
            return Reply(kind=RESULT, failure=f"returned more than {LARGEST_REPLY // 2**20} MB")

    def _stopped(self, failure: str) -> Reply:
        running = self._running
        assert running is not None
        stack = running.where()
        self.close()
        frame = FRAME.search(stack)
        place = f" ({frame[1]}:{frame[2]} in {frame[3]})" if frame else ""
        return Reply(kind=TIMEOUT, failure=f"{failure}{place}", details=stack)

    def _ended(self) -> Reply:
        running, self._running = self._running, None
        assert running is not None
        code = running.kill()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return Reply(kind=CRASH, failure=f"has no worker any more: it {how}", details=running.output.tail())


class _Running:
    """A process that runs, its pipe and what it prints."""

    def __init__(self, target: Target) -> None:
        self.connection, other = Pipe()
        arguments = [json.dumps(sys.path), str(other.fileno()), str(os.getpid()), target.module, target.qualname]
        arguments.append(target.package)
        self.process = start_process(
            [sys.executable, "-c", BOOT, *arguments],
            pass_fds=[other.fileno()],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ},
        )
        other.close()
        self.output = _Output(self.process, target.qualname)
        self._end = weakref.finalize(self, _kill, self.process, self.connection, os.getpid())

    def where(self) -> str:
        """Where the call is: the process prints its stack, even if it holds the interpreter's lock."""
        os.kill(self.process.pid, signal.SIGUSR1)
        time.sleep(LOOK)
        return self.output.tail()

    def kill(self) -> int:
        """End the process with its whole session; its exit code."""
        self._end()
        self.output.join()
        return self.process.returncode


def _kill(process: subprocess.Popen[bytes], connection: Connection, owner: int) -> None:
    if os.getpid() != owner:  # a copy of the training process
        return
    connection.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Output:
    """Shows what a process prints, up to a limit for each call, and keeps the end of it."""

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        self._stream, self._name = process.stdout, name
        self._tail, self._num_shown, self._num_hidden = b"", 0, 0
        self._thread = threading.Thread(target=self._read, name="burnish-worker-output", daemon=True)
        self._thread.start()

    def new_call(self) -> None:
        """The limit begins again."""
        if self._num_hidden:
            print(f"[reward {self._name}: {self._num_hidden} bytes of output are not shown]", file=sys.stderr)
        self._tail, self._num_shown, self._num_hidden = b"", 0, 0

    def tail(self) -> str:
        """The end of what the running call has printed."""
        return self._tail.decode("utf-8", "replace")

    def join(self) -> None:
        """Wait until everything that a dead process has printed is read."""
        self._thread.join(1.0)

    def _read(self) -> None:
        assert self._stream is not None
        with self._stream as stream:
            while chunk := os.read(stream.fileno(), 65536):
                self._tail = (self._tail + chunk)[-TAIL:]
                shown = chunk[: max(MOST_OUTPUT - self._num_shown, 0)]
                self._num_shown += len(shown)
                self._num_hidden += len(chunk) - len(shown)
                if shown:
                    sys.stderr.write(shown.decode("utf-8", "replace"))
