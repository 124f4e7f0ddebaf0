"""The engine in this process: a short loop over the model's own forward.

Each prompt is run once. Its answers grow by one token a step, in buffers that are written in place; rows that have
ended leave, and rows that wait take their places. The model's own generation defaults are never read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple, cast

import torch

from burnish.generation.answers import Answers
from burnish.generation.base import Prompt, SamplingParams
from burnish.generation.batch import Batch
from burnish.generation.cache import Room, RowCache
from burnish.generation.decode import check_cache, problem_with
from burnish.generation.kinds import CACHES
from burnish.generation.packing import packed_linears
from burnish.generation.sampling import streams
from burnish.generation.stopping import StopStrings
from burnish.models.introspect import evaluation_mode, own_forward
from burnish.types import Completion

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AUTO = "auto"
CHOICES = {"cache": (AUTO, *CACHES), "packing": (AUTO, "on", "off"), "dtype": (AUTO, "bfloat16", "float32")}
MIN_STEPS = 48  # for copies of the weights to pay


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
        packing: on, off, or auto: whether linear layers multiply from copies of their weights in an order for a few
            rows, made once for each batch; auto where there are steps enough to pay for it. On the CPU.
        dtype: the precision of answers: bfloat16, float32, or auto for that of the caller. Another one than the policy
            is trained in is another distribution, which the trainer has to correct for.

    Attributes:
        description: how it decodes, in a sentence; known after the first answer.

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
        packing: str = AUTO,
        dtype: str = AUTO,
    ) -> None:
        for name, value in (("max_rows", max_rows), ("max_batch_tokens", max_batch_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"NativeGenerator: {name}={value}; allowed: 1 or more.")
        for name, value in (("cache", cache), ("packing", packing), ("dtype", dtype)):
            if value not in CHOICES[name]:
                raise ValueError(f"NativeGenerator: {name}={value!r}; allowed: {', '.join(CHOICES[name])}.")
        self.pad_token_id, self.tokenizer = pad_token_id, tokenizer
        self.max_rows, self.max_batch_tokens = max_rows, max_batch_tokens
        self.cache, self.packing, self.dtype = cache, packing, dtype
        self.description = "no cache: no answer has been drawn yet"
        self._kinds, self._reasons = list[str](), list[str]()
        self._checked: type | None = None
        self.update_policy(model, version=0)

    @property
    def fell_back(self) -> bool:
        """A faster cache is not exact for this model; the description says why."""
        return bool(self._reasons)

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
        with evaluation_mode(self.model), own_forward(self.model), self._precision():
            if prompts and self._checked is not type(self.model):
                self._find_caches()
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
        batch = Batch(
            self.model,
            prompts,
            noise,
            params,
            cache=self._make_cache(room),
            answers=answers,
            num_rows=room.num_rows,
            pad_token_id=self.pad_token_id,
        )
        with self._packed(room.num_rows, num_steps=params.max_new_tokens * len(prompts) // room.num_rows):
            batch.run()
        return answers.completions(prompts, version=self.version)

    def _precision(self) -> AbstractContextManager[object]:
        """The precision of answers; bfloat16 is that of autocast, which casts each weight once while this is open."""
        device = self.model.device.type
        if self.dtype == AUTO:
            return nullcontext()
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16")

    @contextmanager
    def _packed(self, num_rows: int, *, num_steps: int) -> Iterator[None]:
        """Linear layers multiply from packed weights, if that pays for so many steps of so many rows."""
        pays = self.packing == "on" or (self.packing == AUTO and num_steps >= MIN_STEPS)
        if not pays or self.model.device.type != "cpu":
            yield
            return
        with packed_linears(self.model, num_rows) as count:
            self.description += f"; {count} linear layers read packed copies of their weights"
            yield

    def _find_caches(self) -> None:
        """Find out with which caches this model decodes exactly, the fastest first, and why not with others.

        Raises:
            UnsupportedModelError: there is none, or the one that was asked for is not exact.
        """
        self._kinds, self._reasons = [], []
        wanted = list(CACHES) if self.cache == AUTO else [self.cache]
        for kind in wanted:
            if self._kinds and CACHES[kind].is_last_resort:
                break
            if problem := problem_with(self.model, kind):
                self._reasons.append(f"not {kind}: {problem}")
            else:
                self._kinds.append(kind)
        if not self._kinds:
            check_cache(self.model, wanted[-1])
        self._checked = type(self.model)

    def _make_cache(self, room: Room) -> RowCache:
        """The fastest cache for a batch, of those that are exact."""
        *faster, general = self._kinds
        pays = (kind for kind in faster if CACHES[kind].pays(self.model.config, room))
        kind = next(pays, general)
        self.description = "; ".join([f"cache {kind}: {CACHES[kind].sentence}", *self._reasons])
        return CACHES[kind](self.model.config, room)

    def _check(self, prompts: Sequence[Prompt], params: SamplingParams, num_samples: int) -> None:
        """Refuse what this engine cannot do, before anything runs."""
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples}; allowed: 1 or more answers to a prompt.")
        if carrier := next((prompt for prompt in prompts if prompt.extra), None):
            raise ValueError(
                f"the prompt of row {carrier.key} comes with {', '.join(carrier.extra)}, but NativeGenerator reads "
                "text only. Fix: leave them out, or pass a generator that reads them."
            )
        if self.dtype != AUTO and self.model.dtype != torch.float32:
            raise ValueError(
                f"NativeGenerator: dtype={self.dtype!r}, but the weights are {self.model.dtype}; allowed: auto. "
                "Another precision is for policies whose weights are float32."
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
            stop = _end_of_batch(fitting, start, takes_more=CACHES[self._kinds[-1]].takes_more)
            num_rows = min(fitting[stop - 1], stop - start)
            yield (
                rows[start:stop],
                Room(
                    num_rows=num_rows,
                    longest_prompt=lengths[stop - 1],
                    rows_per_prompt=num_samples,
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
