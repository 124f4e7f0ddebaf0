"""The table of rewards. A reward is a function of lists, called by keyword; it returns a number for each answer.

    @reward("polite")
    def polite(completions, **kwargs):
        return [float("please" in text_of(completion)) for completion in completions]

Keyword-only parameters are settings (`reward_options`); every other parameter is a column, or one of
`prompts`, `completions`, `completion_ids`, `token_texts`, `trainer_state`, `log_extra`, `log_metric`. Facts of a row:
- `isolation`: `none` for functions that are quick and cannot hang, `process` for those that always need a worker
  that can be killed, `auto` for what `reward_isolation` says.
- `per_answer`: the function is called with one answer at a time, so that a bad one costs no other.
- `seconds`: the limit of one call where it is shorter than `reward_timeout`.
- `overdue`: what an answer gets that takes longer than that, or None: it is an error.
- `package`: a package that it needs; the extra `rewards` has it.
"""

from __future__ import annotations

from typing import Any

from burnish.registry import Table

reward_functions: Table[..., Any] = Table(
    "reward", isolation="auto", per_answer=False, seconds=None, overdue=None, package=None
)
reward = reward_functions.register


def text_of(completion: Any) -> str:
    """The text of an answer: itself, or the contents of the assistant's messages, a line between two.

    >>> text_of([{"role": "assistant", "content": "4"}])
    '4'
    """
    if isinstance(completion, str):
        return completion
    contents = [message.get("content") for message in completion if message.get("role", "assistant") == "assistant"]
    return "\n".join(content for content in contents if isinstance(content, str))
