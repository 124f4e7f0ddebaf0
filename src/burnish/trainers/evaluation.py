"""Evaluation: the trainer's own loss and metrics over a whole data set, as sums; every row counts once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.trainer_utils import EvalLoopOutput

from burnish.intervals import wilson
from burnish.metrics import Estimate, MetricBuffer
from burnish.runtime.distributed import sum_over_ranks
from burnish.trainers.division import counted, term_means
from burnish.trainers.host import Host

if TYPE_CHECKING:
    from torch import nn

    from burnish.types import Term, TokenBatch


class EvaluationMixin(Host):
    """An evaluation loop of sums and counts. `estimates` holds what it found."""

    def evaluation_loop(
        self,
        dataloader: Iterable[TokenBatch],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The loss and every metric over all rows of `dataloader` on all ranks, under evaluation mode.

        A loss that couples rows sees the whole data set as one step. Returns no predictions.
        """
        del description, prediction_loss_only, ignore_keys
        model = self.model_wrapped
        was_training = model.training
        model.eval()
        buffer, terms = MetricBuffer(), ()
        num_rows = torch.zeros((), device=self.args.device)
        with torch.no_grad(), self.accelerator.autocast():
            for batch in self._evaluation_parcels(model, dataloader):
                output = self.loss(model, batch)
                terms = output.terms
                buffer.add(counted({**term_means(terms, batch), **output.metrics}, batch))
                num_rows += 0 if batch.is_filler else batch.row_id.unique().numel()
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        model.train(was_training)
        estimates = _with_loss(buffer.flush(sum_over_ranks), terms)
        estimates |= self.evaluate_answers(dataloader, metric_key_prefix)
        named = {f"{metric_key_prefix}_{name}": estimate for name, estimate in estimates.items()}
        outdated = self.estimated.get(metric_key_prefix, frozenset())  # what was measured then need not be now
        self.estimates = {n: e for n, e in self.estimates.items() if n not in outdated} | named
        self.estimated = {**self.estimated, metric_key_prefix: frozenset(named)}
        self._record_evaluation(named)
        return EvalLoopOutput(
            predictions=(np.empty(0),),
            label_ids=None,
            metrics={name: estimate.mean for name, estimate in named.items()} | _ends_of_win_rate(named),
            num_samples=int(sum_over_ranks(num_rows)),
        )

    def evaluate_answers(self, dataloader: Any, prefix: str) -> dict[str, Estimate]:
        """What else is measured on the rows of an evaluation, by answering their prompts: nothing."""
        del dataloader, prefix
        return {}

    def _record_evaluation(self, estimates: dict[str, Estimate]) -> None:
        kept = {
            n: {"mean": e.mean, "weight": e.weight, "standard_error": e.standard_error} for n, e in estimates.items()
        }
        event = {"step": self.state.global_step, "estimates": kept}
        if self.run is not None:
            self.run.event("evaluation", **event)
        elif not self.is_in_train:
            self.late_evaluations.append({"kind": "evaluation", **event})

    def _evaluation_parcels(self, model: nn.Module, dataloader: Iterable[TokenBatch]) -> Iterable[TokenBatch]:
        moved = (batch.to(self.args.device) for batch in dataloader)
        return self.prepare_step(model, list(moved)) if self.couples_rows else moved


def _ends_of_win_rate(estimates: dict[str, Estimate]) -> dict[str, float]:
    """The ends of the 95 % interval of a win rate, as metrics of their own."""
    ends: dict[str, float] = {}
    for name, estimate in estimates.items():
        if name.endswith("_win_rate"):
            interval = wilson(estimate.mean, estimate.weight)
            ends |= {f"{name}/low": interval.low, f"{name}/high": interval.high}
    return ends


def _with_loss(estimates: dict[str, Estimate], terms: Sequence[Term]) -> dict[str, Estimate]:
    """Add `loss`, the weighted sum of the terms; a single term is not listed beside it."""
    nothing = Estimate.of(0.0, 0.0, 0.0)  # of a term whose units all have weight 0
    parts = [estimates.get(f"loss/{term.name}", nothing) for term in terms]
    mean = sum(term.coefficient * part.mean for term, part in zip(terms, parts, strict=True))
    if len(terms) != 1:
        return {"loss": Estimate(mean, 1.0, torch.nan), **estimates}
    rest = {name: estimate for name, estimate in estimates.items() if name != f"loss/{terms[0].name}"}
    factor = terms[0].coefficient
    return {"loss": Estimate(mean, parts[0].weight, abs(factor) * parts[0].standard_error), **rest}
