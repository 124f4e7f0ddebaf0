"""The inputs of both GRPO arms, made once: model, noisy reference, prompts, and a frozen rollout.

The frozen rollout is what the gate compares: answers drawn once from the policy, rewards drawn by the seed, and noise
that makes the old policy another one than the policy, so that the ratio is not 1 whatever a library computes.
"""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from inputs import endless, exact_texts, prepare, read_rows, save_noisy_reference, token_ids
from transformers import AutoModelForCausalLM

from burnish.generation.base import Prompt, SamplingParams
from burnish.generation.native import NativeGenerator

REFERENCE_NOISE = 1e-2  # so that the KL is a part of the loss that a wrong KL would move
OLD_POLICY_NOISE = 0.2  # nats; some tokens leave the clip's interval


def inputs(job: dict[str, Any], folder: Path, tokenizer: Any) -> dict[str, Any]:
    rows, size = job["num_prompts"] * job["num_generations"], job["micro_batch"]
    if size is not None and rows % size:
        raise SystemExit(f"{rows} answers a step do not divide into micro-batches of {size}")
    prompts = pick_prompts(job, tokenizer)
    made = {
        "prompts": prompts,
        "prompt_tokens_a_step": sum(len(token_ids(text, tokenizer)) for text in prompts) / job["num_steps"],
    }
    if job["beta"]:
        made["reference_model"] = save_noisy_reference(job["model"], folder, seed=job["seed"], noise=REFERENCE_NOISE)
    return {**made, "frozen": frozen_rollout(job, prompts, tokenizer)} if job["gate"] else made


def pick_prompts(job: dict[str, Any], tokenizer: Any) -> list[str]:
    """Texts that both libraries tokenise alike, drawn by the seed: a question under the chat template.

    With `prompt_tokens` each has exactly so many: running text of the data stands before the question.
    """
    rows = read_rows(job["data"])
    random.Random(job["seed"]).shuffle(rows)
    needed = job["num_steps"] * job["num_prompts"]
    if job["prompt_tokens"] is not None:
        prompts = exact_prompts([_solved(row) for row in rows], needed, job["prompt_tokens"], tokenizer)
    else:
        prompts = [rendered(_question(row), tokenizer) for row in rows[:needed]]
    if len(prompts) < needed:
        raise SystemExit(f"{job['data']} gives {len(prompts)} prompts; {job['num_steps']} steps need {needed}")
    return prompts


def exact_prompts(texts: list[str], needed: int, num_tokens: int, tokenizer: Any) -> list[str]:
    """Prompts of exactly `num_tokens` tokens: pieces of the running text, under the chat template."""
    return list(
        islice(
            exact_texts(
                endless(texts, tokenizer, least=2 * needed * (num_tokens + 16) + 64),
                num_tokens,
                tokenizer,
                render=lambda piece: rendered(f"{piece}\n\nWhat comes next?", tokenizer),
                count=lambda text: len(token_ids(text, tokenizer)),
            ),
            needed,
        )
    )


def rendered(question: str, tokenizer: Any) -> str:
    """A question as the chat template shows it."""
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _question(row: dict[str, Any]) -> str:
    if "question" in row:
        return str(row["question"])
    prompt = row["prompt"]
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _solved(row: dict[str, Any]) -> str:
    return f"{_question(row)}\n{row.get('answer', '')}"


def frozen_rollout(job: dict[str, Any], prompts: list[str], tokenizer: Any) -> dict[str, Any]:
    """Answers to the first step's prompts, their rewards, and the noise of the old policy: (N), (N), (N, T)."""
    policy = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    first = [torch.tensor(token_ids(text, tokenizer)) for text in prompts[: job["num_prompts"]]]
    completions = NativeGenerator(policy, pad_token_id=tokenizer.pad_token_id).generate(
        [Prompt(ids=ids, key=index) for index, ids in enumerate(first)],
        SamplingParams(
            max_new_tokens=job["new_tokens"], min_new_tokens=job["new_tokens"], end_token_ids=(tokenizer.eos_token_id,)
        ),
        num_samples=job["num_generations"],
        seed=job["seed"],
        round_index=0,
    )
    generator = torch.Generator().manual_seed(job["seed"])
    shape = (len(completions), job["new_tokens"])
    return {
        "completion_ids": [completion.token_ids.tolist() for completion in completions],
        "rewards": torch.rand(len(completions), generator=generator).tolist(),
        "old_noise": (OLD_POLICY_NOISE * torch.randn(shape, generator=generator)).tolist(),
    }


if __name__ == "__main__":
    prepare(inputs)
