"""Writes the problems of `recipe:grpo`: chain_sum of the package reasoning-gym, with two terms of one digit each.

There are 200 of them; the package draws them at random, here they are enumerated in its wording. Run it to see that the
files in `recipes/data` are what it makes: python tools/sums.py
"""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path

DATA = Path(__file__).parent.parent / "src" / "burnish" / "recipes" / "data"
QUESTION = "State the final answer to the following arithmetic problem: {} ="
NUM_TRAIN, SEED = 72, 0


def problems() -> list[dict[str, object]]:
    """All 200 problems, in an order drawn once."""
    rows = []
    for first, sign, second in product(range(10), "+-", range(10)):
        answer = first + second if sign == "+" else first - second
        question = QUESTION.format(f"{first} {sign} {second}")
        rows.append({"prompt": [{"role": "user", "content": question}], "answer": str(answer)})
    random.Random(SEED).shuffle(rows)
    return rows


def texts() -> dict[str, str]:
    """File name -> content."""
    rows = [json.dumps(row) for row in problems()]
    parts = {"sums-train.jsonl": rows[:NUM_TRAIN], "sums-heldout.jsonl": rows[NUM_TRAIN:]}
    return {name: "\n".join(lines) + "\n" for name, lines in parts.items()}


if __name__ == "__main__":
    for name, text in texts().items():
        (DATA / name).write_text(text, encoding="utf-8")
