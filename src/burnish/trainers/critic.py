"""A trainer with a critic beside its policy: where it comes from, how it is optimised, where it is saved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from burnish.models.adapter_files import is_adapter_directory
from burnish.models.adapters import is_adapted, plain_model
from burnish.models.critic import DIRECTORY, ActorCritic, load_critic, save_critic, value_head
from burnish.models.introspect import disable_dropout
from burnish.models.load import load_tokenizer, place, resolve_model
from burnish.models.value import load_value_model
from burnish.rewards.models import is_model
from burnish.runtime import checkpoint
from burnish.trainers.base import init_kwargs_of
from burnish.trainers.compiling import compile_as_asked
from burnish.trainers.host import Host
from burnish.types import Mean, wide

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from burnish.trainers.ppo_options import CriticOptions


@dataclass(frozen=True, kw_only=True)
class CriticSource:
    """What a critic is made of.

    Attributes:
        model: the policy, by name or in memory.
        value_model: what was given as the critic, or None.
        reward_funcs: of the trainer.
        tokenizer: of the policy.
        options: of the critic.
    """

    model: Any
    value_model: Any
    reward_funcs: Any
    tokenizer: PreTrainedTokenizerBase
    options: CriticOptions


def make_critic(source: CriticSource) -> PreTrainedModel | None:
    """The critic as a model of its own, or None for a head on the policy's trunk.

    Raises:
        ValueError: two critics, none that fits the option, or one of another vocabulary.
    """
    options = source.options
    given: Any = options.value_model_path if source.value_model is None else source.value_model
    if given is not None:
        if "critic" in options.options_set:
            raise ValueError(f"value_model is given, and critic={options.critic!r} makes another one: set one of them")
    else:
        given = _SOURCES[options.critic](source)
    if given is None:
        return None
    check_vocabulary(given, source.tokenizer)
    init_kwargs: Any = options.value_model_init_kwargs
    if isinstance(given, str) and given is source.model:
        init_kwargs = {**init_kwargs_of(options), **(init_kwargs or {})}
    model = load_value_model(
        given,
        tokenizer=source.tokenizer,
        head_init="zeros",
        seed=options.seed,
        trust_remote_code=options.trust_remote_code,
        init_kwargs=init_kwargs,
        option="value_model_init_kwargs",
    )
    return cast("PreTrainedModel", model)


def _of_policy(source: CriticSource) -> Any:
    is_name = isinstance(source.model, str)
    if is_adapter_directory(resolve_model(source.model)) if is_name else is_adapted(source.model):
        raise ValueError(
            "critic='policy' copies the policy's trunk, and this policy has an adapter in it: give value_model=<the "
            "name of a model>, or critic='head', which reads the policy's own trunk"
        )
    return source.model


def _of_reward(source: CriticSource) -> Any:
    given = source.reward_funcs
    several = list(given) if isinstance(given, list | tuple) else [given]
    models = [function for function in several if is_model(function)]
    if len(models) != 1:
        raise ValueError(
            f"critic='reward' is a copy of the reward model, and reward_funcs has {len(models)} of them: give the one "
            "as value_model, or set critic to policy, head or new"
        )
    (model,) = models
    return model if isinstance(model, str) else copy.deepcopy(model).requires_grad_(True)


def _new(source: CriticSource) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    named = isinstance(source.model, str)
    config = AutoConfig.from_pretrained(resolve_model(source.model)) if named else plain_model(source.model).config
    dtype = torch.float32 if named else plain_model(source.model).dtype
    with torch.random.fork_rng():
        torch.manual_seed(source.options.seed)
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)


_SOURCES: dict[str, Callable[[CriticSource], Any]] = {
    "policy": _of_policy,
    "reward": _of_reward,
    "head": lambda _: None,
    "new": _new,
}


def check_vocabulary(critic: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a critic that knows the policy's token ids under another meaning.

    Raises:
        ValueError: its tokenizer has another vocabulary, or its embeddings have fewer rows than there are tokens.
    """
    why = "a critic reads the token ids of the policy's answers, one value for each, so it must have its vocabulary"
    fix = "Give a critic of the policy's family, or set critic='policy' or critic='head'."
    own = _tokenizer_of(critic)
    if own is not None and own.get_vocab() != tokenizer.get_vocab():
        mine, theirs = len(tokenizer.get_vocab()), len(own.get_vocab())
        differ = [token for token, index in own.get_vocab().items() if tokenizer.get_vocab().get(token) != index]
        raise ValueError(
            f"{why}; the tokenizer of the given one has {theirs} tokens, the policy's {mine}, and {len(differ)} differ"
            f"{f', such as {differ[0]!r}' if differ else ''}. {fix}"
        )
    if isinstance(critic, nn.Module):
        embeddings: Any = plain_model(critic).get_input_embeddings()
        if len(embeddings.weight) < len(tokenizer):
            raise ValueError(f"{why}; it has {len(embeddings.weight)} embeddings for {len(tokenizer)} tokens. {fix}")


def _tokenizer_of(critic: Any) -> Any:
    """The tokenizer that lies beside a critic, or None if that is not known."""
    name = critic if isinstance(critic, str) else str(plain_model(critic).config._name_or_path)
    if not name or (not isinstance(critic, str) and not Path(name).is_dir()):
        return None
    try:
        return load_tokenizer(name)
    except (OSError, ValueError):
        return None


