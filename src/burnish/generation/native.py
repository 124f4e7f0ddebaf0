"""The engine in this process: a short loop over the model's own forward.

Each prompt is run once. Its answers grow by one token a step, in buffers that are written in place; rows that have
ended leave, and rows that wait take their places. The model's own generation defaults are never read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import torch

from burnish.generation.answers import Answers
from burnish.generation.base import Prompt, SamplingParams
from burnish.generation.batch import Batch
from burnish.generation.cache import CACHES, Room
from burnish.generation.decode import check_cache
from burnish.generation.sampling import streams
from burnish.generation.stopping import StopStrings
from burnish.models.introspect import UnsupportedModelError, evaluation_mode
from burnish.types import Completion

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AUTO = "auto"
CHOICES = (AUTO, *CACHES)
ORDER = ("rows", "dynamic")  # what `auto` tries, the fastest first


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
        max_rows: answers that are decoded at the same time; the others of a round wait for a place.
        max_batch_tokens: bounds the memory of keys and values: rows that are decoded at the same time, times prompt
            and answer of the longest, is at most this; buffers that rows join have up to 64 columns more. None: no
            bound. A single row is always decoded.
        cache: where keys and values live: a name of `CACHES`, or auto for the fastest that is exact for the model.

    Attributes:
        description: how it decodes, in a sentence; known after the first answer.
        fell_back: a faster cache is not exact for this model; the description says why.

    Raises:
        ValueError: a bound below 1, or an unknown cache.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        pad_token_id: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_rows: int = 64,
        max_batch_tokens: int | None = None,
        cache: str = AUTO,
    ) -> None:
        for name, value in (("max_rows", max_rows), ("max_batch_tokens", max_batch_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"NativeGenerator: {name}={value}; allowed: 1 or more.")
        if cache not in CHOICES:
            raise ValueError(f"NativeGenerator: cache={cache!r}; allowed: {', '.join(CHOICES)}.")
        self.pad_token_id, self.tokenizer = pad_token_id, tokenizer
        self.max_rows, self.max_batch_tokens, self.cache = max_rows, max_batch_tokens, cache
        self.description, self.fell_back = "no cache: no answer has been drawn yet", False
        self._kind, self._checked = "", cast("type | None", None)
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
                self._choose_cache()
            for rows, room in self._batches(prompts, params, num_samples):
                keys = [prompts[row.prompt].key for row in rows]
                noise = streams(seed, round_index, keys, [row.sample for row in rows])
                answers = self._answer([prompts[row.prompt] for row in rows], noise.to(self.model.device), params, room)
                found.update(zip(rows, answers, strict=True))
        return [found[Row(prompt, sample)] for prompt in range(len(prompts)) for sample in range(num_samples)]

    def _answer(self, prompts: list[Prompt], noise: Tensor, params: SamplingParams, room: Room) -> list[Completion]:
        """An answer to each of `prompts` (N), where a prompt stands once for each of its answers, with `noise` (N,)."""
        stops = None
        if params.stop_strings and self.tokenizer is not None:
            stops = StopStrings(self.tokenizer, params.stop_strings)
        dtype = torch.promote_types(self.model.dtype, torch.float32)
        answers = Answers(len(prompts), params, stops=stops, dtype=dtype, device=noise.device)
        Batch(
            self.model,
            prompts,
            noise,
            params,
            cache=CACHES[self._kind](self.model.config, room),
            answers=answers,
            num_rows=room.num_rows,
            pad_token_id=self.pad_token_id,
        ).run()
        return answers.completions(prompts, version=self.version)

    def _choose_cache(self) -> None:
        """Find the fastest cache with which this model decodes exactly, and say why it is none that is faster.

        Raises:
            UnsupportedModelError: there is none, or the one that was asked for is not exact.
        """
        kinds = ORDER if self.cache == AUTO else (self.cache,)
        reasons: list[str] = []
        for kind in kinds:
            try:
                check_cache(self.model, kind)
            except UnsupportedModelError as error:
                if kind == kinds[-1]:
                    raise
                reasons.append(f"not {kind}: {error}")
            else:
                self._kind, self._checked = kind, type(self.model)
                self.description = "; ".join([f"cache {kind}: {CACHES[kind].sentence}", *reasons])
                self.fell_back = bool(reasons)
                return

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

    def _batches(
        self, prompts: Sequence[Prompt], params: SamplingParams, num_samples: int
    ) -> Iterator[tuple[list[Row], Room]]:
        """All rows, short prompts first, and what their cache has to hold."""
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number].ids))
        rows = [Row(number, sample) for number in order for sample in range(num_samples)]
        lengths = [len(prompts[row.prompt].ids) for row in rows]
        most_tokens = self.max_batch_tokens or sys.maxsize
        fitting = [max(1, min(self.max_rows, most_tokens // (length + params.max_new_tokens))) for length in lengths]
        start = 0
        while start < len(rows):
            stop = _end_of_batch(fitting, start, takes_more=CACHES[self._kind].takes_more)
            num_rows = min(fitting[stop - 1], stop - start)
            yield (
                rows[start:stop],
                Room(
                    num_rows=num_rows,
                    longest_prompt=lengths[stop - 1],
                    max_new_tokens=params.max_new_tokens,
                    refills=stop - start > num_rows,
                ),
            )
            start = stop


def _end_of_batch(fitting: Sequence[int], start: int, *, takes_more: bool) -> int:
    """Where the batch ends that begins at row `start`.

    Args:
        fitting: of each row, how many like it fit together; falling.
        start: of the batch.
        takes_more: rows may wait; then it goes on until only half as many fit as at its beginning.
    """
    if takes_more:
        return next((row for row in range(start, len(fitting)) if 2 * fitting[row] <= fitting[start]), len(fitting))
    stop = start + 1
    while stop < len(fitting) and stop - start < fitting[stop]:
        stop += 1
    return stop
