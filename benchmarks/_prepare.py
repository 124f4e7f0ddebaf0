"""The inputs of both arms, made once: the model, a reference that differs from it by noise, and the rows.

The rows become plain text: the prompt rendered by the chat template, the answers ending in the EOS string. As
chat rows they would not train the same tokens: TRL trains on the newline that the template puts after
`<|im_end|>`, Burnish removes it, since generation never produces it. As text both train on exactly the same.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from burnish.data.formats import ChatPreference, read_preference
from burnish.data.sampler import RankBatchSampler
from burnish.data.sources import load_rows
from burnish.data.tokenize import prepare_preferences
from burnish.data.truncate import TruncationPolicy
from burnish.models.load import load_tokenizer, resolve_model

NOISE = 1e-3


def main() -> None:
    job_path = Path(sys.argv[1])
    job = json.loads(job_path.read_text(encoding="utf-8"))
    model = resolve_model(job["model_name"])
    reference = str(job_path.parent / "reference")
    save_noisy_reference(model, reference, seed=job["seed"])
    rows = pick_rows(job, load_tokenizer(model))
    sampler = RankBatchSampler(len(rows), batch_size=job["pairs"], seed=job["seed"])
    job |= {
        "model": model,
        "reference": reference,
        "rows": rows,
        "ordered_rows": [rows[index] for index in sampler.order()],
    }
    job_path.write_text(json.dumps(job), encoding="utf-8")


def save_noisy_reference(model: str, directory: str, *, seed: int) -> None:
    """The policy plus Gaussian noise of `NOISE` times each parameter's standard deviation.

    With the policy as its own reference the loss would be log 2 whatever a library computes.
    """
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in reference.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * NOISE * parameter.std(unbiased=False))
    reference.save_pretrained(directory)


def pick_rows(job: Mapping[str, Any], tokenizer: Any) -> list[dict[str, str]]:
    """Enough rows for every step, drawn by the seed from those that can be trained on within `max_length`.

    Raises:
        SystemExit: there are not enough.
    """
    texts = [as_text(row, tokenizer) for row in load_rows(job["data"])]
    random.Random(job["seed"]).shuffle(texts)
    usable, _ = prepare_preferences(
        Dataset.from_list(texts),
        tokenizer,
        truncation=TruncationPolicy(max_length=job["max_length"]),
        on_bad_row="drop",
    )
    needed = job["num_steps"] * job["pairs"]
    if len(usable) < needed:
        steps = f"{job['num_steps']} steps of {job['pairs']} pairs"
        raise SystemExit(f"{job['data']} has {len(usable)} usable rows; {steps} need {needed}")
    return [texts[index] for index in usable["row_id"][:needed]]


def as_text(row: Mapping[str, Any], tokenizer: Any) -> dict[str, str]:
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
    main()
