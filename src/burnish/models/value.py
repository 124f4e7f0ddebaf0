"""Scalar heads: a trunk whose `score` turns each hidden state into one number. Reward models and critics.

As in `burnish.models.forward`, trunk and head run inside one call of the wrapped `model(...)`: `install_values` gives
the model a `forward` that also understands `token_batch=`. The number of an answer is that of the state after its last
token, which is also what the plain class of transformers returns, as long as padding is a token that ends no text.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from burnish.models.adapter_files import attach_adapter, base_name, holds_copy, is_adapter_directory
from burnish.models.adapters import is_adapted, make_config, plain_model
from burnish.models.head_layer import Head, UnsupportedModelError, head_matrix
from burnish.models.introspect import trunk_of
from burnish.models.lean import install_lean
from burnish.models.load import resolve_model, with_dtype
from burnish.models.padding import own_pad_token
from burnish.models.sharing import Sharing, choose_sharing, run_trunk

if TYPE_CHECKING:
    from jaxtyping import Float
    from peft import PeftConfig, PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from burnish.types import TokenBatch

HEAD = "score"
PROBE_TOKENS = 6
# How a fresh head begins: hidden size -> standard deviation of its weights.
HEAD_INITS: Mapping[str, Callable[[int], float]] = {
    "zeros": lambda _: 0.0,  # a critic: no state is better than another yet
    "normal": lambda hidden_size: (hidden_size + 1) ** -0.5,  # a reward model: Stiennon et al. (2009.01325)
}


def install_values(
    model: PreTrainedModel,
    *,
    prefix_sharing: str = "auto",
    lean_activations: str = "auto",
    gradient_checkpointing: bool = False,
) -> Sharing:
    """Teach a sequence classifier to score a `TokenBatch`. Its weights, checkpoints and other calls do not change.

    Args:
        model: a trunk and a head `score` of one label. Install before `accelerator.prepare`.
        prefix_sharing: how prompts that several completions share are run; see `choose_sharing`.
        lean_activations: whether layers keep less for the backward pass; see `install_lean`.
        gradient_checkpointing: it will be trained so; `choose_sharing` then finds out how prompts are run there.

    Returns:
        How they are run.

    Raises:
        UnsupportedModelError: no such head, or one that does not reproduce the model's own logits.
        ValueError: `prefix_sharing` or `lean_activations` is unknown, or changes what this model computes.
    """
    own_forward = type(model).forward
    _check_head(model, functools.partial(own_forward, model))
    install_lean(trunk_of(model), lean_activations)
    sharing = choose_sharing(trunk_of(model), prefix_sharing, gradient_checkpointing=gradient_checkpointing)

    @functools.wraps(own_forward)
    def forward_or_score(
        self: PreTrainedModel, *args: Any, token_batch: TokenBatch | None = None, **kwargs: Any
    ) -> Any:
        if token_batch is None:
            return own_forward(self, *args, **kwargs)
        return {"values": values_of(self, token_batch, sharing)}

    model.forward = MethodType(forward_or_score, model)
    return sharing


def choose_values(model: PreTrainedModel, *, prefix_sharing: str = "auto") -> Sharing:
    """As `install_values` for a model that is not trained: it stays as it is, and its values come from `values_of`.

    A `forward` that somebody else gave the model has to say the same as its class's.
    """
    _check_head(model, model)
    return choose_sharing(trunk_of(model), prefix_sharing)


def values_of(model: PreTrainedModel, batch: TokenBatch, sharing: Sharing) -> Float[Tensor, "N T1"]:
    """As `token_values`, of the bare model, run as `choose_values` said."""
    hidden = run_trunk(trunk_of(model), batch, sharing=sharing).hidden  # (N, T+1, H)
    values = _apply(score_head(model), hidden)  # (N, T+1)
    there = nn.functional.pad(batch.completion_mask, (1, 0), value=True)
    return torch.where(there, values, torch.zeros_like(values))


def token_values(model: nn.Module, batch: TokenBatch) -> Float[Tensor, "N T1"]:
    """The head's value of the state before each completion token, and after the last one.

    Args:
        model: a model with `install_values`, bare or wrapped (DDP, PEFT, autocast).
        batch: N rows.

    Returns:
        (N, T+1), at least float32. A row of n tokens has n + 1 values; the n-th is its score. Exactly 0 behind it.
    """
    return model(token_batch=batch)["values"]


def row_scores(values: Float[Tensor, "N T1"], batch: TokenBatch) -> Float[Tensor, "N"]:
    """The score of each row: its value after its last token."""
    last = batch.completion_mask.sum(1, keepdim=True)  # (N, 1)
    return values.gather(1, last)[:, 0]


def score_head(model: PreTrainedModel) -> Head:
    """Matrix (1, H) and bias of the model's head, with the adapter that is active on it.

    Raises:
        UnsupportedModelError: the model has no head `score` of one label.
    """
    layer = dict(model.named_children()).get(HEAD)
    if layer is None or model.config.num_labels != 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} with num_labels={model.config.num_labels} has no head `score` of one number: give "
            "an AutoModelForSequenceClassification with num_labels=1, or a causal model's name for a fresh head"
        )
    return head_matrix(layer, owner=type(model).__name__)


def _apply(head: Head, hidden: Float[Tensor, "... H"]) -> Float[Tensor, "..."]:
    """weight · h + bias in at least float32, also under autocast: scores are differences of large sums."""
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, head.weight.dtype), torch.float32)
    bias = None if head.bias is None else head.bias.to(dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        return nn.functional.linear(hidden.to(dtype), head.weight.to(dtype), bias)[..., 0]


@torch.no_grad()
def _check_head(model: PreTrainedModel, forward: Callable[..., Any]) -> None:
    """Compare with the model's own logit of a few tokens, as `forward` says it."""
    head = score_head(model)
    embeddings: Any = model.get_input_embeddings()
    pad = model.config.get_text_config().pad_token_id
    known = [i for i in range(1, PROBE_TOKENS + 2) if i != pad][:PROBE_TOKENS]
    ids = torch.tensor([known], device=embeddings.weight.device) % len(embeddings.weight)  # (1, 6)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    was_training = model.training
    model.eval()
    try:
        hidden = trunk_of(model)(**inputs)[0][0, -1]  # (H,)
        own = forward(**inputs).logits[0, 0]
    finally:
        model.train(was_training)
    size = (hidden.double().norm() * head.weight.double().norm()).clamp(min=1e-12)
    error = float((_apply(head, hidden).double() - own.double()).abs() / size)
    if not error <= (1e-4 if own.dtype in (torch.float32, torch.float64) else 5e-2):
        raise UnsupportedModelError(
            f"{type(model).__name__} makes its score in a way that is not known: score(h) is off by {error:.2e}"
        )


