"""What both head arms record: memory above the inputs and the gradients, and seconds, of scoring answers.

The problem is that of a training step: hidden states of prompts and answers, of which the answers' tokens are scored.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import give_memory_back, reset_peak_memory, resident_memory, start_job, versions, write_result
from torch import Tensor

Scores = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
REPEATS = 3


def run(*, library: str, score: Scores) -> None:
    """Score and differentiate the problem of the job that the command line names, and write what it took.

    Args:
        library: the distribution whose version is reported.
        score: hidden (N, S, H), weight (V, H), ids (N, S), is_answer (N, S) -> log-probs and entropies of the
            answers' tokens, (R,) each, in order; token t is scored from the state at t - 1.
    """
    job = start_job()
    hidden, weight, ids, is_answer = problem(job)
    gc.collect()
    give_memory_back()
    before = resident_memory("VmRSS")
    can_reset = reset_peak_memory()
    result = once(score, hidden, weight, ids, is_answer)
    peak = resident_memory("VmHWM") if can_reset else None
    gradients = sum(tensor.numel() * tensor.element_size() for tensor in (hidden, weight))
    seconds = [once(score, hidden, weight, ids, is_answer)["seconds"] for _ in range(REPEATS)]
    write_result(
        job,
        {
            "library": library,
            "versions": versions(library),
            "first_step": {name: result[name] for name in ("logps", "entropy", "grad_hidden", "grad_weight")},
            "seconds": statistics.median(seconds),
            "scratch_bytes": None if peak is None or before is None else peak - before - gradients,
        },
    )


def problem(job: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, the head's weights, token ids, and which of these are answers, drawn by the seed."""
    generator = torch.Generator().manual_seed(job["seed"])
    shape = (job["rows"], job["prompt_tokens"] + job["answer_tokens"])
    hidden = torch.randn(*shape, job["hidden_size"], generator=generator).requires_grad_()
    weight = (torch.randn(job["vocabulary"], job["hidden_size"], generator=generator) / 10).requires_grad_()
    ids = torch.randint(job["vocabulary"], shape, generator=generator)
    is_answer = (torch.arange(shape[1]) >= job["prompt_tokens"]).expand(shape)
    return hidden, weight, ids, is_answer


def once(score: Scores, hidden: Tensor, weight: Tensor, ids: Tensor, is_answer: Tensor) -> dict[str, float]:
    """Forward and backward of a loss that weights each token differently."""
    hidden.grad = weight.grad = None
    started = time.perf_counter()
    logps, entropy = score(hidden, weight, ids, is_answer)
    (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
    seconds = time.perf_counter() - started
    assert hidden.grad is not None
    assert weight.grad is not None
    return {
        "seconds": seconds,
        "logps": float(logps.detach().double().sum()),
        "entropy": float(entropy.detach().double().sum()),
        "grad_hidden": float(hidden.grad.norm()),
        "grad_weight": float(weight.grad.norm()),
    }
