"""The tables of docs/sft.md and docs/kto.md, out of the registry, the configurations and TRL's fields."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from losses_table import entries, formula, options
from trl_tables import fates_table, rows_of

from burnish import KTOConfig, SFTConfig
from burnish.compat import UNBUILT_KTO, UNBUILT_SFT
from burnish.losses import supervised_losses, unpaired_losses
from burnish.registry import Table
from burnish.trainers.config import PolicyConfig
from burnish.trainers.reference_options import ReferenceOptions

# Fields that TRL 1.16's SFTConfig adds to TrainingArguments, or whose default it changes -> TRL's default.
TRL_SFT_FIELDS: dict[str, Any] = {
    "learning_rate": 2e-5, "logging_steps": 10, "gradient_checkpointing": True, "bf16": None,
    "model_init_kwargs": None, "trust_remote_code": False, "router_aux_loss_coef": None, "chat_template_path": None,
    "dataset_text_field": "text", "dataset_kwargs": None, "dataset_num_proc": None, "eos_token": None,
    "max_length": 1024, "truncation_mode": "keep_start", "shuffle_dataset": False, "packing": False,
    "packing_strategy": "bfd", "padding_free": False, "pad_to_multiple_of": "auto", "eval_packing": None,
    "completion_only_loss": None, "assistant_only_loss": False, "loss_type": "nll", "activation_offloading": False,
    "pad_token": None,
}  # fmt: skip
# The same of its KTOConfig.
TRL_KTO_FIELDS: dict[str, Any] = {
    "learning_rate": 1e-6, "logging_steps": 10, "gradient_checkpointing": True, "bf16": None,
    "model_init_kwargs": None, "trust_remote_code": False, "router_aux_loss_coef": None, "disable_dropout": True,
    "dataset_num_proc": None, "max_length": 1024, "pad_to_multiple_of": "auto", "precompute_ref_log_probs": False,
    "precompute_ref_batch_size": None, "loss_type": "kto", "beta": 0.1, "desirable_weight": 1.0,
    "undesirable_weight": 1.0, "activation_offloading": False, "sync_ref_model": False, "ref_model_mixup_alpha": 0.6,
    "ref_model_sync_steps": 512,
}  # fmt: skip
DIFFERS = {
    "bf16": "",
    "gradient_checkpointing": "",
    "pad_to_multiple_of": '`"auto"` is accepted, and is no padding.',
}
SFT_DIFFERS = {
    **DIFFERS,
    "assistant_only_loss": "TRL trains every turn unless it is set.",
    "loss_type": "A callable is one, too.",
    "truncation_mode": "`keep_end` cuts the prompt's start; TRL's cuts the start of the whole row.",
}
KTO_DIFFERS = {**DIFFERS, "loss_type": "A callable is one, too."}


def supervised_losses_table() -> str:
    """One row for each supervised loss."""
    return _losses(supervised_losses)


def unpaired_losses_table() -> str:
    """One row for each unpaired loss."""
    return _losses(unpaired_losses)


def _losses(table: Table[..., Any]) -> str:
    papers = {n: f"[{e.paper}](https://arxiv.org/abs/{e.paper})" if e.paper else "-" for n, e in entries(table)}
    rows = [f"| `{n}` | {formula(e)} | {papers[n]} | {e.facts['per']} | {options(e)} |" for n, e in entries(table)]
    return "\n".join(["| loss | formula | paper | averaged over | options |", "|---|---|---|---|---|", *rows])


def sft_fields_table() -> str:
    """The options of SFTConfig that not every trainer has, or that have another default."""
    return _fields(SFTConfig, PolicyConfig)


def kto_fields_table() -> str:
    """The options of KTOConfig beside those of every trainer and of references."""
    return _fields(KTOConfig, ReferenceOptions)


def trl_sft_fields_table() -> str:
    """Every field of TRL 1.16's SFTConfig and its fate."""
    return fates_table(TRL_SFT_FIELDS, config=SFTConfig, unbuilt=UNBUILT_SFT, differs=SFT_DIFFERS)


def trl_kto_fields_table() -> str:
    """Every field of TRL 1.16's KTOConfig and its fate."""
    return fates_table(TRL_KTO_FIELDS, config=KTOConfig, unbuilt=UNBUILT_KTO, differs=KTO_DIFFERS)


def _fields(config: type, base: type) -> str:
    own = {field.name: _default(field) for field in fields(base)}
    changed = [f for f in fields(config) if f.name not in own or _default(f) != own[f.name]]
    rows: list[tuple[Any, ...]] = [(f"`{f.name}`", f"`{_default(f)}`", f.metadata["help"]) for f in changed]
    return rows_of("| option | default | what it does |", rows)


def _default(field: Any) -> str:
    return repr(field.default if field.default is not MISSING else field.default_factory())
