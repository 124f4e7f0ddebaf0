"""The tables of docs/coming-from-trl.md: the fate of every field of TRL's configurations, and what is ours alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields
from functools import partial
from typing import Any

from transformers import TrainingArguments

from burnish import DPOConfig, GRPOConfig, PPOConfig
from burnish.compat import (
    GRPO_ALIASES,
    PPO_ALIASES,
    UNBUILT_DPO,
    UNBUILT_GRPO,
    UNBUILT_GRPO_ARGUMENTS,
    UNBUILT_KTO,
    UNBUILT_PPO,
    UNBUILT_SFT,
    UNBUILT_SFT_ARGUMENTS,
)
from burnish.trainers.unread import OF_ROWS

_BOTH, _OLD, _NEW = "1.16, 0.25", "0.25", "1.16"
TRL_FIELDS: dict[str, str] = {
    "learning_rate": _BOTH, "logging_steps": _BOTH, "gradient_checkpointing": _BOTH, "bf16": _BOTH,
    "model_init_kwargs": _BOTH, "ref_model_init_kwargs": _OLD, "trust_remote_code": _NEW,
    "router_aux_loss_coef": _NEW, "model_adapter_name": _OLD, "ref_adapter_name": _OLD, "force_use_ref_model": _OLD,
    "disable_dropout": _BOTH, "use_logits_to_keep": _OLD, "dataset_num_proc": _BOTH, "pad_token": _BOTH,
    "label_pad_token_id": _OLD, "padding_value": _OLD, "max_prompt_length": _OLD, "max_completion_length": _OLD,
    "max_length": _BOTH, "truncation_mode": _BOTH, "padding_free": _BOTH, "pad_to_multiple_of": _NEW,
    "precompute_ref_log_probs": _BOTH, "precompute_ref_batch_size": _BOTH, "tools": _OLD, "loss_type": _BOTH,
    "loss_weights": _BOTH, "use_liger_loss": _OLD, "base_model_attribute_name": _OLD, "beta": _BOTH,
    "f_divergence_type": _BOTH, "f_alpha_divergence_coef": _BOTH, "reference_free": _OLD, "label_smoothing": _BOTH,
    "use_weighting": _BOTH, "rpo_alpha": _OLD, "ld_alpha": _BOTH, "discopop_tau": _BOTH,
    "activation_offloading": _NEW, "sync_ref_model": _BOTH, "ref_model_mixup_alpha": _BOTH,
    "ref_model_sync_steps": _BOTH, "generate_during_eval": _OLD,
}  # fmt: skip
# Fields that TRL 1.16's GRPOConfig adds to TrainingArguments, or whose default it changes -> TRL's default.
TRL_GRPO_FIELDS: dict[str, Any] = {
    "learning_rate": 1e-6, "logging_steps": 10, "gradient_checkpointing": True, "bf16": None,
    "model_init_kwargs": None, "trust_remote_code": False, "router_aux_loss_coef": None, "disable_dropout": False,
    "cast_lm_head_to_fp32": False, "remove_unused_columns": False, "num_generations": 8, "num_generations_eval": None,
    "max_completion_length": 512, "ds3_gather_for_generation": True, "shuffle_dataset": True,
    "pad_to_multiple_of": "auto", "generation_batch_size": None, "steps_per_generation": None, "temperature": 1.0,
    "top_p": 1.0, "top_k": 0, "min_p": None, "generation_kwargs": None, "chat_template_kwargs": None,
    "repetition_penalty": 1.0, "cache_implementation": None, "use_vllm": False, "vllm_mode": "colocate",
    "vllm_model_impl": "vllm", "vllm_enable_sleep_mode": False, "vllm_structured_outputs_regex": None,
    "vllm_server_base_url": None, "vllm_server_host": "0.0.0.0", "vllm_server_port": 8000,
    "vllm_server_timeout": 240.0, "vllm_group_port": 51216, "vllm_gpu_memory_utilization": 0.3,
    "vllm_max_model_length": None, "vllm_tensor_parallel_size": 1, "beta": 0.0, "num_iterations": 1, "epsilon": 0.2,
    "delta": None, "epsilon_high": None, "sapo_temperature_neg": 1.05, "sapo_temperature_pos": 1.0,
    "vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0,
    "importance_sampling_level": "token", "reward_weights": None, "multi_objective_aggregation": "sum_then_normalize",
    "scale_rewards": "group", "loss_type": "dapo", "mask_truncated_completions": False, "sync_ref_model": False,
    "ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 512, "top_entropy_quantile": 1.0, "entropy_coef": 0.0,
    "use_adaptive_entropy": False, "entropy_coef_min": 0.0, "entropy_coef_max": 1.0, "entropy_coef_delta": 0.005,
    "entropy_target": 0.2, "max_tool_calling_iterations": None, "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "sequence_mask", "vllm_importance_sampling_clip_max": 3.0,
    "vllm_importance_sampling_clip_min": None, "off_policy_mask_threshold": None, "use_bias_correction_kl": True,
    "log_completions": False, "log_multimodal": True, "num_completions_to_print": None, "log_unique_prompts": False,
    "log_completions_hub_repo": None, "use_transformers_continuous_batching": False,
    "transformers_continuous_batching_config": None, "use_transformers_paged": False,
    "vllm_importance_sampling_cap": None,
}  # fmt: skip
# The same of TRL 0.25's PPOConfig, the fields that its trainer fills in among them.
TRL_PPO_FIELDS: dict[str, Any] = {
    "learning_rate": 5e-5, "logging_steps": 10, "gradient_checkpointing": True, "bf16": None, "exp_name": "ppo_config",
    "sft_model_path": "EleutherAI/pythia-160m", "reward_model_path": "EleutherAI/pythia-160m",
    "model_adapter_name": None, "ref_adapter_name": None, "dataset_num_proc": None, "total_episodes": None,
    "num_ppo_epochs": 4, "num_mini_batches": 1, "local_rollout_forward_batch_size": 64, "response_length": 53,
    "stop_token": None, "stop_token_id": None, "temperature": 0.7, "missing_eos_penalty": None,
    "whiten_rewards": False, "kl_coef": 0.05, "kl_estimator": "k1", "cliprange": 0.2, "vf_coef": 0.1,
    "cliprange_value": 0.2, "gamma": 1.0, "lam": 0.95, "num_sample_generations": 10,
    "ds3_gather_for_generation": True, "num_total_batches": None, "micro_batch_size": None, "local_batch_size": None,
    "batch_size": None, "local_mini_batch_size": None, "mini_batch_size": None,
}  # fmt: skip
# Fields that are another thing here -> in what, where the sentence of ours does not say it.
DIFFERS = {
    "bf16": "", "gradient_checkpointing": "", "remove_unused_columns": "", "num_generations_eval": "",
    "multi_objective_aggregation": "", "num_completions_to_print": "TRL prints all of them.",
    "disable_dropout": "With dropout the policy would not be the one that drew the answers.",
    "max_completion_length": "`None` is refused: an answer needs a limit.",
    "temperature": "0 is refused: a group of equal answers teaches nothing.",
    "top_entropy_quantile": "The threshold is that of the whole round.",
    "importance_sampling_level": "`token` is accepted for the losses that work with it.",
    "loss_type": "`bnpo` is `dapo`; a callable is one, too.",
    "pad_to_multiple_of": "`None` and `\"auto\"` are accepted, anything else refused: a micro-batch is as wide as its "
    "longest answer.",
    "vllm_importance_sampling_correction": "Off by default, of any engine.",
}  # fmt: skip
PPO_DIFFERS = {
    "bf16": "", "gradient_checkpointing": "", "sft_model_path": "", "reward_model_path": "",
    "learning_rate": "TRL's examples set 3e-6.",
    "dataset_num_proc": "A script may read it; prompts are tokenised in the training process.",
    "logging_steps": "An optimizer step is one here, and a round there.",
    "kl_estimator": "TRL has k1 and k3.",
    "missing_eos_penalty": "TRL looks for the end-of-sequence id, also behind a stop token of another id.",
    "whiten_rewards": "TRL whitens each process by itself, padding left out.",
    "local_rollout_forward_batch_size": "Of generation alone: scoring keeps to `token_budget`.",
}  # fmt: skip


def cell(text: Any) -> str:
    """A text that stands in a cell."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def rows_of(head: str, rows: list[tuple[Any, ...]]) -> str:
    """A table in Markdown."""
    width = head.count("|") - 1
    return "\n".join([head, "|" + "---|" * width, *("| " + " | ".join(map(cell, row)) + " |" for row in rows)])


