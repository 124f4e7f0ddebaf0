"""The inputs of both DPO arms, made once: the model, a reference that differs from it by noise, and the rows.

The rows become plain text: the prompt rendered by the chat template, the answers ending in the EOS string. As
chat rows they would not train the same tokens: TRL trains on the newline that the template puts after
`<|im_end|>`, Burnish removes it, since generation never produces it. As text both train on exactly the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset
from inputs import endless, exact_texts, prepare, read_rows, save_noisy_reference, token_ids

from burnish.data.formats import ChatPreference, read_preference
from burnish.data.sampler import RankBatchSampler
from burnish.data.tokenize import prepare_preferences
from burnish.data.truncate import TruncationPolicy

NOISE = 1e-3
TextRow = dict[str, str]


def inputs(job: dict[str, Any], folder: Path, tokenizer: Any) -> dict[str, Any]:
    reference = save_noisy_reference(job["model"], folder, seed=job["seed"], noise=NOISE)
    return {"reference_model": reference, **pick_rows(job, tokenizer, usable=usable_rows)}


def pick_rows(
    job: Mapping[str, Any], tokenizer: Any, *, usable: Callable[[list[TextRow], Mapping[str, Any], Any], list[TextRow]]
) -> dict[str, Any]:
    """The job's rows, drawn by the seed, and the same in the order in which Burnish's sampler takes them.

    Args:
        job: has `pairs`, `num_steps`, `max_length`, and `prompt_tokens` with `answer_tokens` or neither.
        tokenizer: the model's.
        usable: rows, job, tokenizer -> those that both libraries train on; where lengths are exact, all are.
    """
    texts = shuffled_texts(job, tokenizer)
    needed = job["num_steps"] * job["pairs"]
    exact = job["prompt_tokens"] is not None
    rows = exact_rows(texts, job, tokenizer)[:needed] if exact else usable(texts, job, tokenizer)[:needed]
    if len(rows) < needed:
        steps = f"{job['num_steps']} steps of {job['pairs']} pairs"
        raise SystemExit(f"{job['data']} gives {len(rows)} usable rows; {steps} need {needed}")
    sampler = RankBatchSampler(len(rows), batch_size=job["pairs"], seed=job["seed"])
    longest = job["prompt_tokens"] + job["answer_tokens"] if exact else 0
    return {
        "max_length": max(job["max_length"], longest),
        "rows": rows,
        "ordered_rows": [rows[index] for index in sampler.order()],
    }


def shuffled_texts(job: Mapping[str, Any], tokenizer: Any) -> list[TextRow]:
    """All rows of the job's data as text, in an order drawn by the seed."""
    texts = [as_text(row, tokenizer) for row in read_rows(job["data"])]
    random.Random(job["seed"]).shuffle(texts)
    return texts


def usable_rows(texts: list[TextRow], job: Mapping[str, Any], tokenizer: Any) -> list[TextRow]:
    """The rows that can be trained on within `max_length`."""
    usable, _ = prepare_preferences(
        Dataset.from_list(texts),
        tokenizer,
        truncation=TruncationPolicy(max_length=job["max_length"]),
        on_bad_row="drop",
    )
    return [texts[index] for index in usable["row_id"]]


def exact_rows(texts: list[TextRow], job: Mapping[str, Any], tokenizer: Any) -> list[TextRow]:
    """As many rows as the job needs, of exactly `prompt_tokens` and twice `answer_tokens`, the EOS token among these.

    The texts are run together and cut. A cut is taken where the tokens of prompt and answer are the prompt's, then
    the answer's, so that both libraries find the same.
    """
    end, length = tokenizer.eos_token, job["prompt_tokens"]
    needed = job["num_steps"] * job["pairs"]

    def pool(side: str, size: int) -> list[int]:
        return endless([row[side].removesuffix(end) for row in texts], tokenizer, least=2 * needed * (size + 16) + 64)

    prompts = exact_texts(
        pool("prompt", length), length, tokenizer, render=str, count=lambda text: len(token_ids(text, tokenizer))
    )
    pools = {side: pool(side, job["answer_tokens"]) for side in ("chosen", "rejected")}
    rows: list[TextRow] = []
    for number, prompt in enumerate(islice(prompts, needed)):
        answers = {side: exact_answer(prompt, ids, number, job, tokenizer) for side, ids in pools.items()}
        rows.append({"prompt": prompt, **answers})
    return rows


def exact_answer(prompt: str, pool: list[int], number: int, job: Mapping[str, Any], tokenizer: Any) -> str:
    """The text of an answer to `prompt`: another piece of the pool for every number."""
    start = token_ids(prompt, tokenizer)

    def count(text: str) -> int:
        ids = token_ids(prompt + text, tokenizer)
        return len(ids) - len(start) if ids[: len(start)] == start else -1

    own = pool[number * (job["answer_tokens"] + 16) :]
    render = ("{}" + tokenizer.eos_token).format
    return next(exact_texts(own, job["answer_tokens"], tokenizer, render=render, count=count))


def as_text(row: Mapping[str, Any], tokenizer: Any) -> TextRow:
    """A preference row as text."""
    preference = read_preference(row)
    end = tokenizer.eos_token
    if not isinstance(preference, ChatPreference):
        answers = {name: getattr(preference, name).removesuffix(end) + end for name in ("chosen", "rejected")}
        return {"prompt": preference.prompt, **answers}
    prompt = tokenizer.apply_chat_template(list(preference.prompt), tokenize=False, add_generation_prompt=True)
    texts = {"prompt": prompt}
    for name in ("chosen", "rejected"):
        messages = [*preference.prompt, *getattr(preference, name)]
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        if not whole.startswith(prompt):
            raise SystemExit(f"the chat template renders a prompt differently alone: {prompt[-80:]!r}")
        texts[name] = whole[len(prompt) :].rstrip().removesuffix(end) + end
    return texts


if __name__ == "__main__":
    prepare(inputs)
