"""The inputs of both rollout arms: a model, and prompts of exactly so many tokens of running text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inputs import endless, prepare, read_rows

LONGEST_DECODED = 32  # rows at which a step is timed alone


def main() -> None:
    prepare(make)


def make(job: dict[str, Any], folder: Path, tokenizer: Any) -> Mapping[str, Any]:
    """Prompts, each with another piece of the text."""
    del folder
    length, count = job["prompt_tokens"], max(job["num_prompts"], LONGEST_DECODED)
    texts = [str(row["prompt"]) for row in read_rows(job["data"])]
    pool = endless(texts, tokenizer, least=length * count)
    return {
        "prompts": [pool[number * length : (number + 1) * length] for number in range(count)],
        "pad_token_id": tokenizer.pad_token_id,
    }


if __name__ == "__main__":
    main()
