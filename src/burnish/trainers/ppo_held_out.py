"""What PPO says of itself: its objective in words, and what it measures on held-out prompts beside the rewards."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from burnish.data.collate import rollout_batch
from burnish.gae import gae
from burnish.models.adapters import plain_model
from burnish.models.critic import ActorCritic
from burnish.models.reference import ModelReference, Reference
from burnish.rollout.collect import ScoredGroups
from burnish.trainers.credit import Credit
from burnish.trainers.host import Host
from burnish.trainers.ppo_options import PPOConfig
from burnish.trainers.rescoring import Rescoring, evaluated, numbers_of, reference_logps
from burnish.types import Mean, RewardTable, RolloutBatch, wide

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HeldOutMixin(Host):
    """PPO's objective in words; KL and the critic on held-out answers."""

    own_critic: PreTrainedModel | None
    rescoring: Rescoring
    reference: Reference
    credit: Credit
    pad_token_id: int

    if TYPE_CHECKING:
        args: PPOConfig  # pyright: ignore[reportIncompatibleVariableOverride]

        @property
        def actor_critic(self) -> ActorCritic: ...

    def critic_words(self) -> str:
        """What the critic is."""
        own = self.own_critic
        return "a head on the policy's trunk" if own is None else f"{type(plain_model(own)).__name__} of its own"

    def objective_lines(self) -> list[str]:
        """Credit, KL and critic."""
        args = self.args
        lam = f"{args.lam:g}" if args.lam_length_alpha is None else f"1 - 1 / ({args.lam_length_alpha:g} x tokens)"
        apart = "" if args.lam_critic is None else f", of the critic {args.lam_critic:g}"
        place = "reward" if args.use_kl_in_reward else "loss"
        moved = "" if args.kl_target is None else f", moved to {args.kl_target:g} nats an answer"
        rate = args.learning_rate if args.critic_learning_rate is None else args.critic_learning_rate
        alone = f", alone for {args.critic_warmup_steps} steps" if args.critic_warmup_steps else ""
        return [
            f"advantages: GAE, gamma {args.gamma:g}, lambda {lam}{apart}; "
            f"KL in the {place}, {args.kl_coef:g} a nat{moved}",
            f"critic: {self.critic_words()}, learning rate {rate:g}{alone}",
            "Watch reward, objective/kl and val/explained_variance: the loss says little.",
        ]

    def measure_answers(self, groups: ScoredGroups, *, temperature: float) -> dict[str, Mean]:
        """KL to the reference of the sampled answers, and what the critic knows of their returns (lambda 1)."""
        none = Mean.of(torch.zeros(0))
        names = [
            *(["objective/kl"] if isinstance(self.reference, ModelReference) else []),
            "_returns",
            "_return_errors",
        ]
        if not groups.completions:
            return dict.fromkeys(names, none)
        batch = rollout_batch(
            [prompt.ids for prompt in groups.prompts],
            groups.completions,
            row_ids=[prompt.row_id for prompt in groups.prompts],
            pad_token_id=self.pad_token_id,
            temperature=temperature,
        ).to(self.args.device)
        with torch.no_grad(), self.accelerator.autocast():
            return dict(zip(names, self._held_out_means(batch, groups.rewards), strict=True))

    def _held_out_means(self, batch: RolloutBatch, rewards: RewardTable) -> list[Mean]:
        module, reference = self.actor_critic, self.reference
        own = self.rescoring.in_parts(batch, lambda parcel: numbers_of(evaluated(module, parcel), parcel))
        found: dict[str, Any] = {"old_logps": own["logps"], "bootstrap_value": own["bootstrap_value"][:, :1]}
        means: list[Mean] = []
        if isinstance(reference, ModelReference):
            scored = self.rescoring.in_parts(batch, lambda parcel: reference_logps(reference, parcel))
            found["ref_logps"] = scored["logps"]
            means.append(Mean.of(torch.where(batch.loss_mask, own["logps"] - scored["logps"], 0.0).sum(1)))
        totals, tokens = rewards.total().to(batch.row_id.device), rewards.token_rewards
        tokens = None if tokens is None else tokens.to(totals.device)
        earned = self.credit.earn(totals, tokens, replace(batch, **found), count=False)
        values = wide(own["values"])
        _, returns = gae(
            values, earned.rewards, earned.mask, gamma=self.args.gamma, lam=1.0, bootstrap=earned.bootstrap
        )
        weight = earned.mask.double()
        return [*means, Mean.of(returns, weight=weight), Mean.of(returns - values, weight=weight)]
