"""The inputs of both PPO arms, made once: models, prompts, and the rollout that the gate compares.

Answers of that rollout are pieces of text that end with the end-of-sequence token, all of one length, so that nothing
is padded: TRL 0.25 puts an answer's score on the padding behind it, if there is any. As text they tokenise to
themselves, since Burnish's reward models read text, and TRL's the policy's tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from dpo_measure import SIDES
from dpo_prepare import exact_rows, shuffled_texts
from grpo_prepare import pick_prompts
from inputs import prepare, save_noisy_reference, save_scored_model, token_ids
from transformers import AutoModelForCausalLM

from burnish.models.padding import own_pad_token

FROZEN_DATA, FROZEN_PROMPT_TOKENS = "recipe:spoken-train", 128  # where prompts are as they are
REFERENCE_NOISE = 1e-2  # so that the KL is a part of the rewards that a wrong KL would move


def inputs(job: dict[str, Any], folder: Path, tokenizer: Any) -> dict[str, Any]:
    num_prompts, size, seed = job["num_prompts"], job["micro_batch"], job["seed"]
    num_answers = num_prompts * job["num_generations"]
    if size is not None and num_answers % size:
        raise SystemExit(f"{num_answers} answers a step do not divide into micro-batches of {size}")
    models = {
        "model": save_copy(job["model"], folder / "policy", tokenizer),
        "reference_model": save_noisy_reference(job["model"], folder, seed=seed, noise=REFERENCE_NOISE),
        "reward_model": save_scored_model(job["model"], folder / "reward", tokenizer, seed=seed),
        "value_model": save_scored_model(job["model"], folder / "value", tokenizer, seed=seed + 1),
    }
    for directory in models.values():
        make_readable(Path(directory))
    return {
        **models,
        "pad_token": own_pad_token(tokenizer),
        "prompts": pick_prompts(job, tokenizer),
        "frozen": frozen_round(job, tokenizer),
    }


def frozen_round(job: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Prompts of one length, and for each answer its prompt and its tokens, all answers of one length."""
    length = job["prompt_tokens"] or FROZEN_PROMPT_TOKENS
    sizes = {"num_steps": 1, "pairs": job["num_prompts"], "prompt_tokens": length, "answer_tokens": job["new_tokens"]}
    rows = exact_rows(shuffled_texts({**job, "data": FROZEN_DATA}, tokenizer), sizes, tokenizer)
    # The two texts of a row answer its prompt in turn, as often as it is answered.
    answered = [(row["prompt"], row[SIDES[number % 2]]) for row in rows for number in range(job["num_generations"])]
    return {
        "prompts": [row["prompt"] for row in rows],
        "prompt_ids": [token_ids(prompt, tokenizer) for prompt, _ in answered],
        "completion_ids": [token_ids(prompt + text, tokenizer)[length:] for prompt, text in answered],
    }


def save_copy(model: str, directory: Path, tokenizer: Any) -> str:
    """The model as it is, in float32, with its tokenizer; returns where it is."""
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def make_readable(directory: Path) -> None:
    """Let transformers 4 find the base of rotary embeddings, which transformers 5 writes to another place."""
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.setdefault("rope_theta", config["rope_parameters"]["rope_theta"])
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


if __name__ == "__main__":
    prepare(inputs)
