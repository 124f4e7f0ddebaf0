"""The inside of a worker process: it imports the module of one function, and calls it as often as it is asked to.

Arguments come pickled from the training process over a pipe of their own; what goes back is JSON. The main module of
the training process is not imported, unlike in the workers of `multiprocessing`: a script without an
`if __name__ == "__main__"` would run a second time.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import importlib
import inspect
import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import reduce
from multiprocessing.connection import Connection
from typing import Any

from burnish.rewards.calls import LOAD, Reply, run_call, told

MOST_MEMORY = 4 * 2**30  # of a worker of Burnish's own
DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from burnish.rewards.child import serve; "
    "serve(int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])"
)


def serve(descriptor: int, parent: int, module: str, qualname: str, package: str) -> None:
    """Answer calls that come through a descriptor until it is closed.

    Args:
        descriptor: of the pipe.
        parent: the training process.
        module: of the function.
        qualname: of the function.
        package: what a function of Burnish's own needs: imported before the first call, under a limit of memory.
    """
    _end_with(parent)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=False)  # a call that is stopped says where it was
    with Connection(descriptor) as connection:
        try:
            function = _load(module, qualname)
            if package:
                resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
                importlib.import_module(package)
        except (Exception, SystemExit) as error:
            failure = f"cannot be imported in a worker: its module {told(error)}; reward_isolation='none' calls it here"
            connection.send_bytes(Reply(kind=LOAD, failure=failure).to_json().encode())
            return
        connection.send_bytes(Reply().to_json().encode())
        loop = asyncio.new_event_loop()
        while True:
            try:
                arguments, shapes, wants = connection.recv()
            except EOFError:
                return
            except Exception as error:
                reply = Reply(kind=LOAD, failure=f"cannot read its arguments in a worker: {told(error)}")
            else:
                reply = run_call(
                    function,
                    arguments,
                    shapes,
                    wants,
                    lambda r: loop.run_until_complete(r) if inspect.isawaitable(r) else r,
                )
            connection.send_bytes(reply.to_json().encode())


def _load(module: str, qualname: str) -> Callable[..., Any]:
    return reduce(lambda place, name: vars(place)[name], qualname.split("."), importlib.import_module(module))


def _end_with(parent: int) -> None:
    """The kernel ends this process when the training process ends, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
