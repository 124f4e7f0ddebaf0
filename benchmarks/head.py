"""Scratch memory of the head: Burnish's and TRL's, at growing vocabularies, each in a process of its own.

What is measured is the peak of resident memory in forward and backward, above the inputs (hidden states, the head's
weights) and the gradients that are the result. Log-probs, entropies and gradients of both are compared first.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _commands import deliver, make_parser
from _compare import GATE, differences
from _paired import OURS, PEER, NotEqualError
from _processes import Arm, ArmFailedError, peer_python, run_arm, say
from _record import machine_facts, markdown_table, new_record

VOCABULARIES = (49_152, 151_936, 262_144)
QUANTITIES = ("logps", "entropy", "grad_hidden", "grad_weight")


@dataclass(frozen=True, kw_only=True)
class HeadCase:
    """Rows of hidden states of prompt and answer; the answers are scored."""

    vocabulary: int
    rows: int = 8
    prompt_tokens: int = 256
    answer_tokens: int = 128
    hidden_size: int = 576
    threads: int = 1
    seed: int = 0

    @property
    def name(self) -> str:
        """As 49k x 8 rows of 256 + 128."""
        return f"{self.vocabulary / 1000:.0f}k, {self.rows} rows of {self.prompt_tokens} + {self.answer_tokens} tokens"


Found = dict[str, Mapping[str, Any]]


def measure(case: HeadCase, *, python: str) -> Found:
    """What each library needs for it, TRL first.

    Raises:
        NotEqualError: they compute different things.
        ArmFailedError: a process failed.
    """
    arms = [Arm(PEER, python, "head_trl.py"), Arm(OURS, sys.executable, "head_burnish.py")]
    with tempfile.TemporaryDirectory(prefix="burnish-benchmark-") as folder:
        found: Found = {}
        for arm in arms:
            say(f"head, {case.name}: {arm.name} …")
            found[arm.name] = run_arm(arm, asdict(case), Path(folder))
    table = differences(found[PEER]["first_step"], found[OURS]["first_step"], QUANTITIES)
    if wrong := [f"{row.quantity} {row.peer:.6g} and {row.ours:.6g}" for row in table if row.relative > GATE]:
        raise NotEqualError(f"{case.name}: {'; '.join(wrong)}")
    return found


def share(found: Found) -> float:
    """Burnish's scratch over TRL's."""
    return found[OURS]["scratch_bytes"] / found[PEER]["scratch_bytes"]


def page(record: Mapping[str, Any], cases: Sequence[tuple[HeadCase, Found]]) -> str:
    """The measurements as Markdown."""
    rows = [
        [
            case.name,
            *(f"{found[arm]['scratch_bytes'] / 1e6:,.0f}" for arm in (PEER, OURS)),
            f"{share(found):.3f}",
            *(f"{found[arm]['seconds']:.2f}" for arm in (PEER, OURS)),
        ]
        for case, found in cases
    ]
    header = ["vocabulary, rows", "TRL, MB", "Burnish, MB", "Burnish / TRL", "TRL, s", "Burnish, s"]
    return "\n".join(
        [
            f"# Scratch of the head, {record['date']}",
            "",
            f"`{record['command']}` (commit {record['commit']})",
            "",
            "Forward and backward of log-probs and entropies of the answers' tokens, float32, hidden size "
            f"{cases[0][0].hidden_size}: peak of resident memory above inputs and gradients; median seconds. On the "
            "CPU, TRL's head scores the prompts' positions too. Both agree in log-probs, entropies and gradients to "
            f"{GATE:.0e}.",
            "",
            markdown_table(header, rows),
            "",
            f"Machine: {record['machine']['summary']}; {record['machine']['system']}.",
        ]
    )


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=list(VOCABULARIES))
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[256, 0], help="one case each (default: 256 0)")
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--rows", type=int, default=8)
    args, machine = parser.parse_args(), machine_facts()
    sizes = {"rows": args.rows, "answer_tokens": args.answer_tokens, "threads": args.threads}
    wanted = [
        HeadCase(vocabulary=vocabulary, prompt_tokens=prompt, **sizes)
        for prompt in args.prompt_tokens
        for vocabulary in args.vocabulary
    ]
    try:
        python = peer_python(args.peer_python)
        cases = [(case, measure(case, python=python)) for case in wanted]
    except (NotEqualError, ArmFailedError) as error:
        print(f"{type(error).__name__}: {error}")
        return 1
    record = new_record(machine, cases=[{"case": asdict(case), "arms": found} for case, found in cases])
    deliver(args, "head", record, page(record, cases))
    return 0


if __name__ == "__main__":
    sys.exit(main())