def load_value_model(
    model: str | os.PathLike[str] | PreTrainedModel | PeftModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    head_init: str = "normal",
    seed: int = 0,
    trust_remote_code: bool = False,
    init_kwargs: dict[str, Any] | None = None,
    quantization_config: Any = None,
    option: str = "model_init_kwargs",
) -> PreTrainedModel | PeftModel:
    """A sequence classifier of one label: a saved one, or the trunk of a causal model with a fresh head.

    A fresh head is at least float32. The config gets a padding id of its own, see `own_pad_token`.

    Args:
        model: the name or path of a causal model, of a classifier, or of a saved adapter of one; or such a model. The
            trunk of a causal model in memory is copied.
        tokenizer: the model's; is not changed.
        head_init: a row of `HEAD_INITS`: how a fresh head begins.
        seed: of a fresh head; no other randomness is touched.
        trust_remote_code: run Python code that comes with the model.
        init_kwargs: keywords for `from_pretrained`; the trunk is float32 unless they say otherwise.
        quantization_config: one of them.
        option: what `init_kwargs` is called in an error.

    Raises:
        TypeError: not a name, a path or a transformers model.
        ValueError: a classifier of several labels, a family without classifiers, weights that are missing, or options
            of loading for a model that is loaded.
    """
    from transformers import PreTrainedModel

    quantised = {} if quantization_config is None else {"quantization_config": quantization_config}
    begin = functools.partial(_begin, head_init=head_init, seed=seed)
    if isinstance(model, str | os.PathLike):
        kwargs = {"trust_remote_code": trust_remote_code, **with_dtype(init_kwargs), **quantised}
        loaded = _load(os.fspath(model), kwargs, begin)
    elif not (isinstance(model, PreTrainedModel) or is_adapted(cast("Any", model))):
        raise TypeError(f"model is {type(model).__name__}; give a name, a path, or a transformers model")
    elif init_kwargs or quantised:
        given = option if init_kwargs else "quantization_config"
        raise ValueError(f"{given} is for models given by name; this model is loaded already")
    else:
        is_causal = type(plain_model(model)).__name__.endswith("ForCausalLM")
        loaded = _with_head(cast("PreTrainedModel", model), begin) if is_causal else model
    plain = plain_model(loaded)
    score_head(plain)
    config: Any = plain.config.get_text_config()
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    pad = own_pad_token(tokenizer, [index for index in ends if index is not None])
    config.pad_token_id = tokenizer.convert_tokens_to_ids(pad)
    return loaded


