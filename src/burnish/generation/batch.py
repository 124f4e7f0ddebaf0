"""Rows of a round that are decoded together: some wait, the others grow by a token a step, and leave when they end."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from burnish.generation.answers import Answers
from burnish.generation.base import Prompt, SamplingParams
from burnish.generation.cache import Prefill, RowCache
from burnish.generation.decode import left_padded, next_logits, prefill, tokens_in
from burnish.generation.sampling import Sampler

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

PREFILL_TOKENS = 2048  # prompts run together while they have at most so many tokens, padding included


class Batch:
    """Draws an answer to each of `prompts` (N), where a prompt stands once for each of its answers, in a row.

    Args:
        model: in evaluation mode.
        prompts: of the rows; each is run once.
        noise: (N,) the states of the rows' random numbers.
        params: the distribution, and where answers end.
        cache: of the rows that are decoded.
        answers: takes what is drawn.
        num_rows: most rows that are decoded at the same time.
        pad_token_id: fills short prompts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        noise: Tensor,
        params: SamplingParams,
        *,
        cache: RowCache,
        answers: Answers,
        num_rows: int,
        pad_token_id: int,
    ) -> None:
        self.model, self.prompts, self.noise, self.cache, self.answers = model, prompts, noise, cache, answers
        self.num_rows, self.pad_token_id = num_rows, pad_token_id
        self.sampler = Sampler(params)
        self.counts_tokens = params.repetition_penalty != 1.0
        self.waiting = deque(range(len(prompts)))
        self._ready: tuple[Prefill, dict[Prompt, int], Tensor | None] | None = None  # prompts that have been run
        self.rows = torch.zeros(
            0, dtype=torch.int64, device=noise.device
        )  # (R,) that are decoded, as the cache has them
        self.tokens = self.rows  # (R,) the last token of each, which the model has not seen
        self.seen: Tensor | None = None  # (R, V) tokens of prompt and answer, if there is a repetition penalty

    def run(self) -> None:
        """Draw until every row has ended."""
        while self.waiting or len(self.rows):
            while self.waiting and len(self.rows) < self.num_rows and (self.cache.takes_more or not len(self.rows)):
                self._admit()
            if len(self.rows):
                self._step()

    def _step(self) -> None:
        """One more token for every row."""
        logits = next_logits(self.model, self.tokens, self.cache)
        self.tokens, has_ended = self._draw(logits, self.rows, self.seen)
        if bool(has_ended.any()):
            order = self.cache.keep((~has_ended).nonzero().squeeze(1))
            self.rows, self.tokens = self.rows[order], self.tokens[order]
            self.seen = None if self.seen is None else self.seen[order]
        self.seen = _with_tokens(self.seen, self.tokens)

    def _admit(self) -> None:
        """Draw the first tokens of waiting rows from the logits of their prompts; those that go on join the others."""
        prompts, numbers, seen = self._prompts_of_next()
        taken: list[int] = []
        while self.waiting and len(self.rows) + len(taken) < self.num_rows and self._next_prompt() in numbers:
            taken.append(self.waiting.popleft())
        source = torch.tensor([numbers[self.prompts[row]] for row in taken], device=self.noise.device)
        rows = torch.tensor(taken, device=self.noise.device)
        seen = None if seen is None else seen[source]
        tokens, has_ended = self._draw(prompts.logits[source], rows, seen)
        going = (~has_ended).nonzero().squeeze(1)
        if not len(going):
            return
        self.cache.admit(prompts, source[going].tolist())
        self.rows = torch.cat([self.rows, rows[going]])
        self.tokens = torch.cat([self.tokens, tokens[going]])
        if seen is not None:
            seen = _with_tokens(seen[going], tokens[going])
            self.seen = seen if self.seen is None or seen is None else torch.cat([self.seen, seen])

    def _draw(self, logits: Tensor, rows: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """The next token of some rows, and which of them end with it."""
        draw = self.sampler.draw(logits, self.noise[rows], self.answers.drawn[rows], seen)
        return draw.tokens, self.answers.write(draw, rows)

    def _prompts_of_next(self) -> tuple[Prefill, dict[Prompt, int], Tensor | None]:
        """Prompts that have been run, with their places; the next row's is among them. Several are run together."""
        if self._ready is not None and self._next_prompt() in self._ready[1]:
            return self._ready
        self._ready = None
        most = PREFILL_TOKENS if self.cache.takes_more else None
        upcoming = list(dict.fromkeys(self.prompts[row] for row in list(self.waiting)[: self.num_rows]))
        longest, count = 0, 0
        for prompt in upcoming:
            longest = max(longest, len(prompt.ids))
            if count and most is not None and (count + 1) * longest > most:
                break
            count += 1
        chosen = upcoming[:count]
        padded = left_padded([prompt.ids for prompt in chosen], self.pad_token_id)
        ids, mask = (tensor.to(self.noise.device) for tensor in padded)
        found = prefill(self.model, ids, mask)
        seen = tokens_in(ids, mask, found.logits.shape[1]) if self.counts_tokens else None
        self._ready = found, {prompt: number for number, prompt in enumerate(chosen)}, seen
        return self._ready

    def _next_prompt(self) -> Prompt:
        return self.prompts[self.waiting[0]]


def _with_tokens(seen: Tensor | None, tokens: Tensor) -> Tensor | None:
    return None if seen is None else seen.scatter(1, tokens[:, None], True)
