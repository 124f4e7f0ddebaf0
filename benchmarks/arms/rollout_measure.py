"""What both rollout arms record: seconds of rollouts, and of single steps. In the environment of either library."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from measure import versions, write_result

Rollout = Callable[[Sequence[list[int]], int, int], None]  # prompts, answers to each, tokens of each answer
STEPS, REPEATS = 16, 5


def run(job: dict[str, Any], rollout: Rollout, *, library: str, **more: Any) -> None:
    """Time the rollouts of the job, after one to warm up, and steps of a few numbers of rows.

    Args:
        job: as `start_job` gave it.
        rollout: draws answers of a fixed length.
        library: the distribution whose version is reported.
        more: what else goes into the result.
    """
    prompts, size = job["prompts"][: job["num_prompts"]], (job["num_generations"], job["new_tokens"])
    gc.collect()
    seconds = [_seconds(rollout, prompts, *size) for _ in range(job["num_steps"])]
    write_result(
        job,
        {
            "library": library,
            "versions": versions(library),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "drawn_tokens": len(prompts) * size[0] * size[1],
            "seconds": seconds,
            "step_seconds": {str(rows): _step_seconds(rollout, job, rows) for rows in job["step_rows"]},
            **more,
        },
    )


def _step_seconds(rollout: Rollout, job: dict[str, Any], rows: int) -> float:
    """Median seconds of one more token for so many rows: of long rollouts less that of short ones."""
    prompts = job["prompts"][: -(-rows // job["num_generations"])]
    answers = rows // len(prompts)
    long, short = (
        [_seconds(rollout, prompts, answers, tokens) for _ in range(REPEATS)] for tokens in (2 * STEPS, STEPS)
    )
    return (statistics.median(long) - statistics.median(short)) / STEPS


def _seconds(rollout: Rollout, prompts: Sequence[list[int]], answers: int, tokens: int) -> float:
    started = time.perf_counter()
    rollout(prompts, answers, tokens)
    return time.perf_counter() - started
