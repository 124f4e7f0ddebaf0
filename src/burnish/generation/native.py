"""The engine in this process: a short loop over the model's own forward.

Each prompt is run once, its keys and values are repeated for all its answers, and then every row grows by one token a
step. Rows that have ended leave the batch. The model's own generation defaults are never read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from transformers import DynamicCache

from burnish.generation.answers import Answers
from burnish.generation.base import Prompt, SamplingParams
from burnish.generation.decode import LiveRows, check_cache, left_padded, next_logits, tokens_in
from burnish.generation.sampling import draw_tokens, streams, uniforms
from burnish.generation.stopping import StopStrings
from burnish.models.introspect import evaluation_mode
from burnish.types import Completion

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MIN_ENDED_SHARE = 1 / 8  # to let rows go costs one more copy of the cache, which every step makes anyway


class Row(NamedTuple):
    """An answer to be: the number of its prompt, and which of the prompt's answers it is."""

    prompt: int
    sample: int


class NativeGenerator:
    """Samples from a causal language model of transformers in this process; a `Generator`.

    Args:
        model: the model, not wrapped for training (DDP); adapters of PEFT stay on it. It answers in evaluation mode,
            under the caller's autocast, and is left in the mode in which it was.
        pad_token_id: fills short prompts on the left; nothing attends to it.
        tokenizer: for stop strings.
        max_rows: answers that are decoded at the same time; a round is cut into batches.
        max_batch_tokens: bounds the memory of keys and values: rows of a batch, times prompt and answer of its
            longest row, is at most this. None: no bound. A single row is always decoded.

    Raises:
        ValueError: a bound below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        pad_token_id: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_rows: int = 64,
        max_batch_tokens: int | None = None,
    ) -> None:
        for name, value in (("max_rows", max_rows), ("max_batch_tokens", max_batch_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"NativeGenerator: {name}={value}; allowed: 1 or more.")
        self.pad_token_id, self.tokenizer = pad_token_id, tokenizer
        self.max_rows, self.max_batch_tokens = max_rows, max_batch_tokens
        self._checked: type | None = None
        self.update_policy(model, version=0)

    def update_policy(self, model: nn.Module, *, version: int) -> None:
        """Answer with this model from now on. Its weights are not copied: they are read when it answers."""
        self.model = cast("PreTrainedModel", model)
        self.version = version

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, *, num_samples: int, seed: int, round_index: int
    ) -> list[Completion]:
        """Answer every prompt `num_samples` times; see `Generator`.

        Raises:
            ValueError: no sample, inputs beside the text, or stop strings without a tokenizer.
            UnsupportedModelError: the model does not decode through a cache.
            FloatingPointError: logits that are not finite.
        """
        self._check(prompts, params, num_samples)
        found: dict[Row, Completion] = {}
        with evaluation_mode(self.model):
            if prompts and self._checked is not type(self.model):
                check_cache(self.model)
                self._checked = type(self.model)
            for rows in self._batches(prompts, params, num_samples):
                keys = [prompts[row.prompt].key for row in rows]
                noise = streams(seed, round_index, keys, [row.sample for row in rows])
                answers = self._answer([prompts[row.prompt] for row in rows], noise, params)
                found.update(zip(rows, answers, strict=True))
        return [found[Row(prompt, sample)] for prompt in range(len(prompts)) for sample in range(num_samples)]

    def _answer(self, prompts: list[Prompt], noise: Tensor, params: SamplingParams) -> list[Completion]:
        """An answer to each of `prompts` (R), where a prompt stands once for each of its answers.

        Args:
            prompts: of the rows.
            noise: (R,) the states of their random numbers.
            params: the distribution, and where answers end.
        """
        live, logits = self._prefill(prompts, params)
        noise = noise.to(logits.device)
        stops = None
        if params.stop_strings and self.tokenizer is not None:
            stops = StopStrings(self.tokenizer, params.stop_strings)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        answers = Answers(len(prompts), params, stops=stops, dtype=dtype, device=logits.device)
        for position in range(params.max_new_tokens):
            draw = draw_tokens(
                logits, uniforms(noise[live.number], position), params, position=position, seen=live.seen
            )
            tokens, has_ended = draw.tokens, answers.write(draw, live.number, position)
            num_ended = int(has_ended.sum())
            if num_ended == len(tokens):
                break
            if num_ended >= MIN_ENDED_SHARE * len(tokens):
                staying = (~has_ended).nonzero().squeeze(1)
                live, tokens = live.select(staying), tokens[staying]
            live = live.append(tokens)
            logits = next_logits(self.model, tokens[:, None], live.mask, live.cache)
        return answers.completions(prompts, version=self.version)

    def _prefill(self, prompts: list[Prompt], params: SamplingParams) -> tuple[LiveRows, Tensor]:
        """Run each prompt once; returns a row for each answer, and the logits (R, V) of their first tokens."""
        numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        device = self.model.device
        ids, mask = (tensor.to(device) for tensor in left_padded([prompt.ids for prompt in numbers], self.pad_token_id))
        cache = DynamicCache(config=self.model.config)
        logits = next_logits(self.model, ids, mask, cache)  # (P, V)
        seen = tokens_in(ids, mask, logits.shape[1]) if params.repetition_penalty != 1.0 else None
        prompt_of = torch.tensor([numbers[prompt] for prompt in prompts], device=device)  # (R,)
        live = LiveRows(number=torch.arange(len(ids), device=device), mask=mask, seen=seen, cache=cache).select(
            prompt_of
        )
        return replace(live, number=torch.arange(len(prompts), device=device)), logits[prompt_of]

    def _check(self, prompts: Sequence[Prompt], params: SamplingParams, num_samples: int) -> None:
        """Refuse what this engine cannot do, before anything runs."""
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples}; allowed: 1 or more answers to a prompt.")
        if carrier := next((prompt for prompt in prompts if prompt.extra), None):
            raise ValueError(
                f"the prompt of row {carrier.key} comes with {', '.join(carrier.extra)}, but NativeGenerator reads "
                "text only. Fix: leave them out, or pass a generator that reads them."
            )
        if params.stop_strings and self.tokenizer is None:
            raise ValueError("stop_strings are looked for in the text of answers: pass tokenizer= to NativeGenerator.")

    def _batches(self, prompts: Sequence[Prompt], params: SamplingParams, num_samples: int) -> Iterator[list[Row]]:
        """All rows, short prompts first, so that little is padding and the last row of a batch is its longest."""
        batch: list[Row] = []
        for number in sorted(range(len(prompts)), key=lambda number: len(prompts[number].ids)):
            longest = len(prompts[number].ids) + params.max_new_tokens
            for sample in range(num_samples):
                num_tokens = (len(batch) + 1) * longest
                if batch and (len(batch) == self.max_rows or num_tokens > (self.max_batch_tokens or math.inf)):
                    yield batch
                    batch = []
                batch.append(Row(number, sample))
        if batch:
            yield batch
