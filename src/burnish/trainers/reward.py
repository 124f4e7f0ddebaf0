"""Reward models: a scalar head on a causal model's trunk, trained on preferences, rankings or scores.

    rows -> PreferenceBatch -> score -> PairScores -> reward_loss -> division

The score of an answer is the head's value after its last token: the text is that of the chat template, to its end, so
that whoever applies the template to a conversation gets the tokens that were trained.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from burnish.compat import UNBUILT_REWARD, accept_trl_fields
from burnish.data.errors import DataError
from burnish.data.numbers import SCORE_COLUMNS
from burnish.losses.reward import reward_losses
from burnish.models.adapters import plain_model
from burnish.models.introspect import end_token_ids
from burnish.models.load import load_end_token_ids
from burnish.models.value import install_values, load_value_model, row_scores, token_values, train_head
from burnish.trainers.base import PolicyTrainer, init_kwargs_of
from burnish.trainers.config import PolicyConfig, arg
from burnish.trainers.pair_losses import check_losses
from burnish.trainers.reward_losses import bind_losses
from burnish.trainers.reward_metrics import reward_metrics
from burnish.trainers.selfcheck import check_scores
from burnish.types import LossOutput, PairScores, PreferenceBatch, Term

if TYPE_CHECKING:
    from pathlib import Path

    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

    from burnish.models.sharing import Sharing


@accept_trl_fields(UNBUILT_REWARD)
@dataclass
class RewardConfig(PolicyConfig):
    """Options of `RewardTrainer`, on top of `PolicyConfig`."""

    learning_rate: float = arg(1e-4, "Peak learning rate.")
    truncation_mode: str = arg(
        "keep_end", "What a cut keeps: keep_end cuts the prompt's start, keep_start the answer's end."
    )
    loss_type: Any = arg(["bradley_terry"], "Name of a reward loss, a callable, or a list of them.")
    loss_weights: list[float] | None = arg(None, "Factor of each loss in the sum; 1 each if unset.")
    loss_kwargs: dict[str, Any] | None = arg(None, "Hyper-parameters of the losses that are no options of their own.")
    label_smoothing: float = arg(0.0, "Probability that a preference label is wrong, in [0, 0.5).")
    margin_from_scores: bool = arg(
        False, "Rows with scores and without a margin: chosen must lead by the difference of the scores."
    )
    center_rewards_coefficient: float | None = arg(
        None, "Add the squared sum of a pair's scores with this factor, so that scores stay near 0; 0.01 say."
    )
    head_init: str = arg("normal", "How a fresh head begins: normal, of standard deviation 1 / sqrt(H + 1), or zeros.")
    pad_token: str | None = arg(
        None, "Padding token, which must end no text. Unset: the tokenizer's, or a spare special token."
    )

    keeps_template_end = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.loss_type = list(self.loss_type) if isinstance(self.loss_type, list | tuple) else [self.loss_type]
        check_losses(self.loss_type, self.loss_weights)


class RewardTrainer(PolicyTrainer):
    """Trains a reward model.

    Arguments as in `PolicyTrainer`, and:

    Args:
        model: the name or path of a causal model, which gets a fresh head, or of a saved reward model; or such a
            model, a sequence classifier of one label. The trunk of a causal model in memory is copied.
        processing_class: its padding token is changed if it ends texts as well.
        peft_config: the head is trained and saved with the adapter.

    Source: Christiano et al. (1706.03741); for language models Ouyang et al., "InstructGPT" (2203.02155).
    """

    config_class = RewardConfig
    loss_table = reward_losses
    writes_answers = False
    args: RewardConfig

    def __init__(
        self, model: str | PreTrainedModel | PeftModel, args: RewardConfig | None = None, **kwargs: Any
    ) -> None:
        options = self.checked_args(args)
        self.losses = bind_losses(options)
        super().__init__(model, options, **kwargs)
        if "score" in self.losses.needs and self.train_dataset is not None:
            require_scores(self.train_dataset.column_names)

    def load_model(self, model: Any, options: RewardConfig, quantization_config: Any) -> PreTrainedModel | PeftModel:
        """A classifier of one label, with a padding id of its own, which the tokenizer gets too."""
        before = self.tokenizer.pad_token
        if options.pad_token is not None and options.pad_token not in self.tokenizer.get_vocab():
            raise ValueError(f"pad_token={options.pad_token!r} is no token of the tokenizer; leave it unset, or add it")
        self.tokenizer.pad_token = options.pad_token or before
        loaded = load_value_model(
            model,
            tokenizer=self.tokenizer,
            head_init=options.head_init,
            seed=options.seed,
            trust_remote_code=options.trust_remote_code,
            init_kwargs=init_kwargs_of(options),
            quantization_config=quantization_config,
        )
        padding = plain_model(loaded).config.get_text_config().pad_token_id
        self.tokenizer.pad_token = str(self.tokenizer.convert_ids_to_tokens(padding))
        if options.pad_token not in (None, self.tokenizer.pad_token):
            raise ValueError(
                f"pad_token={options.pad_token!r} ends answers, so that the plain class would read their scores one "
                f"token too early; leave it unset for {self.tokenizer.pad_token!r}"
            )
        self._padding_before = before
        return loaded

    def adapter_options(self, peft_config: Any) -> Any:
        """The head is trained beside the adapter."""
        return None if peft_config is None else train_head(peft_config)

    def install(self, model: PreTrainedModel, options: RewardConfig) -> Sharing:
        """Trunk and head score a parcel in one call of the wrapped model; a prompt is computed once for its answers."""
        return install_values(
            model,
            prefix_sharing=options.prefix_sharing,
            lean_activations=options.lean_activations,
            gradient_checkpointing=bool(options.gradient_checkpointing),
        )

    def find_end_tokens(self, given: Any, model: PreTrainedModel) -> tuple[int, ...]:
        """Those of the causal model, which a classifier that was made of it does not know."""
        if not isinstance(given, str | os.PathLike):
            return end_token_ids(plain_model(given), self.tokenizer)
        options = {"trust_remote_code": self.args.trust_remote_code, "init_kwargs": init_kwargs_of(self.args)}
        return load_end_token_ids(given, self.tokenizer, **options)

    def score(self, model: nn.Module, batch: PreferenceBatch) -> PairScores:
        """The score of every row, (N,), at least float32, in one forward; its pairs, and what the rows say of them."""
        scores = row_scores(token_values(model, batch), batch)
        margin, targets = batch.margin, batch.columns.get("score")
        return PairScores(
            scores=scores,
            pairs=batch.pairs,
            margin=None if margin is None else margin.to(scores.dtype),
            targets=None if targets is None else targets.to(scores.dtype),
        )

    def reward_loss(self, scores: PairScores) -> tuple[Term, ...]:
        """One term for each loss, unreduced, and one for `center_rewards_coefficient`."""
        return self.losses.terms(scores)

    def loss(self, model: nn.Module, batch: PreferenceBatch) -> LossOutput:
        """Terms and metrics of one micro-batch."""
        scores = self.score(model, batch)
        metrics = reward_metrics(scores, batch, sources=self.source_names)
        return LossOutput(terms=self.reward_loss(scores), metrics=metrics)

    def _open_run(self, found: Path | None) -> None:
        super()._open_run(found)
        if self._padding_before != self.tokenizer.pad_token:
            now = f"padding is {self.tokenizer.pad_token!r}, not {self._padding_before!r}"
            self.tell("padding", f"{now}: a classifier reads a text's score at its last token that is not padding")

    def describe_method(self) -> dict[str, Any]:
        """As in `PolicyTrainer`, with the losses."""
        return {**super().describe_method(), "losses": self.losses.describe()}

    def check_first_step(self, batch: PreferenceBatch) -> dict[str, Any]:
        """Score every row again by itself, with the plain class, and compare."""
        return check_scores(self, batch)


def require_scores(columns: Collection[str]) -> None:
    """Rows carry the scores that a loss is about.

    Raises:
        DataError: they do not.
    """
    if "scores" not in columns and not set(SCORE_COLUMNS) <= set(columns):
        raise DataError(
            "train: the loss is about the scores that rows carry, and these have none. Add the columns score_chosen "
            "and score_rejected, or give rows of several completions with scores; or choose loss_type bradley_terry"
        )
