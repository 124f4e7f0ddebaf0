"""What a generator is: prompts and sampling parameters in, completions with their log-probs out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from burnish.types import Completion

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor, nn

MIN_TEMPERATURE = 1e-4


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """The distribution that answers are drawn from, and where they end.

    The filters apply one after the other, each to what the one before it kept: repetition penalty, the ban on end
    tokens before `min_new_tokens`, temperature, top-k, top-p, min-p. Tokens that tie with the last one kept are kept.

    Attributes:
        max_new_tokens: an answer is cut after so many.
        temperature: the logits are divided by it; 0 takes the likeliest token, whatever the filters say.
        top_k: only the k likeliest tokens; 0 or None: off.
        top_p: only the likeliest tokens that together have this probability; 1: off.
        min_p: only tokens with at least this share of the likeliest one's probability; 0 or None: off.
        repetition_penalty: logits of tokens of the prompt or the answer so far are divided by it if positive, and
            multiplied by it if negative; 1: off. Log-probs are then those of the penalised distribution.
        end_token_ids: each of them ends an answer, and is its last token.
        stop_strings: an answer ends with the token that completes one of them in its text.
        min_new_tokens: end tokens are not drawn, and stop strings do not count, before so many.

    Raises:
        ValueError: a number out of its range, or an empty stop string.
        TypeError: `stop_strings` is a string.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = 0
    top_p: float = 1.0
    min_p: float | None = 0.0
    repetition_penalty: float = 1.0
    end_token_ids: tuple[int, ...]
    stop_strings: tuple[str, ...] = ()
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        allowed = {
            "max_new_tokens": (self.max_new_tokens >= 1, "an integer of 1 or more"),
            "temperature": (
                self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < math.inf,
                f"0 for the likeliest token, or {MIN_TEMPERATURE} and more",
            ),
            "top_k": ((self.top_k or 0) >= 0, "0 or None to switch it off, or the number of tokens to keep"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1, which switches it off"),
            "min_p": (0 <= (self.min_p or 0) <= 1, "0 or None to switch it off, or a share of at most 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0; 1 switches it off"),
            "min_new_tokens": (
                0 <= self.min_new_tokens <= self.max_new_tokens,
                f"from 0 to max_new_tokens={self.max_new_tokens}",
            ),
        }
        for name, (is_allowed, sentence) in allowed.items():
            if not is_allowed:
                raise ValueError(f"SamplingParams: {name}={vars(self)[name]!r}; allowed: {sentence}.")
        if isinstance(self.stop_strings, str):
            raise TypeError(f"SamplingParams: stop_strings={self.stop_strings!r}; write ({self.stop_strings!r},).")
        if "" in self.stop_strings:
            raise ValueError("SamplingParams: stop_strings holds an empty string, which is in every text; remove it.")

    @property
    def is_greedy(self) -> bool:
        """The likeliest token is taken, and nothing is drawn."""
        return self.temperature == 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """A prompt to be answered.

    Attributes:
        ids: (l,) its token ids, without padding, on the CPU.
        key: what the randomness of its answers hangs on: the row of the data set, so that the answers do not depend
            on the other prompts of a round, on their order, or on the number of processes.
        extra: opaque inputs beside the text (images), for generators that take them.

    Raises:
        ValueError: no token, or ids that are no vector of integers.
    """

    ids: Int[Tensor, "l"]
    key: int
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        is_vector = self.ids.dim() == 1 and not self.ids.is_floating_point() and self.ids.dtype != torch.bool
        if not is_vector or len(self.ids) == 0:
            raise ValueError(
                f"the prompt of row {self.key} is a {self.ids.dtype} tensor of shape {tuple(self.ids.shape)}; allowed: "
                "a vector of one or more token ids. An empty prompt needs at least a beginning-of-sequence token."
            )


class Generator(Protocol):
    """Whatever answers prompts: the model in this process, a server, an environment around another generator."""

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, *, num_samples: int, seed: int, round_index: int
    ) -> list[Completion]:
        """Answer every prompt `num_samples` times.

        Args:
            prompts: the prompts of this process.
            params: the distribution to draw from, and where answers end.
            num_samples: answers to each prompt.
            seed: of the run.
            round_index: of the round; with seed, key of the prompt and number of the sample it keys the randomness,
                so that a round can be made again, and no two are alike.

        Returns:
            len(prompts) * num_samples completions: all answers of the first prompt, then all of the second, …
        """
        ...

    def update_policy(self, model: nn.Module, *, version: int) -> None:
        """Answer with these weights from now on; `version` is the `policy_version` of what follows."""
        ...
