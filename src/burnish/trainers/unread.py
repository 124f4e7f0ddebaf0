"""Options of rollouts that would have no effect are refused, since an unread option is a lie."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from burnish.trainers.config import PolicyConfig

_LIMITS = "set max_prompt_length and max_completion_length"
_NO_REFERENCE = "beta=0 trains without a reference (kl_coef=0 in PPO)"
# Options about rows that hold an answer -> what there is instead, where answers are sampled.
OF_ROWS = {
    "max_length": _LIMITS,
    "truncation_mode": _LIMITS,
    "dataset_num_proc": "prompts are tokenised in the training process",
    "pad_to_multiple_of": "a micro-batch is as wide as its longest answer",
    "reference_free": _NO_REFERENCE,
    "precompute_ref_log_probs": _NO_REFERENCE,
}
# A switch -> the options that are read only where it is on.
SWITCHES = {
    "dynamic_sampling": ("dynamic_sampling_attempts",),
    "log_completions": ("num_completions_to_print",),
    "importance_sampling_correction": (
        "importance_sampling_mode",
        "importance_sampling_clip_max",
        "importance_sampling_clip_min",
    ),
    "use_adaptive_entropy": ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
    "beta": ("kl_estimator", "use_kl_in_reward", "sync_ref_model", "ref_model_bema"),
    "kl_coef": ("kl_estimator", "use_kl_in_reward", "kl_target", "sync_ref_model", "ref_model_bema"),
    "kl_target": ("kl_horizon",),
    "critic_warmup_steps": ("critic_warmup_lam",),
    "max_grad_norm": ("critic_max_grad_norm",),
}
# An option -> the one that it takes the place of.
INSTEAD = {"lam_length_alpha": "lam"}


def refuse_unread(options: PolicyConfig) -> None:
    """Refuse options that are set away from their default and that nothing reads.

    Raises:
        ValueError: names the option, and what to set instead.
    """
    known, changed = {item.name for item in fields(options)}, options.changed()
    for name in [name for name in OF_ROWS if name in changed]:
        raise ValueError(
            f"{name}={getattr(options, name)!r} is about rows of a data set that hold an answer, and these answers are "
            f"sampled: leave it out; {OF_ROWS[name]}"
        )
    for name, other in INSTEAD.items():
        if name in changed and other in changed:
            raise ValueError(f"{other} has no effect with {name}={getattr(options, name)!r}: set one of them")
    for switch, names in SWITCHES.items():
        unread = [name for name in names if name in changed]
        if switch in known and not getattr(options, switch) and unread:
            raise ValueError(
                f"{unread[0]} has no effect with {switch}={getattr(options, switch)!r}: set {switch}, or leave it out"
            )
