"""Run by `test_whole` as one of two ranks, or by itself: gather a round, and write what this rank sees of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

import torch  # noqa: E402 - the paths come first
import torch.distributed as dist  # noqa: E402

from burnish.advantages import advantages, compute_advantages  # noqa: E402
from burnish.data.collate import rollout_batch  # noqa: E402
from burnish.rollout.collect import PromptRow, Round, ScoredGroups  # noqa: E402
from burnish.rollout.statistics import round_statistics  # noqa: E402
from burnish.rollout.whole import gather_round  # noqa: E402
from burnish.trainers.grpo import GRPOConfig  # noqa: E402
from burnish.types import Completion, RewardTable  # noqa: E402
from ranks import finish  # noqa: E402

ANSWERS = [[5, 2], [6, 6, 2], [7, 2], [7, 2], [9] * 6, [2], [8, 8, 2], [4, 4, 4, 2]]  # two each to four prompts
REWARDS = [[1.0, 0.5], [0.0, float("nan")], [0.25, 1.0], [0.25, 1.0], [3.0, 0.0], [1.0, 1.0], [0.0, 2.0], [2.0, 0.1]]
ROWS = [30, 10, 20, 0]


def completion(tokens: list[int], turns: bool) -> Completion:
    return Completion(
        prompt_ids=torch.tensor([1]),
        token_ids=torch.tensor(tokens),
        logps=torch.full((len(tokens),), -1.0),
        kept_mass=torch.ones(len(tokens)),
        loss_mask=torch.ones(len(tokens), dtype=torch.bool),
        turns=torch.arange(len(tokens)) // 2 if turns else None,
        finish_reason="stop" if tokens[-1] == 2 else "length",
    )


def part(prompts: range, *, turns: bool, tokens: bool) -> Round:
    """The round of some of the prompts; rewards of tokens are on the first prompt's rank alone."""
    rows = [PromptRow(row_id=ROWS[index], ids=torch.tensor([1]), prompt="?", columns={}) for index in prompts]
    place = slice(2 * prompts.start, 2 * prompts.stop)
    completions = [completion(answer, turns) for answer in ANSWERS[place]]
    width = max(map(len, completions))
    table = RewardTable(
        rewards=torch.tensor(REWARDS[place]),
        names=("first", "second"),
        weights=torch.tensor([1.0, 0.5]),
        token_rewards=torch.arange(float(len(completions) * width)).view(-1, width) if tokens else None,
    )
    batch = rollout_batch([row.ids for row in rows], completions, row_ids=[r.row_id for r in rows], pad_token_id=0)
    groups = ScoredGroups(prompts=tuple(rows), completions=tuple(completions), rewards=table)
    counts = {"num_replaced": sum(prompts), "num_surplus": len(prompts)}
    return Round(batch=batch, groups=groups, whole=gather_round(table, batch), **counts)


def seen(found: Round) -> dict:
    """What a rank sees of the round, in JSON types."""
    whole = found.whole
    results = {}
    for name in ("group", "rloo", "gdpo"):
        (entry,) = advantages.bind([name], GRPOConfig(output_dir="unused"))
        values = compute_advantages(entry, whole.rewards, whole.prompt_index, whole.mask, whole.turn_index)
        results[name] = whole.mine(values).flatten().tolist()
    return {
        "rewards": whole.rewards.rewards.tolist(),
        "token_rewards": None if whole.rewards.token_rewards is None else whole.rewards.token_rewards.tolist(),
        "dtype": str(whole.rewards.rewards.dtype),
        "prompt_index": whole.prompt_index.tolist(),
        "row_id": whole.row_id.tolist(),
        "mask": whole.mask.tolist(),
        "turn_index": None if whole.turn_index is None else whole.turn_index.tolist(),
        "mine": whole.mine(whole.row_id).tolist(),
        "advantages": results,
        "solve_rates": {str(row): rate for row, rate in whole.solve_rates(1.25).items()},
        "statistics": round_statistics(found, solved_reward=1.25),
    }


def main() -> None:
    """argv: rank, file of the store, JSON options of `part`."""
    rank, store, options = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    own = {**options, "tokens": options["tokens"] and rank == 0}
    print(json.dumps(seen(part(range(2 * rank, 2 * rank + 2), **own))))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    finish()
