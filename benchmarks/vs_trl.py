"""Burnish beside TRL: the same model, rows, precision and threads, in turn, each in a process of its own.

It first asserts that both compute the same thing: in float32, what one step comes to (loss, gradient norm, log-probs,
scores or values) agrees to 1e-4 relative. Then it prints how long a step takes, how many useful tokens a second that
is, and how much memory it needs. This process imports neither torch nor TRL.
"""

from __future__ import annotations

import argparse
import sys

from _commands import deliver, make_parser
from _methods import METHODS
from _paired import Case, NotEqualError, compare, make_arms
from _processes import ArmFailedError
from _record import machine_facts
from _report import page


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__, steps=5, rounds=3)
    parser.add_argument("method", choices=list(METHODS), help="what to train")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seed", type=int, default=0, help="of rows, their order and the reference's noise")
    parser.add_argument("--data", help="rows of preferences, or of questions (default: the package's own)")
    parser.add_argument("--prompt-tokens", type=int, help="prompts of exactly so many tokens (default: as they are)")
    pairs = parser.add_argument_group("dpo, reward")
    pairs.add_argument("--pairs", type=int, help="pairs a step (default: 4)")
    pairs.add_argument("--max-length", type=int, help="tokens of prompt and answer (default: 512)")
    pairs.add_argument("--answer-tokens", type=int, help="answers of exactly so many tokens, with --prompt-tokens")
    pairs.add_argument("--reference", choices=["live", "cached"], help="dpo: scored in every step, or before the clock")
    online = parser.add_argument_group("grpo, ppo")
    online.add_argument("--num-prompts", type=int, help="prompts a step (default: grpo 2, ppo 8)")
    online.add_argument("--num-generations", type=int, help="answers to a prompt (default: grpo 8, ppo 1)")
    online.add_argument("--new-tokens", type=int, help="tokens of every answer (default: grpo 64, ppo 48)")
    online.add_argument(
        "--until-eos", action="store_true", default=None, help="ppo: answers may end before --new-tokens, by themselves"
    )
    online.add_argument("--micro-batch", type=int, help="answers of a micro-batch (default: all of a step)")
    online.add_argument("--beta", type=float, help="grpo: factor of the KL; 0: no reference (default: 0.04)")
    online.add_argument("--epochs", type=int, help="ppo: passes over the answers of a round (default: 2)")
    arms = parser.add_argument_group("arms")
    arms.add_argument("--peer-tuned", action="store_true", help="also run TRL with what Burnish sets on the CPU")
    arms.add_argument(
        "--peer-checkpointed", action="store_true", help="also run TRL with gradient checkpointing, its default"
    )
    arms.add_argument("--ours-untuned", action="store_true", help="also run Burnish with cpu_tuning='off'")
    args = parser.parse_args()
    method = METHODS[args.method]
    if "answer_tokens" in method.options and (args.prompt_tokens is None) != (args.answer_tokens is None):
        parser.error("--prompt-tokens and --answer-tokens go together")
    if args.peer_checkpointed and args.method == "ppo":
        parser.error("ppo has no --peer-checkpointed: the loop of TRL 0.25 does not switch gradient checkpointing on")
    own, others = method.options, (METHODS[name].options for name in METHODS if name != args.method)
    foreign = dict.fromkeys(name for options in others for name in options if name not in own)
    wrong = [name for name in foreign if getattr(args, name) is not None]
    if wrong:
        parser.error(f"{args.method} has no {', '.join('--' + name.replace('_', '-') for name in wrong)}")
    return args


def make_case(args: argparse.Namespace) -> Case:
    """The comparison that the command line describes."""
    given = {name: getattr(args, name) for name in METHODS[args.method].options}
    return Case(
        method=args.method,
        data=args.data,
        options={name: value for name, value in given.items() if value is not None},
        precision=args.precision,
        steps=args.steps,
        rounds=args.rounds,
        threads=args.threads,
        seed=args.seed,
    )


def main() -> int:
    args = parse_arguments()
    case, machine = make_case(args), machine_facts()
    arms = make_arms(
        args.method,
        given_python=args.peer_python,
        peer_tuned=args.peer_tuned,
        peer_checkpointed=args.peer_checkpointed,
        untuned=args.ours_untuned,
    )
    try:
        comparison = compare(case, arms)
    except (NotEqualError, ArmFailedError) as error:
        print(f"{type(error).__name__.removesuffix('Error')}: {error}")
        return 1
    deliver(args, *page(comparison, machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
