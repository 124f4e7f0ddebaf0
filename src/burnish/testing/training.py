"""The laws of trainers: what must not change a gradient, and what must survive a stop."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from burnish.models.forward import forward
from burnish.testing.contract import Law
from burnish.testing.processes import gradient_of_processes
from burnish.testing.trials import (
    Case,
    StopAfter,
    Trial,
    change_parcels,
    first_step,
    garbled,
    relative_distance,
    reversed_rows,
    step_gradients,
    weights_of,
)

TOLERANCE = 1e-5  # of gradients in float64; what a rollout keeps is rounded to float32
STEP = 1e-4  # along the gradient, as a share of its length
OPPOSITE = -0.5  # the cosine from which on two directions are opposite ones
FULL = 4  # rows of the case that stops, processes and log lines are tried on
LARGE = 4.0  # weights are multiplied by it for log-probs of -100 and less


def _gradient(trainer: Any) -> torch.Tensor:
    return step_gradients(trainer)[0]


def _differ(found: torch.Tensor, expected: torch.Tensor, *, when: str) -> str:
    distance = relative_distance(found, expected)
    return "" if distance < TOLERANCE else f"the gradient moves by {distance:.2g} of its length {when}"


def _runs(trial: Trial, case: Case) -> str:
    trainer = trial.make(case)
    gradient = _gradient(trainer)
    if not bool(gradient.isfinite().all()):
        return "the gradient is not finite"
    return "" if bool(gradient.any()) else "the gradient is 0: no term depends on the policy. Is something detached?"


def _padding(trial: Trial, case: Case) -> str:
    clean = _gradient(trial.make(case))
    return _differ(
        _gradient(change_parcels(trial.make(case), garbled)),
        clean,
        when="with other ids in the padding, and more of it",
    )


def _order(trial: Trial, case: Case) -> str:
    found = _gradient(change_parcels(trial.make(case), reversed_rows))
    return _differ(found, _gradient(trial.make(case)), when="with the rows in reverse order")


def _split(trial: Trial, case: Case) -> str:
    pieces = trial.most_micro_batches(case)
    whole = _gradient(trial.make(case))
    found = _gradient(trial.make(case, micro_batches=pieces, token_budget=0))  # else they are put together again
    shapes = f"as {pieces} micro-batches of {case.size // pieces} instead of 1 of {case.size}"
    return _differ(found, whole, when=f"{shapes}. Return unreduced losses with their unit, not a mean")


def _parts(trial: Trial, case: Case) -> str:
    whole = _gradient(trial.make(case, token_budget=0))
    found = _gradient(trial.make(case, token_budget=1))
    return _differ(found, whole, when="when a micro-batch is run in parts, under a token budget")


def _descends(trial: Trial, case: Case) -> str:
    trainer: Any = trial.make(case, learning_rate=0.0, **trial.option("num_iterations", 2))
    parcels, counts = first_step(trainer)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]

    def loss() -> torch.Tensor:
        shares = [trainer.compute_loss(trainer.model, parcel, num_items_in_batch=counts) for parcel in parcels]
        return torch.stack(shares).sum()

    first = loss()
    gradients = torch.autograd.grad(first, trained, allow_unused=True)
    before = first.item()
    length = torch.stack([g.norm() for g in gradients if g is not None]).norm().item()
    with torch.no_grad():
        for weight, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                weight.sub_(gradient, alpha=STEP / length)
        after = loss().item()
    if after > before + 1e-10 * max(abs(before), 1.0):
        return f"a small step down the gradient takes the loss of the same rows from {before:.9f} up to {after:.9f}"
    return ""


def _direction(trial: Trial, case: Case) -> str:
    """A step makes chosen answers, good ones, and those to imitate likelier, at least not the opposite."""
    if not trial.trainer.writes_answers or not trial.learns_from_rewards:
        return ""
    trainer: Any = trial.make(case, learning_rate=0.0)
    parcels, counts = first_step(trainer)
    trained = [p for p in trainer.policy.parameters() if p.requires_grad]
    losses = [trainer.compute_loss(trainer.model, parcel, num_items_in_batch=counts) for parcel in parcels]
    aims = [_aim(forward(trainer.policy, parcel), parcel) for parcel in parcels]
    down, up = (_flat(torch.stack(values).sum(), trained) for values in (losses, aims))
    if not bool(up.any()):
        return ""  # answers that are all alike say nothing
    cosine = -torch.nn.functional.cosine_similarity(down, up, dim=0).item()
    return (
        "" if cosine > OPPOSITE else f"a step makes good answers less likely (cosine {cosine:.2f}). Is a sign turned?"
    )


def _aim(stats: Any, parcel: Any) -> torch.Tensor:
    """What the policy should have more of: (log-probs of chosen rows less rejected ones; times advantage; by label)."""
    rows = stats.sequence_sum()
    if "pairs" in parcel and len(parcel.pairs):
        return (rows[parcel.pairs[:, 0]] - rows[parcel.pairs[:, 1]]).sum()
    if "advantages" in parcel:
        return (stats.logps * stats.mask * parcel.advantages).sum()
    return (rows * (2 * parcel.columns["label"] - 1)).sum() if "label" in parcel.columns else rows.sum()


def _flat(value: torch.Tensor, trained: list[torch.Tensor]) -> torch.Tensor:
    gradients = torch.autograd.grad(value, trained, allow_unused=True)
    pairs = zip(gradients, trained, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def _extremes(trial: Trial, case: Case) -> str:
    model = trial.make_model(0, torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(LARGE if weight.dim() > 1 else 1.0)
    trainer: Any = trial.make(case, model=model, dtype=torch.float32)
    gradient = _gradient(trainer)
    if not bool(gradient.isfinite().all()) or trainer.guard.num_skipped.value:
        return f"the gradient is not finite in float32 for a model that is very sure (its weights times {LARGE:g})"
    return ""


def _logging(trial: Trial, case: Case) -> str:
    if len(case.rows) < FULL:
        return ""
    often, seldom = (trial.make(case, logging_steps=every, max_steps=3) for every in (1, 100))
    for trainer in (often, seldom):
        trainer.train()
    return _unequal(weights_of(seldom), weights_of(often), "after 3 steps without a log line, and with one a step")


def _resume(trial: Trial, case: Case) -> str:
    if len(case.rows) < FULL:
        return ""
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "dtype": torch.float32}
    options |= trial.option("num_iterations", 2)
    whole = trial.make(case, **options)
    whole.train()
    first = trial.make(case, **options)
    first.add_callback(StopAfter(3))
    with suppress(KeyboardInterrupt):
        first.train()
    second = trial.make(case, output_dir=first.args.output_dir, **options)
    second.train(resume_from_checkpoint=True)
    return _unequal(
        weights_of(second),
        weights_of(whole),
        "after 4 steps at once, and after 3, a stop, and 2 more from the checkpoint of step 2. What changes from step "
        "to step besides the weights belongs in stateful()",
    )


def _unequal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], when: str) -> str:
    for name, values in expected.items():
        if not torch.equal(found[name], values):
            largest = float((found[name].double() - values.double()).abs().max())
            return f"{name} is not bit for bit the same (by up to {largest:.2g}) {when}"
    return ""


def _processes(trial: Trial, case: Case) -> str:
    if trial.processes == 1 or len(case.rows) < FULL:
        return ""
    found = gradient_of_processes(trial, case)
    return _differ(found, _gradient(trial.make(case)), when=f"on {trial.processes} processes instead of 1")


LAWS: tuple[Law[Trial, Case], ...] = (
    Law("a step has a gradient", "Nothing would be learned.", _runs),
    Law("padding", "Rows of one micro-batch have different lengths.", _padding),
    Law("order of rows", "Rows are shuffled and dealt to processes.", _order),
    Law("split into micro-batches", "The size of a micro-batch would change what is learned.", _split),
    Law("token budget", "A micro-batch of long rows is run in parts, to bound memory.", _parts),
    Law("a step lowers the loss", "What is logged would not be what is minimised.", _descends),
    Law("direction of the gradient", "Good answers would become less likely, or bad ones more.", _direction),
    Law("finite at extremes", "One answer that the policy finds impossible would end the run.", _extremes),
    Law("indifference to logging", "A run would depend on how often one looks.", _logging),
    Law("exact resume", "A run that was stopped would be another run.", _resume),
    Law("several processes", "The number of processes would change what is learned.", _processes),
)