class CriticMixin(Host):
    """The critic's part of a trainer. `own_critic` is set before the Trainer is."""

    own_critic: PreTrainedModel | None

    if TYPE_CHECKING:
        args: CriticOptions  # pyright: ignore[reportIncompatibleVariableOverride]

        def of_round(self, value: float) -> Mean: ...

    def trained_module(self, policy: PreTrainedModel) -> nn.Module:
        """The policy with its critic."""
        if self.own_critic is not None:
            place(self.own_critic, self.args.device)
            if self.args.disable_dropout:
                disable_dropout(self.own_critic)
        critic = value_head(policy) if self.own_critic is None else self.own_critic
        both = ActorCritic(
            policy,
            critic,
            prefix_sharing=self.args.prefix_sharing,
            lean_activations=self.args.lean_activations,
            gradient_checkpointing=bool(self.args.gradient_checkpointing),
        )
        if self.own_critic is not None:
            compile_as_asked(self.own_critic, self.args)
        return both

    @property
    def actor_critic(self) -> ActorCritic:
        """Policy and critic, not wrapped."""
        return cast("ActorCritic", self.accelerator.unwrap_model(self.model))

    @property
    def policy(self) -> PreTrainedModel:
        """The policy as it is trained, not wrapped and without its critic."""
        return cast("PreTrainedModel", self.actor_critic.policy)

    @property
    def critic(self) -> nn.Module:
        """The critic: a model of its own, or a head on the policy's trunk."""
        return self.actor_critic.critic

    # Optimisation.

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """One optimizer, with groups for policy and critic, each with and without weight decay."""
        del model
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            if {"params", "model", "optimizer_dict"} & set(options) or not isinstance(kind, type):
                raise ValueError(
                    f"optim={self.args.optim!r} makes parameter groups of its own, and the critic needs some as well: "
                    "take another, or give optimizers=(optimizer, scheduler)"
                )
            self.optimizer = kind(self._parameter_groups(), **options)
        return self.optimizer

    def _parameter_groups(self) -> list[dict[str, Any]]:
        args, decayed = self.args, set(self.get_decay_parameter_names(self.model))
        rate = args.learning_rate if args.critic_learning_rate is None else args.critic_learning_rate
        decay = args.weight_decay if args.critic_weight_decay is None else args.critic_weight_decay
        groups: list[dict[str, Any]] = []
        for part, settings in {"policy": (args.learning_rate, args.weight_decay), "critic": (rate, decay)}.items():
            named = [(name, p) for name, p in self.model.named_parameters() if name.startswith(f"{part}.")]
            trained = [(name, p) for name, p in named if p.requires_grad]
            for is_decayed, own_decay in ((True, settings[1]), (False, 0.0)):
                parameters = [p for name, p in trained if (name in decayed) is is_decayed]
                groups.append({"params": parameters, "lr": settings[0], "weight_decay": own_decay, "part": part})
        return [group for group in groups if group["params"]]

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The policy's schedule begins when the policy is trained; the critic's with the run."""
        args = self.args
        if self.lr_scheduler is None and (args.critic_lr_scheduler_type or args.critic_warmup_steps):
            own = optimizer or self.optimizer
            frozen = min(args.critic_warmup_steps, num_training_steps - 1)
            of_policy = self._schedule(args.lr_scheduler_type, num_training_steps - frozen)
            of_critic = self._schedule(args.critic_lr_scheduler_type or args.lr_scheduler_type, num_training_steps)
            schedules = {"policy": lambda step: of_policy(max(step - frozen, 0)), "critic": of_critic}
            self.lr_scheduler = LambdaLR(own, [schedules[group.get("part", "policy")] for group in own.param_groups])
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _schedule(self, kind: Any, num_steps: int) -> Callable[[int], float]:
        """Step -> factor of the peak learning rate."""
        made = get_scheduler(
            kind,
            optimizer=torch.optim.SGD([torch.zeros(1)], lr=1.0),
            num_warmup_steps=self.args.get_warmup_steps(num_steps),
            num_training_steps=num_steps,
            scheduler_specific_kwargs=cast("Any", self.args.lr_scheduler_kwargs),
        )
        if not isinstance(made, LambdaLR):
            raise ValueError(
                f"the schedule {kind!r} does not depend on the step alone, so policy and critic cannot have one each: "
                "leave critic_lr_scheduler_type and critic_warmup_steps out, or take another"
            )
        return made.lr_lambdas[0]

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Clip policy and critic apart, unless a norm is not finite; the norm of both together."""
        self.accelerator.unscale_gradients()
        args, parts = self.args, self.actor_critic
        limit = args.max_grad_norm if args.critic_max_grad_norm is None else args.critic_max_grad_norm
        found = {"policy": (parts.policy, args.max_grad_norm), "val": (parts.critic, limit)}
        norms = {name: _norm_of(list(part.parameters()), args.device) for name, (part, _) in found.items()}
        total = torch.stack(list(norms.values())).norm()
        if bool(total.isfinite()):
            for name, (part, largest) in found.items():
                clip_grads_with_norm_(part.parameters(), largest, norms[name])
                self.metric_buffer.add({f"{name}/grad_norm": self.of_round(float(norms[name]))})
        return total

    # Files.

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, None)
        if self.args.should_save:
            directory = Path(output_dir or self.run_path)
            is_checkpoint = directory.name.startswith(checkpoint.UNFINISHED)
            save_critic(self.actor_critic, directory, tokenizer=self.tokenizer, is_checkpoint=is_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if model is None and not load_critic(self.actor_critic, Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(str(Path(resume_from_checkpoint) / DIRECTORY), self.critic)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            self._load_from_checkpoint(self.state.best_model_checkpoint)


def _norm_of(parameters: Sequence[Tensor], device: torch.device) -> Tensor:
    """Length of the gradient of all parameters together; 0 of those that have none."""
    return wide(get_total_norm([p.grad for p in parameters if p.grad is not None]).to(device))
