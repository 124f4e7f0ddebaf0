"""Burnish beside TRL: the same model, rows, precision and threads, in turn, each in a process of its own.

It first asserts that both compute the same thing: the tokens of every step are equal, and loss, log-probs and
gradient norm of the first step agree to 1e-4 relative in float32. Then it prints how long a step takes, how many
useful tokens a second that is, and how much memory it needs. This process imports neither torch nor TRL.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _compare import GATE, Arm, differences, format_gate, other_tokens, summarise
from _report import format_phases, format_table, machine_facts, write_results

SIDES = ("chosen", "rejected")
HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
REQUIREMENTS = HERE / "trl-requirements.txt"

MALLOC_TUNED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1)}


@dataclass(frozen=True)
class Method:
    """A method: its scripts, its data, what of the first step is compared, and the options of its job."""

    prepare: str
    arm: str
    peer_arm: str
    data: str
    quantities: tuple[str, ...]
    options: tuple[str, ...]


METHODS = {
    "dpo": Method(
        prepare="_prepare.py",
        arm="_burnish_arm.py",
        peer_arm="_trl_arm.py",
        data="recipe:spoken-train",
        quantities=("loss", "grad_norm", *(f"{of}/{side}" for of in ("logps", "ref_logps") for side in SIDES)),
        options=("pairs", "max_length"),
    ),
    "grpo": Method(
        prepare="_grpo_prepare.py",
        arm="_burnish_grpo_arm.py",
        peer_arm="_trl_grpo_arm.py",
        data="recipe:sums-train",
        quantities=("loss", "kl", "grad_norm"),
        options=("num_prompts", "num_generations", "new_tokens", "prompt_tokens"),
    ),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=list(METHODS), help="what to train")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one to warm up (default: 5)")
    parser.add_argument("--pairs", type=int, default=4, help="dpo: pairs a step (default: 4)")
    parser.add_argument("--max-length", type=int, default=512, help="dpo: tokens of prompt and answer (default: 512)")
    parser.add_argument("--num-prompts", type=int, default=2, help="grpo: prompts a step (default: 2)")
    parser.add_argument("--num-generations", type=int, default=8, help="grpo: answers to a prompt (default: 8)")
    parser.add_argument("--new-tokens", type=int, default=64, help="grpo: tokens of every answer (default: 64)")
    parser.add_argument(
        "--prompt-tokens", type=int, help="grpo: fill prompts up to so many tokens (default: as they are)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes of each arm (default: 3)")
    parser.add_argument("--threads", type=int, default=_num_cores(), help="of each arm (default: all cores)")
    parser.add_argument("--seed", type=int, default=0, help="of rows, their order and the reference's noise")
    parser.add_argument("--data", help="rows of preferences, or of questions (default: the package's own)")
    parser.add_argument("--ours-untuned", action="store_true", help="also run Burnish with cpu_tuning='off'")
    parser.add_argument("--malloc-tuned", action="store_true", help="raise glibc's thresholds in every arm")
    parser.add_argument("--peer-python", metavar="PATH", help="a Python with trl; else .venv-trl is made")
    parser.add_argument("--write-results", action="store_true", help="write benchmarks/results/DATE-….md, .json")
    args = parser.parse_args()
    args.data = args.data or METHODS[args.method].data
    for name in ("steps", "pairs", "rounds", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)} is not allowed: 1 or more")
    return args


def main() -> int:
    args = parse_arguments()
    arms = make_arms(args)
    environment, malloc = arm_environment(args)
    machine = machine_facts()
    with tempfile.TemporaryDirectory(prefix="burnish-benchmark-") as folder:
        environment["HF_DATASETS_CACHE"] = f"{folder}/datasets"
        job = prepare_job(args, Path(folder), environment)
        results: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
        for number in range(args.rounds):
            for arm in arms if number % 2 == 0 else reversed(arms):  # ABBA: a machine's drift hits both alike
                print(f"round {number + 1} of {args.rounds}: {arm.name} …", file=sys.stderr, flush=True)
                results[arm.name].append(run_arm(arm, job, Path(folder), environment))
            if not passes_gate(results, METHODS[args.method].quantities, precision=args.precision):
                return 1
    settings = {**vars(args), "malloc": malloc, "data": data_name(args.data)}
    settings["quantities"] = METHODS[args.method].quantities
    rows = summarise(results)
    phases = f"\n\n{format_phases(results)}" if args.method == "grpo" else ""
    print(f"\n{format_table(rows)}{phases}\n\nmalloc: {malloc}. Machine: {machine['summary']}.")
    if args.write_results:
        path = write_results(HERE / "results", settings, machine, results, rows)
        print(f"wrote {path.relative_to(CHECKOUT)} and its .json")
    return 0


def make_arms(args: argparse.Namespace) -> list[Arm]:
    """The peer first, then Burnish as it comes, then, if asked for, Burnish without its CPU tuning."""
    method = METHODS[args.method]
    peer = os.path.abspath(args.peer_python) if args.peer_python else make_peer_environment()
    ours = [("Burnish", "auto")]
    if args.ours_untuned:
        ours.append(("Burnish, cpu_tuning off", "off"))
    arms = [
        Arm(name=name, python=sys.executable, script=method.arm, options={"cpu_tuning": tuning})
        for name, tuning in ours
    ]
    return [Arm(name="TRL", python=peer, script=method.peer_arm, options={}), *arms]


def make_peer_environment() -> str:
    """The interpreter of `.venv-trl`, made now if it is not there; made again if the requirements changed."""
    directory = CHECKOUT / ".venv-trl"
    python = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = directory / "requirements.txt"
    if ready.is_file() and ready.read_bytes() == REQUIREMENTS.read_bytes():
        return str(python)
    print(f"making {directory.name} with TRL (once; a few minutes) …", file=sys.stderr, flush=True)
    venv.create(directory, with_pip=True, clear=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(REQUIREMENTS)]
    subprocess.run(install, check=True)
    ready.write_bytes(REQUIREMENTS.read_bytes())
    return str(python)


def arm_environment(args: argparse.Namespace) -> tuple[dict[str, str], str]:
    """The environment variables of every arm, and what they say about the allocator."""
    inherited = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTHONPATH", "OMP_", "MKL_", "KMP_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(inherited)}
    threads = str(args.threads)
    environment |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    if not args.malloc_tuned:
        return environment, "stock (no MALLOC_ variable in any arm)"
    settings = " ".join(f"{name}={value}" for name, value in MALLOC_TUNED.items())
    return environment | MALLOC_TUNED, f"{settings} in every arm"


def prepare_job(args: argparse.Namespace, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Model, reference and rows, made by a child that imports torch."""
    job = {
        "model_name": "smollm2-135m",
        "data": args.data,
        "num_steps": args.steps + 1,
        **{option: getattr(args, option) for option in METHODS[args.method].options},
        "precision": args.precision,
        "threads": args.threads,
        "seed": args.seed,
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    online = {name: value for name, value in environment.items() if name != "HF_HUB_OFFLINE"}
    _run([sys.executable, str(HERE / METHODS[args.method].prepare), str(path)], online, log=folder / "prepare.log")
    return json.loads(path.read_text(encoding="utf-8"))


def run_arm(arm: Arm, job: dict[str, Any], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """One process of one arm, from start to end."""
    with tempfile.TemporaryDirectory(prefix="arm-", dir=folder) as name:
        own = Path(name)
        paths = {"output_dir": str(own / "run"), "result": str(own / "result.json")}
        (own / "job.json").write_text(json.dumps({**job, **arm.options, **paths}), encoding="utf-8")
        command = [arm.python, str(HERE / arm.script), str(own / "job.json")]
        _run(command, environment, log=own / "log.txt", cwd=own)
        return json.loads((own / "result.json").read_text(encoding="utf-8"))


def passes_gate(results: dict[str, list[dict[str, Any]]], quantities: Sequence[str], *, precision: str) -> bool:
    """Compare the newest process of each arm with TRL's; in bfloat16 the numbers are shown, not judged."""
    peer = results["TRL"][-1]
    passed = True
    for name, runs in results.items():
        if name == "TRL":
            continue
        if steps := other_tokens(peer, runs[-1]):
            print(f"NOT EQUAL: {name} trained on other tokens than TRL in steps {steps}")
            return False
        table = differences(peer, runs[-1], quantities)
        equal = precision != "float32" or all(row.relative <= GATE for row in table)
        if len(runs) == 1 or not equal:
            print(format_gate(table, name=name, judged=precision == "float32"), flush=True)
        passed = passed and equal
    return passed


def data_name(data: str) -> str:
    """The data set as results name it: without the directories of this machine."""
    return data if data.startswith("recipe:") else Path(data).name


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(command: list[str], environment: dict[str, str], *, log: Path, cwd: Path | None = None) -> None:
    with log.open("wb") as file:
        code = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=cwd, check=False)
    if code.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
        raise SystemExit("\n".join([*tail, f"{Path(command[1]).name} ended with code {code.returncode}"]))


if __name__ == "__main__":
    sys.exit(main())
