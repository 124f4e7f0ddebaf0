"""Which reference a preference trainer has: decided here, once, from its options, its data and its model.

reference_free > columns of the data set > none, if no loss reads one > ref_model
> the policy's model with its adapter off, or with another one > a copy of the policy as it is now
and that model stays, or moves with the policy, or is asked for all rows once, before the first step
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from burnish.data.kwise import KWISE_REF_COLUMN, KWISE_TOKEN_COLUMN
from burnish.data.numbers import REF_COLUMNS, TOKEN_COLUMNS
from burnish.models.adapter_reference import adapter_reference
from burnish.models.adapters import is_adapted
from burnish.models.load import load_policy, place
from burnish.models.moving import (
    BemaReference,
    BemaSchedule,
    MovingReference,
    SyncedReference,
    SyncSchedule,
    check_can_follow,
)
from burnish.models.refcache import StartingPolicy
from burnish.models.reference import (
    FromColumns,
    ModelReference,
    NoReference,
    Reference,
    frozen_copy,
    given_model,
)
from burnish.trainers.compiling import compile_as_asked
from burnish.trainers.config import PolicyConfig, arg
from burnish.trainers.precompute import check_can_precompute

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

    from burnish.trainers.referring import ReferringTrainer

SUMS, TOKENS = (*REF_COLUMNS, KWISE_REF_COLUMN), (*TOKEN_COLUMNS, KWISE_TOKEN_COLUMN)
SYNC = SyncSchedule()


@dataclass
class ReferenceOptions(PolicyConfig):
    """Options of the reference.

    Raises:
        ValueError: options that contradict each other, or one that would have no effect.
    """

    reference_free: bool = arg(False, "Compare with a uniform reference: its log-probs are 0.")
    precompute_ref_log_probs: bool = arg(
        False, "Score all rows with the reference once, before the first step, and keep the log-probs on disk."
    )
    precompute_ref_batch_size: int | None = arg(
        None, "Rows that are scored together for that; unset: per_device_train_batch_size."
    )
    sync_ref_model: bool = arg(False, "Move the reference towards the policy every so many steps (TR-DPO).")
    ref_model_mixup_alpha: float = arg(SYNC.mixup_alpha, "How far it moves: the policy's share, above 0 up to 1.")
    ref_model_sync_steps: int = arg(SYNC.sync_steps, "After how many optimizer steps it moves each time.")
    ref_model_bema: dict[str, Any] | None = arg(
        None, "Move the reference along a corrected average of the policy (BEMA), with these options; {} for defaults."
    )

    ref_model_init_kwargs: dict[str, Any] | None = arg(
        None, "Keywords for from_pretrained when ref_model is given by name."
    )
    model_adapter_name: str | None = arg(None, "The adapter that is trained, of several; or the name of the new one.")
    ref_adapter_name: str | None = arg(None, "The adapter of the policy's model that is the reference.")
    force_use_ref_model: bool = arg(False, "Use ref_model with an adapted policy, which is what happens anyway.")

    def __post_init__(self) -> None:
        super().__post_init__()
        sync = SyncSchedule(mixup_alpha=self.ref_model_mixup_alpha, sync_steps=self.ref_model_sync_steps)
        mover(self)
        if self.precompute_ref_batch_size is not None and not self.precompute_ref_log_probs:
            raise ValueError("precompute_ref_batch_size has no effect without precompute_ref_log_probs=True")
        if sync != SYNC and not self.sync_ref_model:
            raise ValueError(
                "ref_model_mixup_alpha and ref_model_sync_steps have no effect without sync_ref_model=True"
            )
        if len(chosen := switches(self)) > 1:
            raise ValueError(
                f"{' and '.join(chosen)} exclude each other: there is one reference, and the log-probs of one that "
                "moves cannot be computed before. Set one of them."
            )


def switches(options: ReferenceOptions) -> list[str]:
    """The options, at most one of which makes a reference something other than a model that stays."""
    chosen = {
        "reference_free": options.reference_free,
        "precompute_ref_log_probs": options.precompute_ref_log_probs,
        "sync_ref_model": options.sync_ref_model,
        "ref_model_bema": options.ref_model_bema is not None,
    }
    return [name for name, is_set in chosen.items() if is_set]


def mover(options: ReferenceOptions) -> Callable[..., MovingReference] | None:
    """(model, description=...) -> the moving reference that the options ask for; None for one that stays.

    Raises:
        ValueError: a number that is not allowed.
    """
    if options.sync_ref_model:
        schedule = SyncSchedule(mixup_alpha=options.ref_model_mixup_alpha, sync_steps=options.ref_model_sync_steps)
        return partial(SyncedReference, schedule=schedule)
    if options.ref_model_bema is None:
        return None
    if not isinstance(options.ref_model_bema, Mapping):
        raise ValueError(f"ref_model_bema={options.ref_model_bema!r}; give a mapping of its options, {{}} for defaults")
    return partial(BemaReference, schedule=BemaSchedule.of(options.ref_model_bema))


def make_reference(
    trainer: ReferringTrainer,
    ref_model: str | PreTrainedModel | PeftModel | ModelReference | None,
    *,
    need_reference: bool = True,
    needs: Collection[str] = (),
) -> Reference:
    """The reference of a trainer whose model and data are ready; arguments as in `choose_reference`.

    Raises:
        ValueError: two references at once, or an option that this model or these rows do not allow.
    """
    train, held_out = trainer.train_dataset, trainer.eval_dataset
    columns = None if train is None else train.column_names  # of a stream they may be unknown
    reference = choose_reference(
        trainer.model,
        ref_model,
        trainer.args,
        columns=columns or (),
        need_reference=need_reference,
        needs=needs,
        has_new_adapter=trainer.has_new_adapter,
    )
    if trainer.args.precompute_ref_log_probs:
        others = held_out if isinstance(held_out, Mapping) else {"eval": held_out}
        for name, rows in {"train": train, **others}.items():
            if rows is not None:
                check_can_precompute(rows, name=name)
    return reference


def choose_reference(
    policy: PreTrainedModel,
    ref_model: str | PreTrainedModel | PeftModel | ModelReference | None,
    options: ReferenceOptions,
    *,
    columns: Collection[str] = (),
    need_reference: bool = True,
    needs: Collection[str] = (),
    has_new_adapter: bool = False,
) -> Reference:
    """One of the references, of what is known about the run.

    Args:
        policy: with `install_forward`, before its first step, on its device.
        ref_model: what the user gave as the reference: a model, a reference of its own, or None.
        options: of the reference.
        columns: of the training rows.
        need_reference: whether any loss reads the reference.
        needs: what the losses ask of the forward.
        has_new_adapter: the policy's adapter was made for this run.

    Raises:
        ValueError: two references at once, or an option that would have no effect.
    """
    own = [column for column in (*SUMS, *TOKENS) if column in columns]
    _refuse_two(policy, ref_model, options, own=own)
    _refuse_idle(ref_model, options, own=own, need_reference=need_reference)
    _refuse_idle_names(policy, ref_model, options, own=own, need_reference=need_reference)
    if options.reference_free:
        return NoReference("reference_free=True: every log-prob of the reference is 0")
    if own:
        return _of_columns(own)
    if ref_model is None and not need_reference:
        return NoReference("none of the losses reads a reference: log-ratios are the policy's own log-probs")
    if options.precompute_ref_log_probs:
        _refuse_divergence(needs)
    once, other = options.precompute_ref_log_probs, options.ref_adapter_name
    if once and ref_model is None and not has_new_adapter and other is None:
        return StartingPolicy(policy)
    if ref_model is None and is_adapted(policy) and mover(options) is None:
        return adapter_reference(cast("Any", policy), adapter=other, is_new=has_new_adapter, asked_once=once)
    return _of_model(policy, ref_model, options)


def _own_reference(reference: ModelReference, options: ReferenceOptions) -> ModelReference:
    """A reference of the user's, as it is."""
    if chosen := switches(options):
        raise ValueError(
            f"{chosen[0]} makes a reference of a model, and ref_model is one already, a {type(reference).__name__}: "
            "leave out one of the two"
        )
    return reference


