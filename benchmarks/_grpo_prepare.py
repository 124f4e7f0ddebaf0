"""The inputs of both GRPO arms, made once: model, noisy reference, prompts, and a frozen rollout.

The frozen rollout is what the gate compares: answers drawn once from the policy, rewards drawn by the seed, and noise
that makes the old policy another one than the policy, so that the ratio is not 1 whatever a library computes.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from _prepare import save_noisy_reference
from transformers import AutoModelForCausalLM

from burnish.data.sources import load_rows
from burnish.generation.base import Prompt, SamplingParams
from burnish.generation.native import NativeGenerator
from burnish.models.load import load_tokenizer, resolve_model

OLD_POLICY_NOISE = 0.2  # nats; some tokens leave the clip's interval


def main() -> None:
    job_path = Path(sys.argv[1])
    job = json.loads(job_path.read_text(encoding="utf-8"))
    model = resolve_model(job["model_name"])
    tokenizer: Any = load_tokenizer(model)
    reference = str(job_path.parent / "reference")
    save_noisy_reference(model, reference, seed=job["seed"])
    prompts = pick_prompts(job, tokenizer)
    num_tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in prompts)
    job |= {
        "model": model,
        "reference": reference,
        "prompts": prompts,
        "prompt_tokens_a_step": num_tokens / job["num_steps"],
        "frozen": frozen_rollout(job, model, prompts, tokenizer),
    }
    job_path.write_text(json.dumps(job), encoding="utf-8")


def pick_prompts(job: dict[str, Any], tokenizer: Any) -> list[str]:
    """Texts that both libraries tokenise alike, drawn by the seed: a question under the chat template.

    With `prompt_tokens` solved examples stand before the question, cut on the left to so many tokens.
    """
    rows = list(load_rows(job["data"]))
    random.Random(job["seed"]).shuffle(rows)
    needed = job["num_steps"] * job["num_prompts"]
    if len(rows) < needed:
        raise SystemExit(f"{job['data']} has {len(rows)} rows; {job['num_steps']} steps need {needed}")
    examples = "\n\n".join(f"{_question(row)}\n{row.get('answer', '')}" for row in rows[-8:])
    return [_text(_question(row), examples, job["prompt_tokens"], tokenizer) for row in rows[:needed]]


def _question(row: dict[str, Any]) -> str:
    if "question" in row:
        return str(row["question"])
    prompt = row["prompt"]
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _text(question: str, examples: str, num_tokens: int | None, tokenizer: Any) -> str:
    def rendered(context: str) -> str:
        messages = [{"role": "user", "content": f"{context}\n\n{question}".strip()}]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    if num_tokens is None:
        return rendered("")
    ids = tokenizer(examples, add_special_tokens=False)["input_ids"]
    for length in range(min(len(ids), num_tokens), -1, -1):
        text = rendered(tokenizer.decode(ids[len(ids) - length :]))
        if len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= num_tokens:
            return text
    return rendered("")


def frozen_rollout(job: dict[str, Any], model: str, prompts: list[str], tokenizer: Any) -> dict[str, Any]:
    """Answers to the first step's prompts, their rewards, and the noise of the old policy: (N), (N), (N, T)."""
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    first = [
        torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in prompts[: job["num_prompts"]]
    ]
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
    main()