def is_classifier(name: str) -> bool:
    """A checkpoint is that of a sequence classifier, whose head was trained."""
    from transformers import AutoConfig

    kinds = AutoConfig.from_pretrained(resolve_model(name)).architectures or []
    return any(kind.endswith("ForSequenceClassification") for kind in kinds)


def train_head(options: PeftConfig | Mapping[str, Any]) -> PeftConfig:
    """The configuration of an adapter beside which the head is trained and saved, for it is random otherwise."""
    config: Any = make_config(options)
    config.task_type = "SEQ_CLS"  # PEFT's, for a model that generates nothing
    saved = list(config.modules_to_save or ())
    config.modules_to_save = saved if HEAD in saved else [*saved, HEAD]
    return config


def _load(name: str, kwargs: dict[str, Any], begin: Callable[[Any], None]) -> PreTrainedModel | PeftModel:
    from transformers import AutoModelForSequenceClassification

    path = resolve_model(name)
    if is_adapter_directory(path):
        base = _load(base_name(path), kwargs, begin)
        if not (is_classifier(base_name(path)) or holds_copy(path, HEAD)):
            raise ValueError(
                f"the adapter in {name} has no head, and {base_name(path)} has none either: what it says would be "
                f"random. An adapter of a reward model is saved with modules_to_save=[{HEAD!r}]"
            )
        return attach_adapter(cast("PreTrainedModel", base), path)
    with _quiet_loading(), torch.random.fork_rng():
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=1, output_loading_info=True, **kwargs
        )
    model, found = loaded
    missing = found["missing_keys"]
    if others := sorted(key for key in missing if not key.startswith(f"{HEAD}.")):
        raise ValueError(f"{name!r} comes without the weights {others[:4]}: what it says would be random")
    if missing:
        begin(model)
    return model


def _with_head(model: PreTrainedModel, begin: Callable[[Any], None]) -> PreTrainedModel:
    """A classifier with a copy of a causal model's trunk."""
    from transformers import AutoModelForSequenceClassification

    if is_adapted(model):
        raise ValueError(
            "the model is a causal model with an adapter, which has no head of one number: merge it first "
            "(model.merge_and_unload()), or give the plain model with peft_config"
        )
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    try:
        with torch.device("meta"):
            shell: Any = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise UnsupportedModelError(f"{type(model).__name__} has no sequence classifier in transformers") from error
    trunk = copy.deepcopy(model.base_model)
    if type(shell.base_model) is not type(trunk):
        raise UnsupportedModelError(f"{type(shell).__name__} does not have the trunk of {type(model).__name__}")
    shell.register_module(shell.base_model_prefix, trunk)
    begin(shell)
    return shell.train(model.training)


@torch.no_grad()
def _begin(model: Any, *, head_init: str, seed: int) -> None:
    """Give the model a fresh head, on the device of its trunk."""
    if head_init not in HEAD_INITS:
        raise ValueError(f"head_init={head_init!r}; allowed: {', '.join(HEAD_INITS)}")
    old, weight = model.score, next(trunk_of(model).parameters())
    dtype = torch.promote_types(weight.dtype, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    head: Any = nn.utils.skip_init(nn.Linear, old.in_features, 1, bias=old.bias is not None, dtype=dtype)
    head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * HEAD_INITS[head_init](old.in_features))
    if head.bias is not None:
        head.bias.zero_()
    head.register_forward_pre_hook(_in_own_precision)
    model.score = head.to(weight.device)


def _in_own_precision(head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """For the plain class's own calls: a float32 head on a trunk of lower precision."""
    return tuple(value.to(cast("nn.Linear", head).weight.dtype) for value in inputs)


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """transformers warns of a causal model's missing and unexpected heads; what matters is checked here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
