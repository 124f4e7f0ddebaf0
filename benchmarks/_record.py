"""What stands beside every measurement: machine, commit, command; and the dated files in `results/`.

Standard library only. None of it names a place on this machine.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def machine_facts() -> dict[str, Any]:
    """What the measurement ran on; read before it starts, so that the load is other people's."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    facts = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "system": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    summary = f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB, load {facts['load_before']} before"
    return {**facts, "summary": summary}


def _cpu_model() -> str:
    """The model's name and, since virtual machines hide it, family, model and stepping."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    info = {key.strip(): value.strip() for key, value in pairs}
    numbers = ", ".join(f"{key} {info[key]}" for key in ("cpu family", "model", "stepping") if key in info)
    return f"{info.get('model name', platform.machine())} ({numbers})"


def command_line() -> str:
    """The command as it can be typed in any checkout: of a path, only its last part."""
    shown = [Path(part).name if os.sep in part and not part.startswith("-") else part for part in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_without_directory, shown)])


def _without_directory(part: str) -> str:
    option, equals, value = part.partition("=")
    return f"{option}={Path(value).name}" if equals and os.sep in value else part


def file_name(path: str) -> str:
    """A data set as results name it: without the directories of this machine."""
    return path if path.startswith("recipe:") else Path(path).name


def commit() -> str:
    """The commit that was measured; `-dirty` if files differ from it, those in `results/` apart."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    differs = _git("diff", "HEAD", "--name-only", "--", ":/", f":(exclude,top){RESULTS.parent.name}/{RESULTS.name}")
    return f"{head}-dirty" if differs else head


def _git(*arguments: str) -> str:
    """What git says of the checkout; nothing where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def new_record(machine: Mapping[str, Any], **contents: Any) -> dict[str, Any]:
    """What a .json in `results/` holds: when, how, of what, where, and the contents."""
    stamp = {"date": time.strftime("%Y-%m-%d"), "command": command_line(), "commit": commit()}
    return {**stamp, "machine": dict(machine), **contents}


def write_record(name: str, record: Mapping[str, Any], page: str) -> Path:
    """Write DATE-NAME.md and .json; returns the path of the first."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{record['date']}-{name}.md"
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.write_text(page.rstrip("\n") + "\n", encoding="utf-8")
    return path


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