def default_of(field: Any) -> str:
    """The default of a field, as Python writes it."""
    value = field.default if field.default is not MISSING else field.default_factory()
    return repr(value)


def trl_fields_table() -> str:
    """Every field of TRL's DPOConfig and its fate."""
    own = {field.name: field for field in fields(DPOConfig)}
    rows: list[tuple[Any, ...]] = []
    for name, versions in TRL_FIELDS.items():
        if name in UNBUILT_DPO:
            rows.append((f"`{name}`", versions, _unbuilt(name, UNBUILT_DPO)))
        elif name in own:
            rows.append(
                (f"`{name}`", versions, f"works. {own[name].metadata['help']} Default: `{default_of(own[name])}`")
            )
        else:
            rows.append((f"`{name}`", versions, "unknown: refused as a misspelt option"))
    return rows_of("| field | in TRL | here |", rows)


def trl_grpo_fields_table() -> str:
    """Every field of TRL 1.16's GRPOConfig and its fate."""
    fate = partial(
        _fate, config=GRPOConfig, aliases=GRPO_ALIASES, unbuilt=UNBUILT_GRPO, unread=OF_ROWS, differs=DIFFERS
    )
    return _fates(TRL_GRPO_FIELDS, fate)


def trl_ppo_fields_table() -> str:
    """Every field of TRL 0.25's PPOConfig and its fate."""
    fate = partial(
        _fate, config=PPOConfig, aliases=PPO_ALIASES, unbuilt=UNBUILT_PPO, unread=OF_ROWS, differs=PPO_DIFFERS
    )
    return _fates(TRL_PPO_FIELDS, fate)


