"""Identities checked on the first micro-batch of a run, by a second and independent way to the same numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import softplus

from burnish.losses.pairing import pair_logps
from burnish.models.forward import forward
from burnish.models.reference import NoReference
from burnish.models.vision import plain_inputs
from burnish.types import wide

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from burnish.trainers.base import PolicyTrainer
    from burnish.trainers.dpo import DPOTrainer
    from burnish.trainers.policy_gradient import PolicyGradientTrainer
    from burnish.trainers.reward import RewardTrainer
    from burnish.types import PreferenceBatch, RolloutBatch, TokenBatch
    from burnish.types.batch import Parcel

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
LOG_2_TOLERANCE = 1e-3
NUM_CHECKED_ROWS = 4
SCORE_ROUNDING = 0.2  # in low precision: the order of sums moves a hidden state, and so a score, by up to a fifth
SAMPLER_GAP = 0.1  # nats; bfloat16 alone makes a few hundredths


def first_groups(batch: Parcel) -> Parcel:
    """The first prompts of a micro-batch with all of their answers, at most `NUM_CHECKED_ROWS` unless one has more."""
    ends = batch.prompt_index.bincount(minlength=len(batch.prompt_ids)).cumsum(0)  # (P,)
    num_groups = max(int((ends <= NUM_CHECKED_ROWS).sum()), 1)
    return batch.take((batch.prompt_index < num_groups).nonzero()[:, 0])


@torch.no_grad()
def plain_logps(model: PreTrainedModel, batch: TokenBatch, row: int, *, temperature: float = 1.0) -> float:
    """Summed log-prob of one row's trained tokens: no padding, no tiles, the model's own logits and log-softmax."""
    completion_mask = batch.completion_mask[row]
    completion_ids = batch.completion_ids[row][completion_mask]
    logits = model(**plain_inputs(batch, row), use_cache=False).logits[0]
    log_probs = wide(logits[-len(completion_ids) - 1 : -1] / temperature).log_softmax(-1)
    logps = log_probs.gather(1, completion_ids[:, None]).squeeze(1)
    return float(logps[batch.loss_mask[row][completion_mask]].sum())


@torch.no_grad()
def check_dpo(trainer: DPOTrainer, batch: PreferenceBatch) -> dict[str, Any]:
    """Compare the log-probs of a micro-batch's first pairs with `plain_logps`, and their sigmoid loss with log 2.

    Returns:
        The event: `ok`, `message`, `max_difference` in nats a token, `loss` (the mean sigmoid loss of the pairs at
        label smoothing 0, log 2 wherever the policy is its own reference), `expected`. Without a reference the loss is
        not judged.
    """
    model, batch = trainer.accelerator.unwrap_model(trainer.model), first_groups(batch)
    was_training = model.training
    model.eval()
    with trainer.accelerator.autocast():
        stats = trainer.concatenated_forward(model, batch)
        pair = pair_logps(stats, trainer.compute_ref_log_probs(batch), batch)
        plain = [plain_logps(model, batch, row) for row in range(len(batch))]
    model.train(was_training)
    scored = stats.sequence_sum().cpu().double()  # (N,)
    differences = (scored - torch.tensor(plain, dtype=torch.float64)).abs() / stats.lengths.cpu().double().clamp(min=1)
    loss = float(softplus(-trainer.args.beta * pair.logratio_diff.cpu().double()).mean())
    low_precision = trainer.args.bf16 or trainer.args.fp16
    allowed = 5e-2 if low_precision else TOLERANCE.get(model.dtype, 5e-2)
    worst = int(differences.argmax())
    has_reference = not isinstance(trainer.reference, NoReference)
    difference, is_log_2 = float(differences[worst]), abs(loss - math.log(2)) <= LOG_2_TOLERANCE or not has_reference
    messages = []
    if not difference <= allowed:
        messages.append(
            f"the summed log-prob of an answer of row {int(batch.row_id[worst])} is {float(scored[worst]):.6g}, but "
            f"scored by itself it is {plain[worst]:.6g}: {difference:.2e} nats a token apart, allowed {allowed:.0e}. "
            "Training would be wrong: report this model."
        )
    if not is_log_2:
        messages.append(
            f"the loss before the first step is {loss:.4f}, not log 2 = {math.log(2):.4f}: the reference "
            f"({trainer.reference.description}) is not the policy. Fine if you meant another reference."
        )
    return {
        "ok": difference <= allowed and is_log_2,
        "message": " ".join(messages) or "log-probs agree with a second computation, and the loss is as expected",
        "max_difference": difference,
        "loss": loss,
        "expected": math.log(2),
    }


@torch.no_grad()
def check_logps(trainer: PolicyTrainer, batch: TokenBatch) -> dict[str, Any]:
    """Compare the log-probs of the first rows of a micro-batch with `plain_logps`.

    Returns:
        The event: `ok`, `message`, `max_difference` in nats a token.
    """
    model, batch = trainer.policy, first_groups(batch)
    was_training = model.training
    model.eval()
    rows = range(len(batch))
    with trainer.accelerator.autocast():
        stats = forward(model, batch)
        plain = [plain_logps(model, batch, row) for row in rows]
    model.train(was_training)
    scored, lengths = stats.sequence_sum().cpu().double(), stats.lengths.cpu().double().clamp(min=1)  # (N,)
    gaps = [abs(float(scored[row]) - plain[row]) / float(lengths[row]) for row in rows]
    worst = max(rows, key=lambda row: gaps[row])
    low_precision = trainer.args.bf16 or trainer.args.fp16
    allowed = 5e-2 if low_precision else TOLERANCE.get(model.dtype, 5e-2)
    message = "log-probs agree with a second computation"
    if not gaps[worst] <= allowed:
        message = (
            f"the log-probs of the answer of row {int(batch.row_id[worst])} are {gaps[worst]:.2e} nats a token away "
            f"from a second computation, allowed {allowed:.0e}. Training would be wrong: report this model."
        )
    return {"ok": gaps[worst] <= allowed, "message": message, "max_difference": gaps[worst]}


@torch.no_grad()
def check_on_policy(trainer: PolicyGradientTrainer, batch: RolloutBatch) -> dict[str, Any]:
    """Compare a micro-batch's log-probs with `plain_logps` and with the sampler's own: on the first step all agree.

    Then the ratio of policy to old policy is 1, and the KL to a copy of the policy 0.
    """
    model = trainer.policy
    was_training = model.training
    model.eval()
    with trainer.accelerator.autocast():
        stats = trainer._get_per_token_logps_and_entropies(model, batch)
    rows = [row for row in range(len(batch)) if bool(batch.loss_mask[row].any())][:NUM_CHECKED_ROWS]
    plain = [plain_logps(model, batch, row, temperature=batch.temperature) for row in rows]
    model.train(was_training)
    lengths = stats.lengths.cpu().double().clamp(min=1)
    scored = stats.sequence_sum().cpu().double()
    gaps = {row: abs(float(scored[row]) - value) / float(lengths[row]) for row, value in zip(rows, plain, strict=True)}
    low_precision = trainer.args.bf16 or trainer.args.fp16
    allowed = 5e-2 if low_precision else TOLERANCE.get(model.dtype, 5e-2)
    sampler = float(_largest(stats.logps - batch.sampler_logps, stats.mask)) if batch.sampler_logps is not None else 0.0
    messages, fine = [], "the policy gives its own answers the log-probs they were drawn with: ratio 1"
    if gaps and max(gaps.values()) > allowed:
        row = max(gaps, key=lambda index: gaps[index])
        messages.append(
            f"the log-probs of an answer to row {int(batch.row_id[row])} are {gaps[row]:.2e} nats a token away from a "
            f"second computation, allowed {allowed:.0e}: the ratio on the first step would not be 1. Report this model."
        )
    if sampler > SAMPLER_GAP and trainer.args.importance_sampling_correction:
        fine = f"the engine's log-probs are up to {sampler:.2g} nats away from the trainer's, and corrected for"
    elif sampler > SAMPLER_GAP:
        messages.append(
            f"the engine that draws answers gives a token a log-prob {sampler:.2g} nats away from the trainer's: "
            "answers come from another distribution than the one that is trained. Set "
            "importance_sampling_correction=True, or look at repetition_penalty and precision."
        )
    return {
        "ok": not messages,
        "message": " ".join(messages) or fine,
        "max_difference": max(gaps.values(), default=0.0),
        "sampler_gap": sampler,
    }


@torch.no_grad()
def check_scores(trainer: RewardTrainer, batch: PreferenceBatch) -> dict[str, Any]:
    """Compare the scores of a micro-batch's first answers with those that the plain class gives each by itself."""
    model, batch = trainer.accelerator.unwrap_model(trainer.model), first_groups(batch)
    was_training = model.training
    model.eval()
    rows = range(len(batch))
    with trainer.accelerator.autocast():
        scores = trainer.score(model, batch).scores.cpu().double()
        plain = [float(model(**plain_inputs(batch, row), use_cache=False).logits[0, 0]) for row in rows]
    model.train(was_training)
    low_precision = trainer.args.bf16 or trainer.args.fp16
    allowed = SCORE_ROUNDING if low_precision else TOLERANCE.get(model.dtype, SCORE_ROUNDING)
    gaps = [abs(float(scores[row]) - plain[row]) for row in rows]
    worst = max(rows, key=lambda row: gaps[row])
    is_right = gaps[worst] <= allowed * max(1.0, abs(plain[worst]))
    message = "scores agree with those of the plain class"
    if not is_right:
        message = (
            f"the score of an answer of row {int(batch.row_id[worst])} is {float(scores[worst]):.6g}, but the plain "
            f"class says {plain[worst]:.6g}. Training would be wrong: report this model."
        )
    return {"ok": is_right, "message": message, "max_difference": gaps[worst]}


def _largest(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values.abs(), torch.zeros_like(values)).max()
