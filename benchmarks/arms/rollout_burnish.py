"""Burnish's arm: its own engine, with the settings of `runtime/cpu.py`, and the gate: log-probs of drawn tokens.

With `profile` in the job it also says where the time of a rollout goes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from measure import start_job
from rollout_measure import run
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from burnish import Completion, NativeGenerator, Prompt, SamplingParams

LONGEST = 15


def main() -> None:
    job = start_job()
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    engine = NativeGenerator(model, pad_token_id=job["pad_token_id"], **job["engine"])
    latest: list[Completion] = []

    def rollout(prompts: Sequence[list[int]], answers: int, tokens: int) -> None:
        wanted = [Prompt(ids=torch.tensor(ids), key=key) for key, ids in enumerate(prompts)]
        low = (
            torch.autocast("cpu", dtype=torch.bfloat16) if job["precision"] == "bfloat16" else contextlib.nullcontext()
        )
        with low:
            latest[:] = engine.generate(
                wanted,
                SamplingParams(max_new_tokens=tokens, end_token_ids=()),
                num_samples=answers,
                seed=job["seed"],
                round_index=0,
            )
        assert all(len(completion) == tokens for completion in latest)

    rollout(job["prompts"][: job["num_prompts"]], job["num_generations"], job["new_tokens"])
    gap = largest_gap(model, latest)
    description, rows = engine.description, list[dict[str, Any]]()
    if job.get("profile"):
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            rollout(job["prompts"][: job["num_prompts"]], job["num_generations"], job["new_tokens"])
        averages = sorted(profiler.key_averages(), key=lambda entry: -entry.self_cpu_time_total)
        whole = sum(entry.self_cpu_time_total for entry in averages)
        rows = [
            {"operation": entry.key, "share": entry.self_cpu_time_total / whole, "calls": entry.count}
            for entry in averages[:LONGEST]
        ]
    run(job, rollout, library="burnish", largest_gap=gap, engine=description, profile=rows)


@torch.no_grad()
def largest_gap(model: Any, completions: Sequence[Completion]) -> float:
    """Between the log-probs that the engine gave and those of a plain float32 forward over prompt and answer."""
    gaps = []
    for completion in completions:
        text = torch.cat([completion.prompt_ids, completion.token_ids])[None]
        logits = model(input_ids=text, use_cache=False).logits[0, len(completion.prompt_ids) - 1 : -1].double()
        expected = logits.log_softmax(1).gather(1, completion.token_ids[:, None]).squeeze(1)
        gaps.append((completion.logps - expected).abs().max().item())
    return max(gaps)


if __name__ == "__main__":
    main()
