"""Options of policy losses, for every trainer that has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from burnish.trainers.config import arg
from burnish.trainers.rollout_options import OnlineConfig


@dataclass
class PolicyLossOptions(OnlineConfig):
    """The policy loss and its hyper-parameters.

    Raises:
        ValueError: a number out of its range.
    """

    loss_type: Any = arg("dapo", "Name of a policy loss, or a callable.")
    loss_kwargs: dict[str, Any] | None = arg(None, "Hyper-parameters of the loss that are no options of their own.")
    epsilon: float = arg(0.2, "How far the ratio may fall below 1.")
    epsilon_high: float | None = arg(None, "How far the ratio may rise above 1; unset: epsilon.")
    delta: float | None = arg(None, "Largest ratio that counts where the advantage is negative.")
    importance_sampling_level: str | None = arg(
        None, "What the ratio is of: token, sequence or sequence_token; unset: as the loss has it."
    )
    sapo_temperature_neg: float = arg(1.05, "Temperature of SAPO's gate where the advantage is negative.")
    sapo_temperature_pos: float = arg(1.0, "Temperature of SAPO's gate where the advantage is positive.")
    vespo_k_pos: float = arg(2.0, "Power of VESPO's weight where the advantage is positive.")
    vespo_lambda_pos: float = arg(3.0, "Decay of VESPO's weight where the advantage is positive.")
    vespo_k_neg: float = arg(3.0, "Power of VESPO's weight where the advantage is negative.")
    vespo_lambda_neg: float = arg(2.0, "Decay of VESPO's weight where the advantage is negative.")
    top_entropy_quantile: float = arg(
        1.0, "Share of a round's tokens, those of highest entropy, that the policy loss reads, above 0 up to 1."
    )
    off_policy_mask_threshold: float | None = arg(
        None, "Leave out answers worse than the baseline whose mean KL of sampler to policy is above this."
    )
    entropy_coef: float = arg(0.0, "Factor of an entropy bonus.")
    use_adaptive_entropy: bool = arg(False, "Move entropy_coef so that the entropy stays near entropy_target.")
    entropy_coef_min: float = arg(0.0, "Least entropy_coef, if it is moved.")
    entropy_coef_max: float = arg(1.0, "Largest entropy_coef, if it is moved.")
    entropy_coef_delta: float = arg(0.005, "By how much entropy_coef is moved after a step.")
    entropy_target: float = arg(0.2, "The entropy in nats that it is moved towards.")
