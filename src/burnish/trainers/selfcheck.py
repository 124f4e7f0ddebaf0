"""Identities checked on the first micro-batch of a run, by a second and independent way to the same numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import softplus

from burnish.losses.pairing import pair_logps
from burnish.models.reference import NoReference
from burnish.models.vision import plain_inputs
from burnish.types import wide

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.trainers.dpo import DPOTrainer
    from burnish.types import PreferenceBatch, TokenBatch

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
LOG_2_TOLERANCE = 1e-3


@torch.no_grad()
def plain_logps(model: PreTrainedModel, batch: TokenBatch, row: int) -> float:
    """Summed log-prob of one row's trained tokens: no padding, no tiles, the model's own logits and log-softmax."""
    completion_mask = batch.completion_mask[row]
    completion_ids = batch.completion_ids[row][completion_mask]
    logits = model(**plain_inputs(batch, row), use_cache=False).logits[0]
    log_probs = wide(logits[-len(completion_ids) - 1 : -1]).log_softmax(-1)
    logps = log_probs.gather(1, completion_ids[:, None]).squeeze(1)
    return float(logps[batch.loss_mask[row][completion_mask]].sum())


@torch.no_grad()
def check_dpo(trainer: DPOTrainer, batch: PreferenceBatch) -> dict[str, Any]:
    """Compare a micro-batch's log-probs with `plain_logps`, and its sigmoid loss with log 2.

    Returns:
        The event: `ok`, `message`, `max_difference` in nats a token, `loss` (the mean sigmoid loss of the pairs at
        label smoothing 0, log 2 wherever the policy is its own reference), `expected`. Without a reference the loss is
        not judged.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
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