def _of_columns(own: list[str]) -> FromColumns:
    knows_tokens = any(column in own for column in TOKENS)
    return FromColumns(f"columns {' and '.join(own)} of the data set", knows_tokens=knows_tokens)


def _of_model(
    policy: PreTrainedModel,
    ref_model: str | PreTrainedModel | PeftModel | ModelReference | None,
    options: ReferenceOptions,
) -> ModelReference:
    """The given model, or a copy of the policy; in a moving reference, if one is asked for."""
    if isinstance(ref_model, ModelReference):
        return _own_reference(ref_model, options)
    move = mover(options)
    if move is not None:
        _refuse_adapters(policy, switch=switches(options)[0])
    if ref_model is None:
        reference = frozen_copy(policy)
    else:
        loaded = load_policy(
            ref_model,
            trust_remote_code=options.trust_remote_code,
            init_kwargs=options.ref_model_init_kwargs,
            option="ref_model_init_kwargs",
        )
        _refuse_shared(policy, loaded)
        place(loaded, options.device)
        reference = given_model(
            cast("PreTrainedModel", loaded),
            prefix_sharing=options.prefix_sharing,
            lean_activations=options.lean_activations,
        )
        compile_as_asked(reference.model, options)
    if move is None:
        return reference
    check_can_follow(reference.model, policy)
    return move(reference.model, description=reference.description)


