"""What a hostile program can do in the sandbox: nothing that outlives it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import hostile
import psutil
import pytest

from burnish.rewards import jail, sandbox
from burnish.rewards.sandbox import Limits, SandboxError, run_python, sandbox_problem

needs_sandbox = pytest.mark.skipif(sandbox_problem() is not None, reason=f"no sandbox here: {sandbox_problem()}")
QUICK = {"reads a file of the user", "reads the environment", "reaches the host", "writes to a library", "has rights"}
TIGHT = Limits(seconds=1, memory=256 * 2**20, disk=4 * 2**20)


def jails_after(seconds: float = 5) -> list[psutil.Process]:
    """Processes of jails, of any parent, that the kernel has not ended after some time."""
    deadline = time.monotonic() + seconds
    while (found := jails()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def jails() -> list[psutil.Process]:
    """Processes of jails that are there now."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(part.endswith(("rewards/jail.py", "/sandbox/program.py")) for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_program_runs():
    program = "import sys, json, math; print(sys.stdin.read().upper()); print('err', file=sys.stderr); sys.exit(3)"
    for unsafe_local in (True, *([False] if sandbox_problem() is None else [])):
        result = run_python(program, stdin="héllo\n", unsafe_local=unsafe_local)
        assert (result.exit_code, result.stdout, result.stderr, result.stopped) == (3, "HÉLLO\n\n", "err\n", None)


@needs_sandbox
def test_a_program_has_a_place_to_write_and_an_own_user():
    program = (
        "import os; open('f', 'w').write('x'); print(os.getcwd(), os.listdir(), os.getpid() != 1, os.getuid() > 0)"
    )
    assert run_python(program).stdout == "/sandbox ['f', 'program.py'] True True\n"


@needs_sandbox
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in hostile.PROGRAMS]
)
def test_a_hostile_program_does_not_get_out(name, tmp_path, monkeypatch):
    monkeypatch.setenv("BURNISH_SECRET", "s3cret")
    secret, canary, library = tmp_path / "secret", tmp_path / "canary", Path(os.__file__).read_bytes()
    secret.write_text("s3cret")
    secret.chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as server:
        places = {"secret": str(secret), "canary": str(canary), "port": server.getsockname()[1], "parent": os.getpid()}
        result = run_python(hostile.PROGRAMS[name].format(**places), limits=Limits(seconds=5))
    assert "ESCAPED" not in result.stdout
    assert "SyntaxError" not in result.stderr
    assert "s3cret" not in result.stdout + result.stderr
    assert not canary.exists()
    assert Path(os.__file__).read_bytes() == library
    assert jails_after() == []


@needs_sandbox
@pytest.mark.slow
@pytest.mark.parametrize("name", hostile.GREEDY)
def test_a_greedy_program_is_stopped(name):
    start = time.perf_counter()
    result = run_python(hostile.GREEDY[name], limits=TIGHT)
    assert time.perf_counter() - start < 8
    assert "ESCAPED" not in result.stdout
    assert "SyntaxError" not in result.stderr
    assert len(result.stdout) <= TIGHT.output
    assert len(result.stderr) <= TIGHT.output
    assert jails_after() == []


@needs_sandbox
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="the program unshare is absent")
def test_users_who_are_not_root_have_the_sandbox_too():
    """Inside a user namespace in which this user has another name and no rights."""
    script = """
import os
import hostile
from burnish.rewards.sandbox import Limits, run_python
assert os.geteuid() == 1000
places = {"secret": "/etc/hostname", "canary": "/tmp/canary", "port": 1, "parent": os.getpid()}
assert run_python("print(6 * 7)").stdout == "42\\n"
for name, program in hostile.PROGRAMS.items():
    result = run_python(program.format(**places), limits=Limits(seconds=5))
    assert "ESCAPED" not in result.stdout, (name, result)
result = run_python(hostile.GREEDY["forks"], limits=Limits(seconds=1))
assert result.stopped == "seconds"
print("held")
"""
    command = ["unshare", "-U", "--map-user=1000", "--map-group=1000", sys.executable, "-c", script]
    path = os.pathsep.join([str(Path(hostile.__file__).parent), *sys.path])
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})
    if "unshare failed" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr}")
    assert done.stdout == "held\n", done.stderr
    assert jails_after() == []


def test_without_namespaces_nothing_runs(tmp_path, monkeypatch):
    """A kernel that refuses: the jail is asked for a namespace that does not exist."""
    broken = tmp_path / "jail.py"
    text = Path(jail.__file__).read_text()
    assert '"mount": 0x20000' in text
    broken.write_text(text.replace('"mount": 0x20000', '"mount": 0x1'))
    monkeypatch.setattr(sandbox.jail, "__file__", str(broken))
    canary = tmp_path / "canary"
    program = f"open({str(canary)!r}, 'w')"
    with pytest.raises(SandboxError, match=r"unshare: Invalid argument.*Code was not run; unsafe_local=True"):
        run_python(program)
    assert not canary.exists()
    assert run_python(program, unsafe_local=True).exit_code == 0
    assert canary.exists()


def test_unsafe_local_still_limits_and_hides_the_environment(monkeypatch):
    monkeypatch.setenv("BURNISH_SECRET", "s3cret")
    result = run_python("import os; print('BURNISH_SECRET' in os.environ, os.getcwd())", unsafe_local=True)
    assert result.stdout.startswith("False ")
    assert not Path(result.stdout.split()[1]).exists()
    assert run_python("x = bytearray(10**9)", unsafe_local=True).exit_code == 1
    assert run_python(hostile.GREEDY["output"], unsafe_local=True).stopped == "output"


def test_hostile_text_is_no_program_and_harms_nobody():
    for program in ("\ud800", "\x00", "print(" * 10_000, ""):
        assert run_python(program, unsafe_local=True).stdout == ""
