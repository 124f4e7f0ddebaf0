"""PPO: a critic says what each token's answer will earn, and what turns out better than that becomes likelier.

    prompts -> generate -> score -> _rescore: old and reference log-probs, values -> _credit: KL, GAE -> queue
    RolloutBatch -> policy loss + vf_coef x value loss (+ KL, entropy, supervised rows) -> _compute_loss

A pass over a round is what PPO calls an epoch, an optimizer step its mini-batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from burnish.data.prompt_ids import with_prompts
from burnish.data.sources import load_rows
from burnish.data.supervised import prepare_supervised
from burnish.models.critic import critic_values
from burnish.models.load import load_tokenizer
from burnish.models.vision import tokenizer_of
from burnish.rollout.whole import WholeRound
from burnish.runtime.distributed import sum_over_ranks
from burnish.runtime.state import Counter, Stateful
from burnish.trainers.base import init_kwargs_of
from burnish.trainers.credit import Credit
from burnish.trainers.critic import CriticMixin, CriticSource, make_critic
from burnish.trainers.policy_gradient import KLUse, PolicyGradientTrainer
from burnish.trainers.ppo_held_out import HeldOutMixin
from burnish.trainers.ppo_options import PPOConfig
from burnish.trainers.ppo_terms import policy_metrics, unmeasured, value_term
from burnish.trainers.ptx import SupervisedStream, supervised_term
from burnish.types import LossOutput, RolloutBatch, TokenBatch

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    from burnish.models.reference import ModelReference

FOLLOWED_KL = ("policy/approxkl_avg", 0.0)  # of the last step


class PPOTrainer(CriticMixin, HeldOutMixin, PolicyGradientTrainer):
    """Proximal policy optimisation with a critic.

    Arguments as in `OnlineTrainer`, and:

    Args:
        ref_model: the reference policy, a model or a name; with `kl_coef` above 0 and None, a frozen copy of the
            policy, taken now.
        value_model: the critic, a sequence classifier with one label, a causal model whose trunk gets a head, or the
            name of either; None: as the option `critic` says.
        ptx_dataset: supervised rows for `ptx_coef`, each a prompt and a completion, messages, or text.
        reward_model: TRL's name for `reward_funcs`.

    Source: Schulman et al. (1707.06347); for language models Ziegler et al. (1909.08593), Ouyang et al. (2203.02155).
    """

    config_class = PPOConfig
    args: PPOConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: PPOConfig | None = None,
        *,
        reward_model: Any = None,
        ref_model: str | PreTrainedModel | ModelReference | None = None,
        value_model: str | PreTrainedModel | None = None,
        ptx_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        **kwargs: Any,
    ) -> None:
        options: PPOConfig = self.checked_args(args)
        if reward_model is not None and reward_funcs is not None:
            raise ValueError("reward_model is TRL's name for reward_funcs: give one of them")
        rewards = reward_model if reward_funcs is None else reward_funcs
        supervised = options.ptx_path if ptx_dataset is None else ptx_dataset
        if (supervised is None) is (options.ptx_coef > 0):
            raise ValueError(
                f"ptx_coef={options.ptx_coef:g}, and supervised rows are {'not ' if supervised is None else ''}given: "
                "set both ptx_coef and ptx_dataset (or ptx_path), or neither"
            )
        self.credit, self.num_answers, self.num_early_stops = Credit(options), Counter(), Counter()
        processing_class = processing_class or load_tokenizer(
            model, trust_remote_code=options.trust_remote_code, init_kwargs=init_kwargs_of(options)
        )
        self._policy_tokenizer = tokenizer_of(processing_class)
        if isinstance(reward_model, PreTrainedModel) and not reward_model.config._name_or_path:
            kwargs.setdefault("reward_processing_classes", self._policy_tokenizer)
        self.own_critic = make_critic(
            CriticSource(
                model=model,
                value_model=value_model,
                reward_funcs=rewards,
                tokenizer=self._policy_tokenizer,
                options=options,
            )
        )
        self._started, self._counted = None, 0
        self.critic_rate: float | None = None  # of the running step
        super().__init__(model, rewards, options, ref_model=ref_model, processing_class=processing_class, **kwargs)
        self.ptx = None if supervised is None else self._supervised(supervised)
        if options.stop_token_id is not None:
            self.sampling = replace(self.sampling, end_token_ids=(*self.end_token_ids, options.stop_token_id))

    def _checked_prompts(self, **given: Any) -> dict[str, Any]:
        """As in `OnlineTrainer`; rows of TRL's scripts have `input_ids` instead of a prompt."""

        def read(data: Any, name: str) -> Any:
            return None if data is None else with_prompts(load_rows(data), self._policy_tokenizer, name=name)

        texts = {
            name: {key: read(part, key) for key, part in data.items()}
            if isinstance(data, Mapping)
            else read(data, name)
            for name, data in given.items()
        }
        return super()._checked_prompts(**texts)

    def _supervised(self, source: Any) -> SupervisedStream:
        args = self.args
        rows, report = prepare_supervised(
            source,
            self.tokenizer,
            end_ids=self.end_token_ids,
            max_length=args.ptx_max_length,
            on_bad_row=args.on_bad_row,
        )
        self.data_reports["ptx"] = report
        return SupervisedStream(
            rows,
            report,
            batch_size=args.ptx_batch_size or args.per_device_train_batch_size,
            pad_token_id=self.pad_token_id,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )

    def kl_options(self, options: PPOConfig) -> KLUse:
        """`kl_coef` and what is said of it."""
        return KLUse(
            option="kl_coef",
            coefficient=options.kl_coef,
            estimator=options.kl_estimator,
            in_reward=options.use_kl_in_reward,
            correct=options.use_bias_correction_kl,
        )

    def followed(self, options: PPOConfig) -> frozenset[tuple[str, float | None]]:
        """As in `PolicyGradientTrainer`, and the distance from the old policy if a round may be given up for it."""
        own = frozenset[tuple[str, float | None]]() if options.early_stop_kl is None else frozenset({FOLLOWED_KL})
        return super().followed(options) | own

    def needs_old_logps(self, options: PPOConfig) -> bool:
        """A round is always scored: the critic's values come out of the same forward."""
        del options
        return True

    @property
    def first_policy_step(self) -> int:
        """Until then the critic is trained alone."""
        return self.args.critic_warmup_steps

    # A round.

    @property
    def trains_on_rescored(self) -> bool:
        """As in `PolicyGradientTrainer`, where the policy is trained, and on these rows alone."""
        return super().trains_on_rescored and self.ptx is None and self.state.global_step >= self.first_policy_step

    def _generate_and_score_completions(self, prompts: Sequence[Any]) -> RolloutBatch:
        batch = super()._generate_and_score_completions(prompts)
        self.num_answers.add(self.plan.prompts * self.plan.num_generations)
        return batch

    def _credit(self, whole: WholeRound, batch: RolloutBatch) -> RolloutBatch:
        args, lam = self.args, self.args.lam_critic
        if self.state.global_step < args.critic_warmup_steps and args.critic_warmup_lam is not None:
            lam = args.critic_warmup_lam
        credited, means, numbers = self.credit(whole, batch, lam_critic=lam)
        self.metric_buffer.add({**means, **{name: self.of_round(value) for name, value in numbers.items()}})
        return credited

    def take_parcels(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> Sequence[TokenBatch]:
        """As in `OnlineTrainer`, with supervised rows; a round whose policy has moved too far is given up first."""
        if self.args.early_stop_kl is not None and not self.queue.is_empty and self._moved_too_far():
            num_left = self.queue.drop_rest()
            self.num_early_stops.add(1)
            step = self.state.global_step
            message = f"step {step}: the policy is too far from the one that drew the round; {num_left} steps left out"
            self.tell("early_stop", message, show=False, step=step, left_out=num_left)
        parcels: Any = super().take_parcels(epoch_iterator, num_batches, device)
        if self.ptx is None or self.state.global_step < self.first_policy_step:
            return parcels
        return self.ptx.beside(parcels, rank=self.args.process_index, size=self.args.world_size, device=device)

    def _moved_too_far(self) -> bool:
        """Whether the last step's distance is above the limit; over all ranks, before the means are updated."""
        total, weight = sum_over_ranks(self.running_means.collected()[FOLLOWED_KL[0]].to(self.args.device)).tolist()
        return weight > 0 and total / weight > (self.args.early_stop_kl or 0.0)

    # A step.

    def _compute_loss(self, model: nn.Module, batch: RolloutBatch) -> LossOutput:
        """Terms and metrics of one micro-batch."""
        if self.state.global_step < self.first_policy_step:
            values = critic_values(model, batch)[:, :-1]
            term, metrics = value_term(values, batch, self.args)
            return LossOutput(terms=(term,), metrics={**metrics, **unmeasured(self.follows, values)})
        stats = self._get_per_token_logps_and_entropies(model, batch)
        terms, metrics = self._policy_terms(stats, batch)
        term, of_values = value_term(stats.extra["values"][:, :-1], batch, self.args)
        named = [replace(term, name="policy_avg") if term.name == "policy" else term for term in terms]
        terms = (*named, term, *supervised_term(stats, coefficient=self.args.ptx_coef))
        return LossOutput(terms=terms, metrics={**metrics, **of_values, **policy_metrics(stats, batch, metrics)})

    def prepare_step(self, model: nn.Module, parcels: Sequence[TokenBatch]) -> list[TokenBatch]:
        """As in `PolicyGradientTrainer`; a KL in the loss has the coefficient that its controller says."""
        if not self.args.use_kl_in_reward:
            self.objective = replace(self.objective, kl_coef=self.credit.kl_coef)
        groups = [group for group in self.optimizer.param_groups if group.get("part") == "critic"]
        self.critic_rate = groups[0]["lr"] if groups else None
        return super().prepare_step(model, parcels)

    def stateful(self) -> dict[str, Stateful]:
        """As in `PolicyGradientTrainer`, controllers and running statistics of the credit, and counters."""
        own = {"kl_control": self.credit.kl_control, "reward_scale": self.credit.scale, "ptx": self.ptx}
        counters = {"num_answers": self.num_answers, "num_early_stops": self.num_early_stops}
        return {**super().stateful(), **counters, **{name: item for name, item in own.items() if item is not None}}

    def binding(self) -> dict[str, Any]:
        """As in `PolicyGradientTrainer`, and the supervised rows."""
        own = {} if self.ptx is None else {"ptx_data": self.ptx.report.fingerprint}
        return {**super().binding(), **own}

    def describe_method(self) -> dict[str, Any]:
        """As in `PolicyTrainer`, with the loss and the advantage."""
        loss, gae = self.objective.entry, {"name": "gae", "paper": "1506.02438", "weight": 1.0}
        parts = [{"name": loss.name, "paper": loss.paper, "weight": 1.0}, gae]
        return {**super().describe_method(), "losses": parts, "critic": self.critic_words()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `PolicyTrainer`, with TRL's names for answers and learning rate."""
        if "loss" in logs and "grad_norm" in logs:
            now = time.perf_counter()
            count = self.num_answers.value
            if self._started is not None:
                logs["eps"] = (count - self._counted) / max(now - self._started, 1e-9)
            self._started, self._counted = now, count
            logs |= {"episode": count, "lr": logs["learning_rate"], "num_early_stops": self.num_early_stops.value}
            if self.critic_rate is not None:
                logs["val/lr"] = self.critic_rate
        super().log(logs, start_time)
