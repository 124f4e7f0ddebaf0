"""Policy and critic in one module, since the Trainer wraps one: each micro-batch is one call of it.

The critic is a model of its own, a trunk with a scalar head (`burnish.models.value`), or such a head on the policy's
trunk. Both are saved in the directory `critic` beside the policy.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from burnish.models.adapter_files import load_adapter_weights, save_adapter
from burnish.models.adapters import is_adapted, plain_model
from burnish.models.introspect import trunk_of
from burnish.models.value import install_values, token_values
from burnish.types import MixedBatch

if TYPE_CHECKING:
    from jaxtyping import Float
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from burnish.models.divergence import Teacher
    from burnish.types import TokenBatch

DIRECTORY = "critic"
HEAD_FILE = "head.safetensors"


class ValueHead(nn.Linear):
    """A critic that is one number of the policy's hidden state. Begins at 0; at least float32."""

    def __init__(self, hidden_size: int, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__(hidden_size, 1, bias=False, dtype=torch.promote_types(dtype, torch.float32), device=device)
        nn.init.zeros_(self.weight)

    def forward(self, hidden: Float[Tensor, "N T1 H"]) -> Float[Tensor, "N T1"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """weight · h, also under autocast in the head's own precision."""
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.to(self.weight.dtype))[..., 0]


class ActorCritic(nn.Module):
    """A policy with its critic.

    Args:
        policy: with `install_forward`.
        critic: a model of its own, or a `ValueHead` on the policy's trunk.
        prefix_sharing: how a critic of its own runs prompts that several completions share; see `choose_sharing`.
        lean_activations: whether the layers of a critic of its own keep less; see `install_lean`.
        gradient_checkpointing: they will be computed again in the backward pass.
    """

    def __init__(
        self,
        policy: nn.Module,
        critic: nn.Module,
        *,
        prefix_sharing: str = "auto",
        lean_activations: str = "auto",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic
        if not self.shares_trunk:
            install_values(
                plain_model(critic),
                prefix_sharing=prefix_sharing,
                lean_activations=lean_activations,
                gradient_checkpointing=gradient_checkpointing,
            )

    @property
    def shares_trunk(self) -> bool:
        """The critic is a head on the policy's trunk."""
        return isinstance(self.critic, ValueHead)

    def forward(
        self,
        *,
        token_batch: TokenBatch,
        needs: frozenset[str] = frozenset(),
        teacher: Teacher | None = None,
        temperature: float = 1.0,
        only_values: bool = False,
    ) -> dict[str, Any]:
        """What the policy says, with the critic's `values` (N, T+1): before each token, and after the last.

        Args:
            token_batch: N rows; the supervised rows of a `MixedBatch` are scored as well, as `supervised_logps`.
            needs: of the policy's forward.
            teacher: of the policy's forward.
            temperature: of the policy's forward; that of supervised rows is 1.
            only_values: the policy is not trained: nothing but `values`, and no gradient for its trunk.
        """
        if only_values:
            return {"values": self._values_alone(token_batch)}
        own = needs | {"hidden"} if self.shares_trunk else needs
        outputs = self.policy(token_batch=token_batch, needs=own, teacher=teacher, temperature=temperature)
        if self.shares_trunk:
            hidden = outputs["hidden"] if "hidden" in needs else outputs.pop("hidden")
            outputs["values"] = _there(self.critic(hidden), token_batch)
        else:
            outputs["values"] = token_values(self.critic, token_batch)
        if isinstance(token_batch, MixedBatch) and token_batch.supervised is not None:
            scored = self.policy(token_batch=token_batch.supervised, needs=frozenset(), teacher=None, temperature=1.0)
            outputs["supervised_logps"] = scored["logps"]
        return outputs

    def _values_alone(self, batch: TokenBatch) -> Float[Tensor, "N T1"]:
        if not self.shares_trunk:
            return token_values(self.critic, batch)
        unscored = replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))  # the trunk runs, the head does not
        with torch.no_grad():
            hidden = self.policy(token_batch=unscored, needs=frozenset({"hidden"}))["hidden"]
        return _there(self.critic(hidden), batch)

    @property
    def config(self) -> Any:
        """That of the policy: transformers aligns its special tokens with the tokenizer's."""
        return cast("Any", self.policy).config

    @property
    def generation_config(self) -> Any:
        """That of the policy."""
        return plain_model(self.policy).generation_config

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Recompute activations of both."""
        for model in self._models():
            model.activation_checkpointing_enable(**options)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """The same, as it was called before transformers 5.23."""
        for model in self._models():
            model.gradient_checkpointing_enable(**options)

    def _models(self) -> list[Any]:
        return [self.policy] if self.shares_trunk else [self.policy, self.critic]


def critic_values(model: nn.Module, batch: TokenBatch) -> Float[Tensor, "N T1"]:
    """The critic's values alone.

    Args:
        model: an `ActorCritic`, bare or wrapped.
        batch: N rows.

    Returns:
        (N, T+1): before each token, and after the last; 0 behind it. The policy gets no gradient.
    """
    return model(token_batch=batch, only_values=True)["values"]


def value_head(policy: nn.Module) -> ValueHead:
    """A fresh head on the policy's trunk."""
    trunk = trunk_of(plain_model(policy))
    weight = next(trunk.parameters())
    return ValueHead(plain_model(policy).config.get_text_config().hidden_size, dtype=weight.dtype, device=weight.device)


