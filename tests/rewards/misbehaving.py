"""Reward functions that go wrong in every way, for the tests of workers. Imports nothing heavy: workers import it."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import time


def fine(completions):
    return [float(len(text)) for text in completions]


def pids(completions, log_extra):
    log_extra("pid", [os.getpid()] * len(completions))
    return [0.0] * len(completions)


async def asynchronous(completions):
    return [1.0] * len(completions)


def everything(completions, *, bonus=0.0, **kwargs):
    kwargs["log_extra"]("names", [sorted(kwargs)] * len(completions))
    kwargs["log_metric"]("step", kwargs["trainer_state"].global_step)
    return [bonus] * len(completions)


def fails_on(completions, mode):
    """Goes wrong on the answer "bad"."""
    if "bad" in completions:
        FAULTS[mode[completions.index("bad")]]()
    return [1.0] * len(completions)


def _raises():
    raise KeyError("answer")


def _spins():
    while True:
        pass


def _holds_the_lock():
    re.fullmatch("(a+)+b", "a" * 60)


def _sleeps_in_c():
    ctypes.PyDLL(None).sleep(600)


def _segfaults():
    ctypes.string_at(0)


def _forks():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)  # forked-by-a-reward"])
    time.sleep(600)


def _floods():
    print("x" * 1_000_000, flush=True)
    os._exit(4)


def _exhausts_memory():
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
    bytearray(2**32)


FAULTS = {
    "raises": _raises,
    "sleeps": lambda: time.sleep(600),
    "spins": _spins,
    "holds the lock": _holds_the_lock,
    "sleeps in C": _sleeps_in_c,
    "segfaults": _segfaults,
    "exits": lambda: os._exit(3),
    "sys.exit": lambda: sys.exit(3),
    "kills itself": lambda: os.kill(os.getpid(), 9),
    "forks": _forks,
    "floods": _floods,
    "exhausts memory": _exhausts_memory,
}


def returns_generator(completions):
    return (1.0 for _ in completions)


def logs_much(completions, log_extra):
    log_extra("text", ["x" * 18_000_000] * len(completions))
    return [0.0] * len(completions)
