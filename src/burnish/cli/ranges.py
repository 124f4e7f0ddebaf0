"""The ranges of numbers in a run file, in the words of JSON Schema; those of every method under one name."""

from __future__ import annotations

from collections.abc import Mapping

POSITIVE, NOT_NEGATIVE, AT_LEAST_ONE = {"exclusiveMinimum": 0}, {"minimum": 0}, {"minimum": 1}
UNIT = {"minimum": 0, "maximum": 1}
SHARE = {"minimum": 0, "exclusiveMaximum": 1}
RANGES: Mapping[str, Mapping[str, float]] = {
    "beta": POSITIVE,
    "label_smoothing": {"minimum": 0, "exclusiveMaximum": 0.5},
    "learning_rate": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": SHARE,
    "adam_beta2": SHARE,
    "adam_epsilon": NOT_NEGATIVE,
    "max_grad_norm": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "num_train_epochs": POSITIVE,
    "logging_steps": POSITIVE,
    "eval_steps": POSITIVE,
    "save_steps": POSITIVE,
    "save_total_limit": AT_LEAST_ONE,
    "seed": NOT_NEGATIVE,
    "data_seed": NOT_NEGATIVE,
    "max_skipped_steps": AT_LEAST_ONE,
    "shuffle_buffer_size": {"minimum": 2},
    "ref_model_mixup_alpha": {"exclusiveMinimum": 0, "maximum": 1},
    **dict.fromkeys(("ref_model_sync_steps", "precompute_ref_batch_size", "pad_to_multiple_of"), AT_LEAST_ONE),
    "ld_alpha": UNIT,
    "discopop_tau": POSITIVE,
    "token_budget": NOT_NEGATIVE,
    "num_generations": {"minimum": 2},
    **dict.fromkeys(("num_iterations", "steps_per_generation", "generation_batch_size"), AT_LEAST_ONE),
    **dict.fromkeys(("temperature", "reward_timeout", "off_policy_mask_threshold", "repetition_penalty"), POSITIVE),
    **dict.fromkeys(("dynamic_sampling_attempts", "num_completions_to_print", "generation_max_rows"), AT_LEAST_ONE),
    "top_entropy_quantile": {"exclusiveMinimum": 0, "maximum": 1},
    "entropy_coef": NOT_NEGATIVE,
    **dict.fromkeys(("epsilon", "epsilon_high", "top_k", "reward_retries", "num_generations_eval"), NOT_NEGATIVE),
    "center_rewards_coefficient": NOT_NEGATIVE,
    **dict.fromkeys(("desirable_weight", "undesirable_weight"), POSITIVE),
    **dict.fromkeys(("kl_coef", "vf_coef", "ptx_coef", "critic_learning_rate", "critic_weight_decay"), NOT_NEGATIVE),
    **dict.fromkeys(("kl_target", "kl_horizon", "early_stop_kl", "lam_length_alpha", "reward_clip"), POSITIVE),
    **dict.fromkeys(("advantage_clip", "cliprange_value", "critic_max_grad_norm"), POSITIVE),
    **dict.fromkeys(("lam", "lam_critic", "critic_warmup_lam"), UNIT),
    **dict.fromkeys(("num_mini_batches", "total_episodes", "ptx_batch_size", "ptx_max_length"), AT_LEAST_ONE),
    "gamma": {"exclusiveMinimum": 0, "maximum": 1},
    "critic_warmup_steps": NOT_NEGATIVE,
    "top_p": {"exclusiveMinimum": 0, "maximum": 1},
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), AT_LEAST_ONE),
    **dict.fromkeys(("gradient_accumulation_steps", "dataset_num_proc", "torch_empty_cache_steps"), AT_LEAST_ONE),
    **dict.fromkeys(("max_length", "max_prompt_length", "max_completion_length"), AT_LEAST_ONE),
    **dict.fromkeys(("num_eval_samples", "eval_max_new_tokens"), AT_LEAST_ONE),
    **dict.fromkeys(("dataloader_num_workers", "eval_temperature"), NOT_NEGATIVE),
}
