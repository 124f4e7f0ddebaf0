"""What the arms of a comparison share, made once by a child that has Burnish: a model, a reference, texts of a length.

It runs in Burnish's environment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from burnish.data.sources import load_rows
from burnish.models.load import load_tokenizer, resolve_model
from burnish.models.value import load_value_model

SPREAD = 8  # tokens by which a piece of text may tokenise otherwise at its ends


def prepare(make: Callable[[dict[str, Any], Path, Any], Mapping[str, Any]]) -> None:
    """Fill the job file that the command line names: its `model`, and what `make` finds.

    Args:
        make: job, its folder, tokenizer -> further entries. The job's `model` is a directory or a name by then.
    """
    path = Path(sys.argv[1])
    job = json.loads(path.read_text(encoding="utf-8"))
    original = resolve_model(job["model"])
    tokenizer = load_tokenizer(original)
    job["model"] = original
    if job["geometry"]:
        job["model"] = str(path.parent / "model")
        save_random_model(original, job["geometry"], job["model"], tokenizer, seed=job["seed"])
    job |= make(job, path.parent, tokenizer)
    path.write_text(json.dumps(job), encoding="utf-8")


def save_random_model(original: str, geometry: Mapping[str, Any], directory: str, tokenizer: Any, *, seed: int) -> None:
    """A model of random weights: the original's configuration with the entries of `geometry` in their place."""
    config = AutoConfig.from_pretrained(original)
    for name, value in geometry.items():
        setattr(config, name, value)
    config.head_dim = config.hidden_size // config.num_attention_heads
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def save_noisy_reference(model: str, directory: Path, *, seed: int, noise: float) -> str:
    """The policy plus Gaussian noise of `noise` times each parameter's standard deviation; returns where it is.

    With the policy as its own reference, DPO's loss would be log 2 and a KL 0 whatever a library computes.
    """
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in reference.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.add_(drawn * noise * parameter.std(unbiased=False))
    reference.save_pretrained(directory / "reference")
    return str(directory / "reference")


def save_scored_model(model: str, directory: Path, tokenizer: Any, *, seed: int) -> str:
    """A sequence classifier with the model's trunk and a head drawn by the seed; returns where it is.

    Its padding id ends no text; `own_pad_token` says which token that is.
    """
    load_value_model(model, tokenizer=tokenizer, head_init="normal", seed=seed).save_pretrained(str(directory))
    return str(directory)


def read_rows(source: Any) -> list[dict[str, Any]]:
    """The rows of a source as `burnish.data.sources.load_rows` takes it."""
    rows: Any = load_rows(source)
    return list(rows)


def token_ids(text: str, tokenizer: Any) -> list[int]:
    """The tokens of a text, none added."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def endless(texts: Sequence[str], tokenizer: Any, *, least: int) -> list[int]:
    """The tokens of all texts in a row, over again until there are at least so many."""
    ids = token_ids("\n\n".join(texts) + "\n\n", tokenizer)
    return ids * (-(-least // max(len(ids), 1)))


def exact_texts(
    pool: Sequence[int], num_tokens: int, tokenizer: Any, *, render: Callable[[str], str], count: Callable[[str], int]
) -> Iterator[str]:
    """Texts of exactly `num_tokens` tokens, each with another piece of the pool in it.

    Args:
        pool: token ids of running text.
        num_tokens: that `count` has to find.
        tokenizer: turns a piece of the pool into text.
        render: the piece -> the text around it.
        count: the text -> its tokens; -1 where it cannot be used.
    """
    guess = max(num_tokens - count(render("")), 1)
    start = 0
    while start + guess + SPREAD <= len(pool):
        found = None
        for length in sorted(range(max(guess - SPREAD, 1), guess + SPREAD), key=lambda size: abs(size - guess)):
            text = render(tokenizer.decode(pool[start : start + length]))
            if count(text) == num_tokens:
                found = text
                break
        if found is None:
            start += 1
            continue
        yield found
        start += guess
