"""The rules of references and of losses on pairs: options that nothing reads, and choices that exclude each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from burnish.cli.rulebook import Values, path_of
from burnish.cli.validate import Problem

# A switch -> the options that are read only where it is on.
SWITCHES = {
    "precompute_ref_log_probs": ("precompute_ref_batch_size",),
    "sync_ref_model": ("ref_model_mixup_alpha", "ref_model_sync_steps"),
    "generate_during_eval": ("num_eval_samples", "eval_max_new_tokens", "eval_temperature"),
}
ONE_REFERENCE = ("reference_free", "precompute_ref_log_probs", "sync_ref_model", "ref_model_bema")
OF_GIVEN_MODEL = ("force_use_ref_model", "ref_model_init_kwargs")


def reference_problems(values: Values, schema: Mapping[str, Any], broken: set[str]) -> Iterator[Problem]:
    """Options of a reference that is another one, or none; and sums of losses that are none."""
    options = schema["properties"]
    changed = {name for name, option in options.items() if values[name] != option["default"]} - broken
    for switch in [switch for switch in SWITCHES if switch in values]:
        for name in [name for name in SWITCHES[switch] if name in changed and not values[switch]]:
            yield Problem(path_of(name), f"has no effect while {switch} is {values[switch]}: set that, or leave it out")
    chosen = [name for name in ONE_REFERENCE if values.get(name) not in (None, False)]
    for name in chosen[1:]:
        yield Problem(path_of(name), f"contradicts {chosen[0]}, since there is one reference: set one of them")
    for name in [name for name in OF_GIVEN_MODEL if name in changed and values["ref_model"] is None]:
        yield Problem(path_of(name), "is about a ref_model, and there is none: name it, or leave this out")
    if schema["x-losses"] and not broken & {"loss_type", "loss_weights"}:
        yield from _loss_problems(values, schema, chosen)


def _loss_problems(values: Values, schema: Mapping[str, Any], chosen: list[str]) -> Iterator[Problem]:
    losses = values["loss_type"] if isinstance(values["loss_type"], list) else [values["loss_type"]]
    if again := next((name for name in losses if losses.count(name) > 1), None):
        yield Problem(path_of("loss_type"), f"has {again!r} twice, and metrics go by name: keep one")
    weights = values.get("loss_weights")
    if weights and not any(weights):
        yield Problem(path_of("loss_weights"), "are all 0, so nothing would be trained: give one of them more")
    of_model = [name for name in chosen if name != "reference_free"]
    if of_model and values["ref_model"] is None and set(losses) <= set(schema["x-reference-free"]):
        yield Problem(path_of(of_model[0]), f"is set, and {', '.join(losses)} reads no reference: leave it out")
    coupling = [name for name in losses if name in schema["x-couples-rows"]]
    if values.get("use_weighting") and coupling:
        yield Problem(path_of("use_weighting"), f"weights pairs, and {coupling[0]} couples them: set it to false")
    ratios = [name for name in losses if name in schema["x-reference-ratios"]]
    if values.get("f_divergence_type", "reverse_kl") != "reverse_kl" and ratios:
        text = f"replaces the log-ratio in a difference of two answers, and {ratios[0]} reads none: leave it out"
        yield Problem(path_of("f_divergence_type"), text)
