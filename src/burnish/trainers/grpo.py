"""GRPO and its family: groups of answers to a prompt, compared with each other; `policy_gradient` has the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from burnish.compat import (
    GRPO_ALIASES,
    UNBUILT_GRPO,
    UNBUILT_GRPO_ARGUMENTS,
    UNSET_BY_NONE,
    accept_trl_fields,
    refuse_unbuilt,
)
from burnish.losses.kl import with_kl_penalty
from burnish.trainers.config import arg
from burnish.trainers.policy_gradient import KLUse, PolicyGradientTrainer
from burnish.trainers.policy_options import PolicyLossOptions
from burnish.types import RewardTable, RolloutBatch


@accept_trl_fields(UNBUILT_GRPO, aliases=GRPO_ALIASES, unset_by_none=UNSET_BY_NONE)
@dataclass
class GRPOConfig(PolicyLossOptions):
    """Options of `GRPOTrainer`, on top of `OnlineConfig` and `PolicyLossOptions`."""

    beta: float = arg(0.0, "Strength of the pull to the reference; 0: no reference is loaded.")
    kl_estimator: str = arg(
        "k3", "Estimator of the KL to the reference: k1, k2, k3, abs, or a callable."
    )  # text, for HfArgumentParser
    use_kl_in_reward: bool = arg(False, "Take the KL off the rewards, instead of adding it to the loss.")
    use_bias_correction_kl: bool = arg(
        True, "Multiply the KL in the loss by the ratio of policy to old policy: right for k1 and k3, and not for k2."
    )
    advantage: str = arg(
        "group", "How rewards become advantages: group, rloo, gdpo, reinforce_pp, …, or a callable."
    )  # text, for HfArgumentParser
    scale_rewards: Any = arg("group", "What advantages are divided by: the std of the group or the batch, or none.")
    multi_objective_aggregation: str = arg(
        "sum_then_normalize", "normalize_then_sum normalises each reward function by itself: the advantage gdpo."
    )
    router_aux_loss_coef: float | None = arg(
        None, "Factor of a mixture of experts' load-balancing loss; 0 leaves it out. Unset: the model's own."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multi_objective_aggregation not in ("sum_then_normalize", "normalize_then_sum"):
            raise ValueError(
                f"multi_objective_aggregation={self.multi_objective_aggregation!r}; allowed: sum_then_normalize, "
                "normalize_then_sum"
            )
        if self.multi_objective_aggregation == "normalize_then_sum":
            if self.advantage not in ("group", "gdpo"):
                raise ValueError(
                    f"multi_objective_aggregation='normalize_then_sum' is the advantage 'gdpo', and advantage="
                    f"{self.advantage!r} is another one: set one of them"
                )
            self.advantage = "gdpo"


class GRPOTrainer(PolicyGradientTrainer):
    """Group-relative policy optimisation.

    Arguments as in `OnlineTrainer`; with `beta` above 0 there is a reference.

    Source: Shao et al., "DeepSeekMath" (2402.03300).
    """

    config_class = GRPOConfig
    args: GRPOConfig

    def __init__(self, model: Any, reward_funcs: Any = None, args: GRPOConfig | None = None, **kwargs: Any) -> None:
        for name in kwargs.keys() & UNBUILT_GRPO_ARGUMENTS:
            refuse_unbuilt(name, kwargs.pop(name), UNBUILT_GRPO_ARGUMENTS)
        super().__init__(model, reward_funcs, args, **kwargs)

    def kl_options(self, options: GRPOConfig) -> KLUse:
        """`beta` and what is said of it."""
        return KLUse(
            option="beta",
            coefficient=options.beta,
            estimator=options.kl_estimator,
            in_reward=options.use_kl_in_reward,
            correct=options.use_bias_correction_kl,
        )

    def objective_lines(self) -> list[str]:
        """Advantage and KL."""
        return [
            f"advantage {self.credit_entry.name}, beta {self.args.beta:g}",
            "The loss hovers around 0 whatever happens, since advantages of a group sum to 0: watch the reward.",
        ]

    def advantage_choice(self, options: GRPOConfig) -> Any:
        """The option `advantage`."""
        return options.advantage

    def _shape_rewards(self, rewards: RewardTable, batch: RolloutBatch) -> RewardTable:
        if not self.args.use_kl_in_reward:
            return rewards
        assert batch.old_logps is not None
        assert batch.ref_logps is not None
        kl = self.objective.kl(batch.old_logps, batch.ref_logps).cpu()
        return with_kl_penalty(rewards, kl, batch.loss_mask.cpu(), coefficient=self.args.beta)

    def describe_method(self) -> dict[str, Any]:
        """As in `PolicyTrainer`, with the loss and the advantage."""
        rows = [self.objective.entry, self.credit_entry]
        parts = [{"name": row.name, "paper": row.paper, "weight": 1.0} for row in rows]
        return {**super().describe_method(), "losses": parts}