def _there(values: Float[Tensor, "N T1"], batch: TokenBatch) -> Float[Tensor, "N T1"]:
    """0 behind the end of each row, as `token_values` has it."""
    there = nn.functional.pad(batch.completion_mask, (1, 0), value=True)
    return torch.where(there, values, torch.zeros_like(values))


def save_critic(
    model: ActorCritic, directory: Path, *, tokenizer: PreTrainedTokenizerBase | None, is_checkpoint: bool
) -> None:
    """Write the critic into `directory`/critic.

    A model of its own, and a head on a policy without adapters, are sequence classifiers that plain `from_pretrained`
    reads. In a checkpoint, and on an adapted policy, a head is its weights alone, in head.safetensors.
    """
    place = directory / DIRECTORY
    place.mkdir(parents=True, exist_ok=True)
    if isinstance(model.critic, ValueHead):
        if is_checkpoint or is_adapted(model.policy):
            save_file({"weight": model.critic.weight.detach().contiguous()}, place / HEAD_FILE)
            return
        critic: Any = classifier_of(cast("PreTrainedModel", model.policy), model.critic)
    else:
        critic = model.critic
    if is_adapted(critic):
        save_adapter(cast("PeftModel", critic), str(place))
    else:
        critic.save_pretrained(str(place), save_original_format=not is_checkpoint)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(place))


def load_critic(model: ActorCritic, directory: Path) -> bool:
    """Put what a checkpoint holds into the critic, in place; False for a model that transformers has to read.

    Raises:
        ValueError: the files are of another critic.
    """
    place = directory / DIRECTORY
    if isinstance(model.critic, ValueHead):
        if not (place / HEAD_FILE).is_file():
            raise ValueError(f"{place} has no {HEAD_FILE}: the critic of that run was no head on the policy's trunk")
        weight = load_file(place / HEAD_FILE)["weight"]
        with torch.no_grad():
            model.critic.weight.copy_(weight)
        return True
    if is_adapted(model.critic):
        load_adapter_weights(cast("PeftModel", model.critic), place)
        return True
    return False


def classifier_of(policy: PreTrainedModel, head: ValueHead) -> PreTrainedModel:
    """The sequence classifier that a head on the policy's trunk is: it shares the weights of both."""
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    with torch.device("meta"):
        shell: Any = AutoModelForSequenceClassification.from_config(config)
    shell.register_module(shell.base_model_prefix, policy.base_model)
    shell.score = head
    return shell
