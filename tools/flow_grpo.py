"""The blocks of docs/flow-grpo.md: one round and one optimizer step of `GRPOTrainer`, room by room."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from recording import WORDS, log_lines, named_means, number, record_step, step_lines, tensors

from burnish import GRPOConfig, GRPOTrainer

PROMPTS = [("what colour is the sky ?", "blue"), ("what is green ?", "grass")]


def variety(completions: list[Any], **_: Any) -> list[float]:
    """The words of an answer that are not there twice, of five."""
    return [len(set(answer[0]["content"].split())) / 5 for answer in completions]


def named(completions: list[Any], answer: list[str], **_: Any) -> list[float | None]:
    """1 if the word of the column is in the answer; an empty answer is not scored."""
    texts = [completion[0]["content"].split() for completion in completions]
    return [float(word in text) if text else None for text, word in zip(texts, answer, strict=True)]


@functools.cache
def record_grpo() -> Mapping[str, Any]:
    """What left each room in one round: 2 prompts, 4 answers each, one optimizer step of two micro-batches."""
    rows = [{"prompt": [{"role": "user", "content": prompt}], "answer": answer} for prompt, answer in PROMPTS]
    seen, _ = record_step(
        GRPOTrainer, GRPOConfig, rows, [variety, named], num_generations=4, per_device_train_batch_size=4,
        max_completion_length=5, beta=0.1, reward_weights=[1.0, 0.5], reward_isolation="none", shuffle_dataset=False,
    )  # fmt: skip
    return seen


def _words(ids: Any) -> str:
    return " ".join(WORDS[token] for token in ids)


def _prepared(seen: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for (prompt, answer), row in zip(PROMPTS, seen["_prepare_dataset"], strict=True):
        lines.append(f"row {row['row_id']}: {prompt!r}, answer {answer!r}")
        lines.append(f"    prompt_input_ids     {row['prompt_input_ids']}  {_words(row['prompt_input_ids'])}")
    return lines


def _generated(seen: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for number_of, completion in enumerate(seen["_generate"]):
        ids, logps = completion.token_ids.tolist(), " ".join(map(number, completion.logps.tolist()))
        lines.append(f"completion {number_of}, finish_reason {completion.finish_reason!r}: {_words(ids)}")
        lines.append(f"    token_ids {ids}   logps [{logps}]")
    return lines


def _rewards(seen: Mapping[str, Any]) -> list[str]:
    table = seen["_calculate_rewards"]
    lines = tensors({"rewards": table.rewards}, "(N, F)")
    lines += [f"names {list(table.names)}, weights {table.weights.tolist()}"]
    return [*lines, *tensors({"total()": table.total()}, "(N,)")]


def _rescored(seen: Mapping[str, Any]) -> list[str]:
    batch = seen["_rescore"]
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "loss_mask", "prompt_index", "row_id")
    legends = ("(P, L)", "(P, L)", "(N, T)", "(N, T)", "(N, T)", "(N,)", "(N,)", "(N, T)", "(N, T)")
    lines = tensors({name: batch[name] for name in (*names, "sampler_logps", "ref_logps")}, *legends)
    return [*lines, f"old_logps                {batch.old_logps}"]


def _step(seen: Mapping[str, Any]) -> list[str]:
    return step_lines(seen, list(map(len, seen["get_batch_samples"][0])), "answers")


def _stats(seen: Mapping[str, Any]) -> list[str]:
    stats = seen["_get_per_token_logps_and_entropies"]
    return tensors({"logps": stats.logps, "mask": stats.mask, "entropy": stats.entropy}, "(N, T)")


def _loss(seen: Mapping[str, Any]) -> list[str]:
    output = seen["_compute_loss"]
    parts = {f"{term.name}, per {term.per}, times {term.coefficient:g}": term.losses for term in output.terms}
    return [*tensors(parts, "(N, T)"), "", *named_means(output.metrics)]


def _division(seen: Mapping[str, Any]) -> list[str]:
    terms, counts = seen["_compute_loss"].terms, seen["get_batch_samples"][1]
    mask = seen["_get_per_token_logps_and_entropies"].mask
    parts = [(term.coefficient, (term.losses * mask).sum().item(), counts[term.per].item()) for term in terms]
    share = seen["compute_loss"].item()
    assert math.isclose(sum(factor * total / count for factor, total, count in parts), share, rel_tol=1e-9)
    shown = " + ".join(f"{factor:g} x {number(total)} / {count:g}" for factor, total, count in parts)
    return [f"{shown} = {number(share)}"]


GRPO_FLOW: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "_prepare_dataset": _prepared,
    "_generate": _generated,
    "_calculate_rewards": _rewards,
    "_rescore": _rescored,
    "_credit": lambda seen: tensors({"advantages": seen["_credit"].advantages}, "(N, 1)"),
    "get_batch_samples": _step,
    "_get_per_token_logps_and_entropies": _stats,
    "_compute_loss": _loss,
    "compute_loss": _division,
    "log": lambda seen: log_lines(seen["log"]),
}
