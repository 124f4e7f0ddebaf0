"""Sequence classifiers as rewards: their own tokenizer and chat template, a prompt computed once for all its answers.

The text of a row is its prompt and answer, by the classifier's chat template if they are messages. What is longer
than the classifier can read loses tokens at its beginning, since the answer is at its end, and is counted.

A classifier with a head `score` on a causal trunk runs in the layouts of `models.sharing`, and any other in plain rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from burnish.models.adapter_files import is_adapter_directory
from burnish.models.head_layer import UnsupportedModelError
from burnish.models.load import load_tokenizer, with_dtype
from burnish.models.sharing import Sharing
from burnish.models.value import choose_values, load_value_model, row_scores, values_of
from burnish.models.vision import tokenizer_of
from burnish.rewards.batching import batches, groups_of, token_batch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.get_logger(__name__)
HEADS = ("score", "classifier", "classification_head")
NO_LIMIT = 10**6  # tokenizers without a limit have a larger one


def is_model(choice: object) -> bool:
    """A module, or a text that is the name of no reward of the table but looks like one of a model: it has a slash."""
    return isinstance(choice, torch.nn.Module) or (isinstance(choice, str) and ("/" in choice or Path(choice).is_dir()))


class ClassifierReward:
    """A reward function that is a sequence classifier with one label.

    Args:
        model: the classifier, or the name or path of one, or of a saved adapter of one with its head.
        processing_class: its tokenizer; by default the one that lies beside it.
        init_kwargs: for `from_pretrained`.

    Raises:
        TypeError: no transformers model.
        ValueError: not exactly one label, or a classifier whose head was never trained.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        init_kwargs: dict[str, Any] | None = None,
    ) -> None:
        from transformers import PreTrainedModel

        place = os.fspath(model) if isinstance(model, str | os.PathLike) else ""
        if isinstance(model, str | os.PathLike):
            model = _load(place, init_kwargs or {})
        if not isinstance(model, PreTrainedModel):
            raise TypeError(f"a reward model is a transformers model or its name; {type(model).__name__} is none")
        place = place or str(model.config._name_or_path)
        self.name = Path(place).name or type(model).__name__
        if model.config.num_labels != 1:
            raise ValueError(
                f"the reward model {self.name!r} has {model.config.num_labels} labels; a reward is one number, "
                "so it has to be a sequence classifier with num_labels=1"
            )
        if processing_class is None and not place:
            raise ValueError(f"the reward model {self.name!r} is in memory only: pass reward_processing_classes")
        self.tokenizer: Any = processing_class or load_tokenizer(place)
        self.model: PreTrainedModel = model.eval().requires_grad_(False)
        self.moments = RunningMoments()
        self._sharings: dict[str, Sharing] = {}
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model.config.pad_token_id = self.tokenizer.pad_token_id

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_metric: Callable[[str, float], None] | None = None,
        *,
        max_length: int | None = None,
        max_tokens: int = 16_384,
        normalize: bool = False,
        append_eos: bool = False,
        prefix_sharing: str = "auto",
    ) -> list[float]:
        """The classifier's logit of each answer.

        Args:
            prompts: texts or messages.
            completions: the answers.
            log_metric: gets the share of rows that were cut.
            max_length: tokens of a row; by default what tokenizer and model say.
            max_tokens: that one forward runs over, padding included where there is any; a single row may be longer.
            normalize: subtract the running mean, and divide by the running standard deviation, of past rounds.
            append_eos: end plain texts with the end-of-sequence token, as they are in the training of reward models.
            prefix_sharing: how a prompt with several answers is run: `auto`, `tree`, `cache`, or `off` for plain rows.
        """
        limit = max_length or self._limit()
        pairs = zip(prompts, completions, strict=True)
        rows = [self._encode(prompt, answer, append_eos=append_eos) for prompt, answer in pairs]
        if log_metric is not None and rows:
            log_metric(f"reward_truncated/{self.name}", sum(len(ids) > limit for ids in rows) / len(rows))
        owners = [None if len(ids) > limit else str(p) for ids, p in zip(rows, prompts, strict=True)]
        rows = [self._cut(ids, limit) for ids in rows]
        scores = self._score(rows, owners, max_tokens=max_tokens, sharing=self.sharing(prefix_sharing))
        self.moments.collect(scores)
        return (self.moments.normalize(scores) if normalize else scores).tolist()

    def sharing(self, wanted: str = "auto") -> Sharing:
        """How a prompt with several answers is run: found out once, and said if it is not the fastest way.

        Raises:
            ValueError: another word than `SHARING` has, or a layout that this classifier cannot take.
        """
        if wanted not in self._sharings:
            try:
                found = choose_values(self.model, prefix_sharing=wanted)
            except UnsupportedModelError as error:
                if wanted not in ("auto", "off"):
                    raise
                found = Sharing("rows", f"{str(error).split(':')[0]}.")
            if found.reason and wanted != "off":
                logger.warning(f"The reward model {self.name!r}: {found.line()}")
            self._sharings[wanted] = found
        return self._sharings[wanted]

    @torch.no_grad()
    def _score(
        self, rows: Sequence[list[int]], prompts: Sequence[str | None], *, max_tokens: int, sharing: Sharing
    ) -> Float[Tensor, "N"]:
        """The score of each row in the order of the rows, (N,) float64; `prompts` as in `groups_of`."""
        is_plain = sharing.layout == "rows"
        rows = [ids if is_plain else self._until_padding(ids) for ids in rows]
        groups = groups_of(rows, [None] * len(rows) if is_plain else prompts)
        scores = torch.zeros(len(rows), dtype=torch.float64)
        for batch in batches(groups, max_tokens, layout=sharing.layout):
            members = [row for group in batch for row in group.rows]
            if is_plain or (sharing.layout == "cache" and len(batch) == len(members)):  # nothing is shared
                scores[members] = self._forward([rows[row] for row in members])
                continue
            parcel = token_batch(rows, batch, pad_token_id=self.tokenizer.pad_token_id, device=self.model.device)
            scores[members] = row_scores(values_of(self.model, parcel, sharing), parcel).double().cpu()
        return scores

    def _limit(self) -> int:
        limits = [
            self.tokenizer.model_max_length,
            self.model.config.to_dict().get("max_position_embeddings") or NO_LIMIT,
        ]
        return int(min(limits))

    def _encode(self, prompt: Any, completion: Any, *, append_eos: bool) -> list[int]:
        if isinstance(prompt, str):
            text = prompt + (completion if isinstance(completion, str) else completion[-1]["content"])
            ids = self.tokenizer(text, verbose=False)["input_ids"]
            is_open = append_eos and ids[-1:] != [self.tokenizer.eos_token_id]
            return [*ids, self.tokenizer.eos_token_id] if is_open else ids
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"the prompts are messages, and the tokenizer of the reward model {self.name!r} has no chat template: "
                "set its chat_template and pass it as reward_processing_classes"
            )
        text = self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _cut(self, ids: list[int], limit: int) -> list[int]:
        """The last tokens, behind the special one that the row begins with."""
        if len(ids) <= limit:
            return ids
        first = ids[:1] if ids[0] in self.tokenizer.all_special_ids else []
        return first + ids[len(ids) - limit + len(first) :]

    def _until_padding(self, ids: list[int]) -> list[int]:
        """The classifiers of transformers read the last token that is not padding, or else the first one."""
        pad = int(self.tokenizer.pad_token_id)
        end = next((place for place in range(len(ids), 0, -1) if ids[place - 1] != pad), 0)
        return ids[:end] or [pad]

    def _forward(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "N"]:
        """What the plain class says of rows padded on the right."""
        width = max(1, *(len(ids) for ids in rows)) if rows else 1
        pad = int(self.tokenizer.pad_token_id)
        device = self.model.device
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)  # (N, T)
        lengths = torch.tensor([max(len(row), 1) for row in rows], device=device)
        mask = (torch.arange(width, device=device) < lengths[:, None]).long()
        logits = self.model(input_ids=ids, attention_mask=mask).logits  # (N, 1)
        return logits[:, 0].double().cpu()

    def to(self, device: torch.device | str) -> None:
        """Move the classifier."""
        self.model.to(device)  # pyright: ignore[reportArgumentType]
        self._sharings.clear()  # a layout that is right on one device may not be on another