def fates_table(
    trl: Mapping[str, Any], *, config: Any, unbuilt: Mapping[str, tuple[Any, ...]], differs: Mapping[str, str]
) -> str:
    """Every field of one of TRL's configurations, with its default there, and its fate in one of ours."""
    return _fates(trl, partial(_fate, config=config, aliases={}, unbuilt=unbuilt, unread=(), differs=differs))


def _fates(trl: Mapping[str, Any], fate: Callable[[str, Any], tuple[str, str]]) -> str:
    rows = [(f"`{name}`", f"`{default!r}`", *fate(name, default)) for name, default in trl.items()]
    return rows_of("| field | default in TRL | fate | here |", rows)


def _fate(
    name: str,
    default: Any,
    *,
    config: Any,
    aliases: Mapping[str, str],
    unbuilt: Mapping[str, tuple[Any, ...]],
    unread: Collection[str],
    differs: Mapping[str, str],
) -> tuple[str, str]:
    own, note = {field.name: field for field in fields(config)}, differs.get(name, "")
    if name in unbuilt:
        return "refused by name", _unbuilt(name, unbuilt)
    if name in aliases:
        return "alias", f"another name of `{aliases[name]}`. {note}".strip()
    if name in unread:
        return "refused by name", note
    is_same = default_of(own[name]) == repr(default)
    parts = [own[name].metadata["help"], *([] if is_same else [f"Default: `{default_of(own[name])}`."]), note]
    return "accepted" if is_same and name not in differs else "differs", " ".join(filter(None, parts))


def _unbuilt(name: str, unbuilt: Mapping[str, tuple[Any, ...]]) -> str:
    accepted = " or ".join(f"`{value!r}`" for value in unbuilt[name])
    return f"not built: {accepted} is accepted, anything else refused"


def own_fields_table() -> str:
    """The options that Burnish has and TRL's DPOConfig has not."""
    return _own(DPOConfig, without=set(TRL_FIELDS))


def own_grpo_fields_table() -> str:
    """The options that Burnish has and TRL's GRPOConfig has not, and that are no other table's."""
    dpo = {field.name for field in fields(DPOConfig)}
    return _own(GRPOConfig, without=set(TRL_GRPO_FIELDS) | (dpo - {"max_prompt_length", "eval_temperature"}))


def own_ppo_fields_table() -> str:
    """The options of PPOConfig that neither TRL's has nor the tables of DPO and GRPO."""
    others = {field.name for config in (DPOConfig, GRPOConfig) for field in fields(config)}
    return _own(PPOConfig, without=set(TRL_PPO_FIELDS) | set(TRL_GRPO_FIELDS) | others)


def _own(config: type, *, without: set[str]) -> str:
    ours = {field.name for field in fields(config)} - {field.name for field in fields(TrainingArguments)}
    new = [field for field in fields(config) if field.name in ours - without]
    return rows_of(
        "| field | default | what it does |",
        [(f"`{field.name}`", f"`{default_of(field)}`", field.metadata["help"]) for field in new],
    )


def unbuilt_table() -> str:
    """Options of TRL that are not built, with the value that is accepted."""
    tables = {
        "`DPOConfig`": UNBUILT_DPO,
        "`GRPOConfig`": UNBUILT_GRPO,
        "`GRPOTrainer`": UNBUILT_GRPO_ARGUMENTS,
        "`PPOConfig`": UNBUILT_PPO,
        "`SFTConfig`": UNBUILT_SFT,
        "`SFTTrainer`": UNBUILT_SFT_ARGUMENTS,
        "`KTOConfig`": UNBUILT_KTO,
    }
    return rows_of(
        "| option | of | accepted value |",
        [
            (f"`{name}`", place, " or ".join(f"`{value!r}`" for value in off))
            for place, unbuilt in tables.items()
            for name, off in unbuilt.items()
        ],
    )
