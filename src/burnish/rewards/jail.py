"""Runs one program in a jail, as a script of its own: `python -I jail.py SETTINGS`, with only the standard library.

Three processes: this one waits; the first in the new namespaces (pid 1) sets up the jail and waits; the program runs
below it. Whoever ends this one ends all of them. The program sees a read-only file system of its interpreter and the
system's libraries, one small writable directory, no network, no other process, and an own user without rights.

What fails before the program starts is written to a descriptor that the program never has: no exit code can fake it.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_NAMESPACES = {"mount": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "pid": 0x20000000, "net": 0x40000000}
NEW_USER = 0x10000000
READ_ONLY, NO_SUID, NO_DEV, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 0x1000, 0x4000, 0x40000
DETACH = 2
MOUNT_SETATTR, AT_RECURSIVE, AT_CWD = 442, 0x8000, -100  # one system call number on every architecture
PR_DEATH_SIGNAL, PR_DUMPABLE, PR_NO_NEW_PRIVILEGES = 1, 4, 38
NOBODY = 65534
HOME = "/sandbox"


def main() -> None:
    """Read the settings, build the jail, run the program, and end as it ends."""
    with open(sys.argv[1], encoding="utf-8") as file:
        settings = json.load(file)
    status = settings["status"]
    try:
        _ends_with(settings["parent"])
        code = _run_jailed(settings) if settings["jailed"] else _wait(_start_program(settings, settings["home"]))
    except (OSError, ValueError) as error:
        os.write(status, f"{type(error).__name__}: {error}".encode())
        code = 1
    os._exit(code)


def _run_jailed(settings: dict[str, Any]) -> int:
    is_root = os.geteuid() == 0 and _call("unshare", sum(NEW_NAMESPACES.values()), may_fail=True)
    if not is_root:
        uid, gid = os.geteuid(), os.getegid()
        _call("unshare", NEW_USER | sum(NEW_NAMESPACES.values()))
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{NOBODY} {uid} 1")
        _write("/proc/self/gid_map", f"{NOBODY} {gid} 1")
    outside = os.getpid()
    first = os.fork()
    if first:
        return _wait(first)
    _call("prctl", PR_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    try:
        _call("prctl", PR_DUMPABLE, 0, 0, 0, 0)
        _build_root(settings)
        code = _wait(_start_program(settings, HOME, user=settings["user"] if is_root else None))
    except (OSError, ValueError) as error:
        os.write(settings["status"], f"{type(error).__name__}: {error} (process {outside})".encode())
        code = 1
    os._exit(code)


def _build_root(settings: dict[str, Any]) -> None:
    """A file system of its own: an empty one in memory, into which what is needed is bound read-only."""
    root = settings["root"]
    _mount("none", "/", "", RECURSIVE | PRIVATE)
    _mount("tmpfs", root, "tmpfs", NO_SUID | NO_DEV, "size=1m,mode=755")
    for path in settings["visible"]:
        _bind(path, root + path)
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        _bind(device, root + device, read_only=False)
    os.mkdir(root + HOME)
    _mount("tmpfs", root + HOME, "tmpfs", NO_SUID | NO_DEV, f"size={settings['disk']},nr_inodes=1000,mode=777")
    _set_read_only(root)
    os.chdir(root)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", DETACH)
    os.chdir(HOME)
    _call("sethostname", b"sandbox", 7)


def _bind(source: str, target: str, *, read_only: bool = True) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT))
    _mount(source, target, "", BIND | RECURSIVE)
    if read_only:
        _set_read_only(target, flags=AT_RECURSIVE)


def _set_read_only(path: str, *, flags: int = 0) -> None:
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY | NO_SUID | NO_DEV, 0, 0, 0)
    _call("syscall", MOUNT_SETATTR, AT_CWD, path.encode(), flags, ctypes.byref(attributes), ctypes.sizeof(attributes))


def _start_program(settings: dict[str, Any], home: str, *, user: int | None = None) -> int:
    """Write the program, give up every right, and become it, in a new process."""
    program = os.path.join(home, "program.py")
    _write(program, settings["program"])
    child = os.fork()
    if child:
        return child
    try:
        if user is not None:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        _call("prctl", PR_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        for name, limit in settings["limits"].items():
            resource.setrlimit(getattr(resource, name), (limit, limit))
        os.chdir(home)
        os.set_inheritable(settings["status"], False)
        environment = {"HOME": home, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
        os.execve(settings["python"], [settings["python"], "-I", "-B", program], environment)
    except (OSError, ValueError) as error:
        os.write(settings["status"], f"{type(error).__name__}: {error}".encode())
    os._exit(1)


def _ends_with(parent: int) -> None:
    """The kernel ends this process with the one that started it."""
    _call("prctl", PR_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _wait(child: int) -> int:
    """The exit code of a child; 128 and the signal if one ended it."""
    _, status = os.waitpid(child, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    _call("mount", source.encode(), target.encode(), kind.encode() or None, flags, options.encode() or None)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(text)


def _call(name: str, *arguments: Any, may_fail: bool = False) -> bool:
    """A function of the C library.

    Raises:
        OSError: it failed, and may not.
    """
    if LIBC[name](*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)) == 0:
        return True
    number = ctypes.get_errno()
    if may_fail:
        return False
    raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
