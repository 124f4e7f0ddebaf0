"""Lines of the gallery: what a user writes for each algorithm here, and what stands in its place in TRL 1.16.

Both are counted alike: logical lines after `ruff format` at 100 columns, imports included; no blank lines, comments or
docstrings. Where TRL ships the algorithm, who only uses it writes nothing there, as who uses Burnish's own rows for
ORPO, SimPO, RLOO and REINFORCE++ writes nothing here; its class and configuration are counted, which is what somebody
reads, and copies, to change it. Where TRL does not ship it, the methods are counted that a subclass has to write anew,
at their length in TRL, since there is no smaller hook in them; what stays the same in such a copy is counted too.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from _commands import deliver
from _gallery import GALLERY, Algorithm, Peer
from _logical_lines import logical_lines
from _processes import peer_python
from _record import machine_facts, markdown_table, new_record

FIND = "import importlib.util; print(importlib.util.find_spec('trl').submodule_search_locations[0])"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", metavar="PATH", help="a Python with trl 1.16; else .venv-trl is made")
    parser.add_argument("--write-results", action="store_true", help="keep what is printed in benchmarks/results/")
    args = parser.parse_args()
    package = trl_package(peer_python(args.peer_python))
    counts = {algorithm.name: (own_lines(algorithm), peer_lines(package, algorithm.peer)) for algorithm in GALLERY}
    record = new_record(machine_facts(), lines=counts)
    deliver(args, "lines", record, page(counts, record["date"], record["command"]))


def trl_package(python: str) -> Path:
    """Where the TRL of an interpreter is."""
    found = subprocess.run([python, "-c", FIND], capture_output=True, text=True, check=True)
    return Path(found.stdout.strip())


def own_lines(algorithm: Algorithm) -> int:
    """Of the file of the gallery, all of it."""
    return logical_lines(algorithm.source.read_text(encoding="utf-8"))


def peer_lines(package: Path, peer: Peer) -> int:
    """Of all members."""
    return sum(logical_lines((package / file).read_text(encoding="utf-8"), [member]) for file, member in peer.members)


def page(counts: dict[str, tuple[int, int]], date: str, command: str) -> str:
    """The table with what it means."""
    rows = [
        [a.title, str(counts[a.name][0]), str(counts[a.name][1]), "ships" if a.peer.is_shipped else "override", how(a)]
        for a in GALLERY
    ]
    header = ["algorithm", "lines here", "lines in TRL 1.16", "TRL", "what was counted there"]
    meaning = " ".join((__doc__ or "").split("\n\n", 1)[1].split())
    return f"# Lines of the gallery, {date}\n\n`{command}`\n\n{meaning}\n\n{markdown_table(header, rows)}"


def how(algorithm: Algorithm) -> str:
    """Which classes or methods, and why these."""
    return f"{', '.join(f'`{member}`' for _, member in algorithm.peer.members)}: {algorithm.peer.note}"


if __name__ == "__main__":
    main()
