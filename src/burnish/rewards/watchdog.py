"""Calls in this process, under a watch: who does not come back in time is named, with the line where it is stuck.

A thread cannot be killed. What hangs goes on in the background, and is not called again until it has come back.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from burnish.rewards.calls import STUCK, Overdue, Reply

Finish = Callable[[Any], Any]
GRACE = 0.5  # seconds after the limit in which a coroutine is cancelled


def call_directly(call: Callable[[Finish], Reply], seconds: float | None = None) -> Reply:
    """In the caller's thread; only coroutines have a limit."""
    with torch.no_grad():
        return call(partial(_finish, seconds=seconds))


class Watchdog:
    """Runs one function's calls, each in a thread of its own."""

    def __init__(self) -> None:
        self._stuck: threading.Thread | None = None

    def call(self, call: Callable[[Finish], Reply], seconds: float) -> Reply:
        """What `call` gives back, or a reply that says where it is stuck."""
        if self._stuck is not None and self._stuck.is_alive():
            return Reply(kind=STUCK, failure=f"is still busy with an earlier call ({_place(self._stuck)})")
        replies: list[Reply] = []
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

        def run() -> None:
            if device is not None:
                torch.cuda.set_device(device)  # threads begin on device 0
            replies.append(call_directly(call, seconds))

        thread = threading.Thread(target=run, name="burnish-reward", daemon=True)
        thread.start()
        thread.join(seconds + GRACE)
        if replies:
            return replies[0]
        self._stuck = thread
        return Reply(
            kind=STUCK,
            failure=f"has not come back after {seconds:g} s ({_place(thread)}); it runs in this process, cannot be "
            "stopped, and goes on in its thread. A function that can be imported runs in a worker, which can be killed",
            details="".join(traceback.format_stack(sys._current_frames().get(thread.ident or 0), limit=8)),
        )


class _Loop:
    """An event loop in a daemon thread: one for all, so that clients and semaphores of functions outlive a call."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="burnish-async-rewards", daemon=True).start()

    def wait_for(self, awaitable: Any, seconds: float | None) -> Any:
        """Its result.

        Raises:
            Overdue: it has not finished in time.
        """

        async def wait() -> Any:
            return await awaitable

        future = asyncio.run_coroutine_threadsafe(wait(), self._loop)
        concurrent.futures.wait([future], seconds)
        if not future.done():
            future.cancel()
            raise Overdue(f"has not finished after {seconds:g} s, and was cancelled")
        return future.result()

    def is_blocked(self) -> bool:
        """A coroutine that never awaits keeps all others from running."""
        turn = threading.Event()
        self._loop.call_soon_threadsafe(turn.set)
        return not turn.wait(GRACE / 2)


_loops: list[_Loop] = []


def _finish(result: Any, *, seconds: float | None) -> Any:
    if not inspect.isawaitable(result):
        return result
    if not _loops:
        _loops.append(_Loop())
    try:
        return _loops[0].wait_for(result, seconds)
    except Overdue:
        if _loops[0].is_blocked():
            _loops.clear()
        raise


def _place(thread: threading.Thread) -> str:
    """The line that a thread is at."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return "it has just ended"
    last = traceback.extract_stack(frame, limit=1)[0]
    return f"{last.filename}:{last.lineno} in {last.name}"
