"""docs/mutants.md: how many changes to the pure core the tests notice, and what they do not, with the reason.

python tools/mutants_page.py, after `make mutants`. Reasons are written by hand in tools/mutants.yaml, one a function.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import yaml
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.utils.format_utils import orig_function_and_class_names_from_key

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "mutants.md"
NOTICED = 1  # exit code of pytest
HEAD = """\
# What the tests notice

`make mutants` changes the pure core (`losses/`, `advantages.py`, `importance.py`) in one place at a time, another
operator, number, argument or word ([mutmut](https://github.com/boxed/mutmut)), and runs the tests of these modules, the
test kit's among them, against each change. A change that no test notices is a line that nobody holds to anything. Of
{total:,} changes {noticed:,} are noticed, {share:.1%} (commit {commit}, {today}):

| module | changes | noticed |
|---|---|---|
{rows}

What is not noticed, and why. Nearly all of it changes nothing that can be seen.
"""


def main() -> None:
    """Write the page.

    Raises:
        SystemExit: a change was not tried, one that nobody notices has no reason, or a reason has no change.
    """
    counted: dict[str, tuple[int, int]] = {}
    unnoticed: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        codes = data.exit_code_by_key
        if untried := [name for name, code in codes.items() if code is None]:
            raise SystemExit(f"{len(untried)} changes of {path} were not tried: run make mutants")
        if codes:
            counted[str(path).removeprefix("src/burnish/")] = len(codes), list(codes.values()).count(NOTICED)
        for name in (name for name, code in codes.items() if code != NOTICED):
            unnoticed[_function(name)].append((name, path))
    reasons = yaml.safe_load((ROOT / "tools" / "mutants.yaml").read_text(encoding="utf-8"))
    if wrong := sorted(set(unnoticed) ^ set(reasons)):
        raise SystemExit(f"tools/mutants.yaml has a reason too many or too few: {', '.join(wrong)}")
    PAGE.write_text(page(counted, unnoticed, reasons), encoding="utf-8")


def page(
    counted: Mapping[str, tuple[int, int]],
    unnoticed: Mapping[str, Sequence[tuple[str, Path]]],
    reasons: Mapping[str, str],
) -> str:
    """The page as Markdown.

    Args:
        counted: module -> changes, and how many of them are noticed.
        unnoticed: function -> the names of its other changes, and their file.
        reasons: function -> why.
    """
    total, noticed = (sum(column) for column in zip(*counted.values(), strict=True))
    head = HEAD.format(
        total=total,
        noticed=noticed,
        share=noticed / total,
        commit=subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip(),
        today=date.today(),
        rows="\n".join(f"| `{module}` | {of} | {seen} |" for module, (of, seen) in sorted(counted.items())),
    )
    parts = [head]
    for function, changes in sorted(unnoticed.items()):
        diffs = "\n".join(line for name, path in changes for line in _changed_lines(name, path))
        reason = textwrap.fill(reasons[function], 120)
        parts.append(f"## `{function.removeprefix('burnish.')}`\n\n{reason}\n\n```diff\n{diffs}\n```\n")
    return "\n".join(parts)


def _function(mutant: str) -> str:
    """Its name as one would write it: burnish.advantages.Groups.__init__."""
    name, owner = orig_function_and_class_names_from_key(mutant)
    module = mutant.rpartition(".")[0]
    return ".".join(part for part in (module, owner, name.rpartition(".")[2]) if part)


def _changed_lines(mutant: str, path: Path) -> list[str]:
    lines = get_diff_for_mutant(mutant, path=path).splitlines()
    kept = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    return [line[0] + " " + line[1:].strip() for line in kept]


if __name__ == "__main__":
    sys.exit(main())