class RunningMoments:
    """Mean and standard deviation of all scores of past rounds; frozen within a round, in the checkpoint."""

    def __init__(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64)  # count, sum, sum of squares
        self._collected = torch.zeros(3, dtype=torch.float64)

    def collect(self, scores: Tensor) -> None:
        """Add the running round's scores; they count from the next round on."""
        self._collected = self._collected + torch.stack(
            [torch.tensor(float(len(scores))), scores.sum(), (scores**2).sum()]
        )

    def normalize(self, scores: Tensor) -> Tensor:
        """(scores - mean) / standard deviation; as they are before two scores are known."""
        count, total, squares = self._sums.tolist()
        if count < 2:
            return scores
        mean = total / count
        variance = max(squares / count - mean**2, 0) * count / (count - 1)
        return (scores - mean) / (variance**0.5 + 1e-8)

    def update(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """End the round. `reduce` sums over all ranks."""
        self._sums = self._sums + reduce(self._collected)
        self._collected = torch.zeros_like(self._collected)

    def state_dict(self) -> dict[str, Any]:
        """Count, sum and sum of squares of past rounds and of the running one."""
        return {"sums": self._sums.tolist(), "collected": self._collected.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._sums = torch.tensor(state["sums"], dtype=torch.float64)
        self._collected = torch.tensor(state["collected"], dtype=torch.float64)


def _load(name: str, init_kwargs: dict[str, Any]) -> PreTrainedModel:
    """The classifier of a name or path; an adapter merged into it.

    Raises:
        ValueError: no classifier, or one whose head was never trained.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if is_adapter_directory(name):
        adapted: Any = load_value_model(name, tokenizer=tokenizer_of(load_tokenizer(name)), init_kwargs=init_kwargs)
        return adapted.merge_and_unload()
    config = AutoConfig.from_pretrained(name)
    kinds = config.architectures or []
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ValueError(
            f"the reward model {name!r} is {', '.join(kinds) or 'of no known kind'}; it has to be a sequence "
            "classifier (…ForSequenceClassification), or its head would be random"
        )
    kwargs: Any = {"output_loading_info": True, **with_dtype(init_kwargs)}
    model, loading = AutoModelForSequenceClassification.from_pretrained(name, **kwargs)
    if missing := [key for key in loading["missing_keys"] if key.split(".")[0] in HEADS]:
        raise ValueError(f"the reward model {name!r} comes without the weights {missing}: its scores would be random")
    return model
