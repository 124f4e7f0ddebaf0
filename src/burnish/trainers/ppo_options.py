"""Options of PPO: what an answer's tokens earn, the critic that says what they will, and the rounds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from burnish.compat import PPO_ALIASES, UNBUILT_PPO, accept_trl_fields
from burnish.losses.kl import kl_estimators
from burnish.trainers.config import arg
from burnish.trainers.policy_options import PolicyLossOptions

REWARD_SCALINGS = ("none", "scale", "normalize")
CRITICS = ("policy", "reward", "head", "new")


@dataclass
class CreditOptions(PolicyLossOptions):
    """From rewards to advantages: KL, scaling, generalised advantage estimation.

    Raises:
        ValueError: a number out of its range, or an option that would have no effect.
    """

    kl_coef: float = arg(0.05, "What a nat of KL to the reference costs; 0: no reference is loaded.")
    kl_estimator: str = arg(
        "k1", "Estimator of the KL to the reference: k1, k2, k3, abs, or a callable."
    )  # text, for HfArgumentParser
    use_kl_in_reward: bool = arg(True, "Take the KL off the rewards of the tokens; False adds it to the loss.")
    use_bias_correction_kl: bool = arg(
        True, "Multiply a KL in the loss by the ratio of policy to old policy: right for k1 and k3, and not for k2."
    )
    kl_target: float | None = arg(
        None, "Move kl_coef after each round so that an answer's KL comes to so many nats; unset: kl_coef stays."
    )
    kl_horizon: float = arg(
        10_000.0, "Answers over which a KL that is off by a fifth or more moves kl_coef by a fifth."
    )
    early_stop_kl: float | None = arg(
        None, "Give up the rest of a round after a step whose policy/approxkl_avg is above this."
    )
    gamma: float = arg(1.0, "Discount of a token, above 0 up to 1.")
    lam: float = arg(0.95, "Lambda of the advantages: 1 trusts the rewards, 0 the critic.")
    lam_critic: float | None = arg(
        None, "Lambda of the returns that the critic learns; unset: as the advantages have it. VC-PPO: 1."
    )
    lam_length_alpha: float | None = arg(
        None, "Lambda of the advantages by length instead: 1 - 1 / (alpha x tokens), at least 0. VAPO: 0.05."
    )
    reward_scaling: str = arg(
        "none", "scale divides scores by their running standard deviation, normalize subtracts their mean as well."
    )
    reward_clip: float | None = arg(None, "Largest size of a score or of a token's reward, after scaling.")
    missing_eos_penalty: float | None = arg(None, "Taken off the score of an answer that was cut, after the clip.")
    bootstrap_truncated: bool = arg(
        False, "Answers that were cut earn what the critic expects of their rest, instead of a score."
    )
    whiten_rewards: bool = arg(False, "Divide the rewards of tokens by their standard deviation over the round.")
    whiten_advantages: bool = arg(True, "Bring advantages to mean 0 and variance 1 over the whole round.")
    advantage_clip: float | None = arg(None, "Largest size of an advantage, after whitening.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward_scaling not in REWARD_SCALINGS:
            raise ValueError(f"reward_scaling={self.reward_scaling!r}; allowed: {', '.join(REWARD_SCALINGS)}")
        kl_estimators.entry(self.kl_estimator)
        if self.missing_eos_penalty is not None and self.bootstrap_truncated:
            raise ValueError(
                "missing_eos_penalty takes a cut answer for one that ended badly, and bootstrap_truncated for one that "
                "goes on: set one of them"
            )
        if self.mask_truncated_completions and (self.missing_eos_penalty is not None or self.bootstrap_truncated):
            raise ValueError(
                "mask_truncated_completions leaves cut answers out, so missing_eos_penalty and bootstrap_truncated "
                "would have no effect: set one of them"
            )


@dataclass
class CriticOptions(CreditOptions):
    """The critic: where it comes from, and how it is trained.

    Raises:
        ValueError: a number out of its range, or an option that would have no effect.
    """

    critic: str = arg(
        "policy",
        "What the critic begins as, if value_model is not given: a copy of the policy's trunk (policy) or of the "
        "reward model (reward), a head on the policy's own trunk (head), or random weights (new).",
    )
    value_model_path: str | None = arg(None, "Where the critic is, if value_model is not given.")
    value_model_init_kwargs: dict[str, Any] | str | None = arg(  # text: JSON, of HfArgumentParser
        None, "Keywords for from_pretrained when the critic is loaded by name; its head is at least float32."
    )
    vf_coef: float = arg(0.1, "Factor of the critic's loss.")
    cliprange_value: float | None = arg(0.2, "How far one round may move an estimate of the critic; unset: no clip.")
    critic_learning_rate: float | None = arg(None, "Peak learning rate of the critic; unset: learning_rate.")
    critic_weight_decay: float | None = arg(None, "Weight decay of the critic; unset: weight_decay.")
    critic_lr_scheduler_type: str | None = arg(
        None, "Schedule of the critic's learning rate; unset: lr_scheduler_type."
    )
    critic_max_grad_norm: float | None = arg(
        None, "Longest gradient of the critic, which is clipped apart from the policy's; unset: max_grad_norm."
    )
    critic_warmup_steps: int = arg(0, "The first so many optimizer steps train the critic alone.")
    critic_warmup_lam: float | None = arg(
        None, "lam_critic of the rounds that begin in these steps; 1 trains the critic on what answers earned."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.value_model_init_kwargs, str):
            self.value_model_init_kwargs = json.loads(self.value_model_init_kwargs)
        if self.critic not in CRITICS:
            raise ValueError(f"critic={self.critic!r}; allowed: {', '.join(CRITICS)}")
        if self.critic == "head" and self.value_model_init_kwargs:
            raise ValueError("value_model_init_kwargs has no effect with critic='head', which loads no model")


@accept_trl_fields(UNBUILT_PPO, aliases=PPO_ALIASES)
@dataclass
class PPOConfig(CriticOptions):
    """Options of `PPOTrainer`, on top of `OnlineConfig`, `PolicyLossOptions`, `CreditOptions` and `CriticOptions`."""

    fewest_generations = 1

    learning_rate: float = arg(3e-6, "Peak learning rate of the policy.")
    num_generations: int = arg(1, "Answers to each prompt.")
    num_iterations: int = arg(4, "Passes over each round: PPO's epochs.")
    num_mini_batches: int = arg(1, "Optimizer steps of a pass, if neither size of a round is given.")
    max_completion_length: int | None = arg(53, "Longest answer in tokens; longer ones are cut and counted.")
    temperature: float = arg(0.7, "The logits are divided by it, for sampling and for every log-prob; above 0.")
    loss_type: str = arg("ppo", "Name of a policy loss, or a callable.")  # text, for HfArgumentParser
    total_episodes: int | None = arg(None, "Answers of the whole run, which give max_steps; unset: as the epochs do.")
    stop_token: str | None = arg(None, "TRL's name for what always is: eos ends an answer.")
    stop_token_id: int | None = arg(None, "A token that ends an answer, beside the end-of-sequence tokens.")
    ptx_coef: float = arg(0.0, "Factor of the loss on supervised rows (PPO-ptx); 0: there are none.")
    ptx_batch_size: int | None = arg(
        None, "Supervised rows beside each micro-batch of answers; unset: per_device_train_batch_size."
    )
    ptx_max_length: int | None = arg(1024, "Longest supervised row in tokens; longer ones lose their end.")
    ptx_path: str | None = arg(None, "Where the supervised rows are, if ptx_dataset is not given.")
    router_aux_loss_coef: float | None = arg(
        None, "Factor of a mixture of experts' load-balancing loss; 0 leaves it out. Unset: the model's own."
    )
    sft_model_path: str | None = arg(
        None, "A place for scripts of TRL to say where their policy is; read by them alone."
    )
    reward_model_path: str | None = arg(
        None, "A place for scripts of TRL to say where their reward model is; read by them alone."
    )

    def __post_init__(self) -> None:
        if self.num_mini_batches > 1:
            micro_batches = self.num_mini_batches * self.gradient_accumulation_steps
            if self.generation_batch_size is not None or self.steps_per_generation not in (None, micro_batches):
                raise ValueError(
                    f"num_mini_batches={self.num_mini_batches} makes a round of {micro_batches} micro-batches, and "
                    "steps_per_generation or generation_batch_size says something else: set one of them"
                )
            self.steps_per_generation = micro_batches
        super().__post_init__()
        if self.stop_token not in (None, "eos"):
            raise ValueError(f"stop_token={self.stop_token!r}; allowed: eos, which is so without it, or stop_token_id")
        if self.num_generations == 1 and self.dynamic_sampling:
            raise ValueError("dynamic_sampling compares answers to a prompt, and num_generations=1: raise it")
        if self.total_episodes is not None:
            self._count_steps(self.total_episodes)

    def _count_steps(self, episodes: int) -> None:
        steps = self.round_plan().steps_of(episodes)
        if self.max_steps not in (-1, steps):
            raise ValueError(
                f"total_episodes={episodes} makes {steps} steps, and max_steps={self.max_steps}: set one of them"
            )
        self.max_steps = steps
