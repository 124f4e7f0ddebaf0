"""What happens to a row that is too long. Nothing is cut that is not counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from burnish.data.errors import RowProblem

TRUNCATION_MODES = ("keep_start", "keep_end")


@dataclass(frozen=True, kw_only=True)
class TruncationPolicy:
    """The lengths, in tokens, that a row may have. None is no limit.

    Attributes:
        max_length: prompt and completion together, at least 2.
        max_prompt_length: of the prompt, whose end is kept.
        max_completion_length: of a completion, whose start is kept.
        truncation_mode: what gives way to `max_length`: `keep_start` cuts the completion's end, `keep_end`
            the start of the prompt, which all completions share, and the completion's end only if that is
            not enough.

    Raises:
        ValueError: a length that no row can have, or an unknown mode.
    """

    max_length: int | None = None
    max_prompt_length: int | None = None
    max_completion_length: int | None = None
    truncation_mode: str = "keep_start"

    def __post_init__(self) -> None:
        for name, least in (("max_length", 2), ("max_prompt_length", 1), ("max_completion_length", 1)):
            value = {"max_length": self.max_length, "max_prompt_length": self.max_prompt_length}.get(
                name, self.max_completion_length
            )
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(
                    f"{name}={value!r} is not allowed: a whole number from {least} up, or None for no limit"
                )
        if self.truncation_mode not in TRUNCATION_MODES:
            raise ValueError(
                f"truncation_mode={self.truncation_mode!r} is unknown; known: {', '.join(TRUNCATION_MODES)}"
            )


@dataclass(frozen=True)
class RowTokens:
    """A prompt and its completions; of a pair row, chosen first.

    Attributes:
        prompt: ids that all share.
        completions: ids of each completion, with what is left of its prompt at their head.
        masks: the token is trained.
        names: what errors call each completion.
        pairs: completions of which the first is preferred; they must differ.
        num_prompt_cut: tokens cut off the prompt.
        num_completion_cut: tokens cut off each completion.
    """

    prompt: Sequence[int]
    completions: tuple[Sequence[int], ...]
    masks: tuple[Sequence[bool], ...]
    names: tuple[str, ...] = ("chosen", "rejected")
    pairs: tuple[tuple[int, int], ...] = ((0, 1),)
    num_prompt_cut: int = 0
    num_completion_cut: tuple[int, ...] = (0, 0)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each completion."""
        return tuple(map(len, self.completions))

    @property
    def trained_lengths(self) -> tuple[int, ...]:
        """Trained tokens of each completion."""
        return tuple(map(sum, self.masks))

    @property
    def truncated(self) -> list[bool]:
        """For each completion: it, or its prompt, was cut."""
        return [self.num_prompt_cut + num_cut > 0 for num_cut in self.num_completion_cut]


def truncate(row: RowTokens, policy: TruncationPolicy) -> RowTokens:
    """The row within the policy's lengths.

    With p the length of the prompt and c that of each completion, after the limits of each part, `max_length` L
    leaves
    - `keep_start`: min(c, L - p) tokens of each completion;
    - `keep_end`: min(p, L - max c) tokens of the prompt, at least 1, then as above.

    Raises:
        RowProblem: no prompt token, or a completion without a trained token, is left; or both of a pair are the same.
    """
    if not row.prompt:
        fix = "Give a prompt whose tokens all answers share, or a tokenizer that adds a BOS token."
        raise RowProblem("prompt", "has no token to predict the first answer token from", value=None, fix=fix)
    cut = _keep_prompt_end(row, policy.max_prompt_length)
    cut = _keep_completion_start(cut, policy.max_completion_length)
    if policy.max_length is not None:
        if policy.truncation_mode == "keep_end":
            cut = _keep_prompt_end(cut, max(policy.max_length - max(cut.lengths), 1))
        cut = _keep_completion_start(cut, max(policy.max_length - len(cut.prompt), 0))
    _check_trained(row, cut, policy)
    _check_pairs(row, cut, policy)
    return cut


def _keep_prompt_end(row: RowTokens, limit: int | None) -> RowTokens:
    excess = 0 if limit is None else max(len(row.prompt) - limit, 0)
    return replace(row, prompt=row.prompt[excess:], num_prompt_cut=row.num_prompt_cut + excess)


def _keep_completion_start(row: RowTokens, limit: int | None) -> RowTokens:
    if limit is None:
        return row
    excess = [max(length - limit, 0) for length in row.lengths]
    return replace(
        row,
        completions=tuple(ids[:limit] for ids in row.completions),
        masks=tuple(mask[:limit] for mask in row.masks),
        num_completion_cut=tuple(map(sum, zip(row.num_completion_cut, excess, strict=True))),
    )


def _check_trained(row: RowTokens, cut: RowTokens, policy: TruncationPolicy) -> None:
    for name, mask, cut_mask in zip(row.names, row.masks, cut.masks, strict=True):
        if any(cut_mask):
            continue
        if not any(mask):
            fix = "Begin the answer with a character that the tokenizer does not merge with the prompt's end."
            raise RowProblem(name, f"has no trained token ({_shown_lengths(row)})", value=None, fix=fix)
        fix = "Raise max_length, set max_prompt_length or truncation_mode='keep_end', or shorten the prompt."
        problem = f"no room is left for a trained token: {_shown_lengths(row)}"
        raise RowProblem(name, problem, value=_shown_limits(policy), fix=fix)


def _check_pairs(row: RowTokens, cut: RowTokens, policy: TruncationPolicy) -> None:
    contents = [(tuple(ids), tuple(mask)) for ids, mask in zip(cut.completions, cut.masks, strict=True)]
    for first, second in cut.pairs:
        if contents[first] != contents[second]:
            continue
        name, other, lengths = row.names[second], row.names[first], _shown_lengths(row)
        if not cut.num_completion_cut[first] and not cut.num_completion_cut[second]:
            fix = "Remove the row: there is nothing to prefer."
            raise RowProblem(name, f"has the same tokens as {other}", value=lengths, fix=fix)
        fix = "Raise max_length or max_completion_length, or remove the row."
        problem = f"is the same as {other} once both are cut: {lengths}"
        raise RowProblem(name, problem, value=_shown_limits(policy), fix=fix)


def _shown_lengths(row: RowTokens) -> str:
    answers = ", ".join(f"{name} {length}" for name, length in zip(row.names, row.lengths, strict=True))
    return f"prompt {len(row.prompt)}, {answers} tokens"


def _shown_limits(policy: TruncationPolicy) -> str:
    return (
        f"max_length={policy.max_length}, max_prompt_length={policy.max_prompt_length}, "
        f"max_completion_length={policy.max_completion_length}"
    )
