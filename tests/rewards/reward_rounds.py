"""Rounds of answers for the tests of rewards."""

from __future__ import annotations

from burnish.types import Answers


def make_answers(completions=("4", "5", "", "6 or 7"), *, conversational=False, turns=None, **columns) -> Answers:
    """Answers to prompts of two each; token ids are the bytes; `answer` is "4" everywhere unless it is given."""
    size = len(completions)
    prompts = [f"Question {i // 2}" for i in range(size)]
    columns.setdefault("answer", ["4"] * size)
    return Answers(
        prompts=[[{"role": "user", "content": p}] for p in prompts] if conversational else prompts,
        completions=[[{"role": "assistant", "content": c}] for c in completions]
        if conversational
        else list(completions),
        completion_ids=[list(text.encode()) for text in completions],
        prompt_index=[i // 2 for i in range(size)],
        row_id=[100 + i // 2 for i in range(size)],
        turns=turns,
        columns=columns,
        truncated=[False] * size,
    )