def _refuse_two(
    policy: PreTrainedModel,
    ref_model: Any,
    options: ReferenceOptions,
    *,
    own: list[str],
) -> None:
    if ref_model is None:
        return
    if ref_model is policy:
        raise ValueError("ref_model is the policy itself, which is trained: leave it out, and a frozen copy is taken")
    if own:
        raise ValueError(f"ref_model is given, and the data set has {own[0]}: leave out one of the two")
    if options.reference_free:
        raise ValueError("ref_model is given, and reference_free=True compares with none: leave out one of the two")
    if options.ref_model_bema is not None:
        raise ValueError(
            "ref_model is given, and ref_model_bema makes the reference of the policy alone: leave out one of the two"
        )


def _refuse_shared(policy: nn.Module, reference: nn.Module) -> None:
    """A reference with weights of the policy would be trained with it: PEFT puts an adapter into the given model."""
    of_policy = {id(parameter) for parameter in policy.parameters()}
    if any(id(parameter) in of_policy for parameter in reference.parameters()):
        raise ValueError(
            "ref_model shares weights with the policy, whose layers an adapter replaces in place: leave ref_model out, "
            "and the policy with its adapter switched off is the reference, or load a second model"
        )


def _refuse_idle(
    ref_model: Any,
    options: ReferenceOptions,
    *,
    own: list[str],
    need_reference: bool,
) -> None:
    """Options about a model, where no model is the reference."""
    chosen = [switch for switch in switches(options) if switch != "reference_free"]
    if chosen and own:
        raise ValueError(
            f"{chosen[0]} is set, and the data set has {own[0]}, which would be used instead: remove the columns "
            f"from every data set, or leave {chosen[0]} out"
        )
    if chosen and ref_model is None and not need_reference:
        raise ValueError(f"{chosen[0]} is set, and none of the losses reads a reference: leave it out")


def _refuse_idle_names(
    policy: nn.Module,
    ref_model: Any,
    options: ReferenceOptions,
    *,
    own: list[str],
    need_reference: bool,
) -> None:
    """Options about a given model, or about an adapter, where the reference is neither."""
    about_given = {
        "force_use_ref_model": options.force_use_ref_model,
        "ref_model_init_kwargs": options.ref_model_init_kwargs is not None,
    }
    for name, is_set in about_given.items():
        if is_set and ref_model is None:
            raise ValueError(f"{name} is set, but no ref_model is given: leave it out")
    facts = {
        "the policy has no adapters": not is_adapted(policy),
        "ref_model is given": ref_model is not None,
        "the data set has log-probs of its own": bool(own),
        "no reference is read": options.reference_free or not need_reference,
    }
    reasons = [reason for reason, is_so in facts.items() if is_so]
    if options.ref_adapter_name is not None and reasons:
        raise ValueError(f"ref_adapter_name={options.ref_adapter_name!r} is set, but {reasons[0]}: leave it out")


def _refuse_divergence(needs: Collection[str]) -> None:
    if "divergence" in needs:
        raise ValueError(
            "the loss reads the divergence of the policy from the reference over the whole vocabulary, which is no "
            "number of a row: set precompute_ref_log_probs=False"
        )


def _refuse_adapters(policy: nn.Module, *, switch: str) -> None:
    if any(type(module).__module__.startswith("peft.") for module in policy.modules()):
        raise ValueError(
            f"{switch} mixes the policy's weights into the reference's, and this policy is an adapter on a model that "
            f"it shares with its reference, so there is nothing to mix: leave {switch} out, or train the whole model"
        )
