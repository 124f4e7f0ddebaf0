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
            the start of the prompt, which both completions share, and the completion's end only if that is
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
class PairTokens:
    """A prompt and its two completions, chosen first.

    Attributes:
        prompt: ids that both share.
        completions: ids of each completion, with what is left of its prompt at their head.
        masks: the token is trained.
        num_prompt_cut: tokens cut off the prompt.
        num_completion_cut: tokens cut off each completion.
    """

    prompt: Sequence[int]
    completions: tuple[Sequence[int], Sequence[int]]
    masks: tuple[Sequence[bool], Sequence[bool]]
    num_prompt_cut: int = 0
    num_completion_cut: tuple[int, int] = (0, 0)


def truncate(pair: PairTokens, policy: TruncationPolicy) -> PairTokens:
    """The pair within the policy's lengths.

    With p, c, r the lengths of prompt, chosen and rejected, after the limits of each part, `max_length` L
    leaves
    - `keep_start`: min(c, L - p) and min(r, L - p) tokens of the completions;
    - `keep_end`: min(p, L - max(c, r)) tokens of the prompt, at least 1, then as above.

    Raises:
        RowProblem: no prompt token, or a completion without a trained token, is left; or both are the same.
    """
    if not pair.prompt:
        fix = "Give a prompt whose tokens both answers share, or a tokenizer that adds a BOS token."
        raise RowProblem("prompt", "has no token to predict the first answer token from", value=None, fix=fix)
    cut = _keep_prompt_end(pair, policy.max_prompt_length)
    cut = _keep_completion_start(cut, policy.max_completion_length)
    if policy.max_length is not None:
        if policy.truncation_mode == "keep_end":
            cut = _keep_prompt_end(cut, max(policy.max_length - max(map(len, cut.completions)), 1))
        cut = _keep_completion_start(cut, max(policy.max_length - len(cut.prompt), 0))
    _check_trained(pair, cut, policy)
    return cut


def _keep_prompt_end(pair: PairTokens, limit: int | None) -> PairTokens:
    excess = 0 if limit is None else max(len(pair.prompt) - limit, 0)
    return replace(pair, prompt=pair.prompt[excess:], num_prompt_cut=pair.num_prompt_cut + excess)


def _keep_completion_start(pair: PairTokens, limit: int | None) -> PairTokens:
    if limit is None:
        return pair
    (chosen, rejected), (chosen_mask, rejected_mask) = pair.completions, pair.masks
    already = pair.num_completion_cut
    return replace(
        pair,
        completions=(chosen[:limit], rejected[:limit]),
        masks=(chosen_mask[:limit], rejected_mask[:limit]),
        num_completion_cut=(
            already[0] + max(len(chosen) - limit, 0),
            already[1] + max(len(rejected) - limit, 0),
        ),
    )


def _check_trained(pair: PairTokens, cut: PairTokens, policy: TruncationPolicy) -> None:
    chosen, rejected = map(len, pair.completions)
    lengths = f"prompt {len(pair.prompt)}, chosen {chosen}, rejected {rejected} tokens"
    limits = (
        f"max_length={policy.max_length}, max_prompt_length={policy.max_prompt_length}, "
        f"max_completion_length={policy.max_completion_length}"
    )
    for column, mask, cut_mask in zip(("chosen", "rejected"), pair.masks, cut.masks, strict=True):
        if any(cut_mask):
            continue
        if not any(mask):
            fix = "Begin the answer with a character that the tokenizer does not merge with the prompt's end."
            raise RowProblem(column, f"has no trained token ({lengths})", value=None, fix=fix)
        fix = "Raise max_length, set max_prompt_length or truncation_mode='keep_end', or shorten the prompt."
        raise RowProblem(column, f"no room is left for a trained token: {lengths}", value=limits, fix=fix)
    if tuple(cut.completions[0]) != tuple(cut.completions[1]) or list(cut.masks[0]) != list(cut.masks[1]):
        return
    if not any(cut.num_completion_cut):
        fix = "Remove the row: there is nothing to prefer."
        raise RowProblem("rejected", "has the same tokens as chosen", value=lengths, fix=fix)
    fix = "Raise max_length or max_completion_length, or remove the row."
    raise RowProblem("rejected", f"is the same as chosen once both are cut: {lengths}", value=limits, fix=fix)
