"""Log-probs that a reference computed once, on disk: a flat tensor for each data set, under a key of what made them.

    <cache>/reference/<key>.safetensors     one tensor, `logps`; its SHA-256 and the parts of the key are beside it

A file is written beside its place and renamed, so it is whole or absent; what is read is checked against the digest,
the expected number of values, and for values that are not finite.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from burnish.models.adapter_reference import AdapterReference
from burnish.models.adapter_summary import adapter_settings
from burnish.models.forward import forward
from burnish.models.introspect import quantisation_tensors
from burnish.models.load import cache_directory
from burnish.models.reference import FromColumns, FrozenModel, ModelReference, sampled_fingerprint

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from burnish.models.divergence import Teacher
    from burnish.types import PreferenceBatch, TokenBatch, TokenStats

NAME, ABOUT = "logps", "burnish"  # the tensor, and the entry of the header that says what it is
IRRELEVANT = ("_name_or_path", "transformers_version", "architectures", "use_cache", "dtype")  # in a configuration
CHUNK = 1 << 24  # values of a weight that are brought to the CPU at a time


class DamagedCacheError(ValueError):
    """A file of log-probs is not what was written; the message says why."""


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """Everything that determines a reference's log-probs of a data set. Another value is another file.

    Attributes:
        weights: `content_fingerprint` of the model.
        rows: fingerprint of the prepared rows: ids and masks, in order.
        per: `row` for the sum over each answer, `token` for every token.
        dtype: of the model.
        autocast: dtype of the matrix products under autocast, or `off`.
        batch_size: rows that are scored together.
        padding: what lengths are padded to a multiple of.
        images: hash of what turns images into pixels, or "" for rows of text.
        layers: how they run a batch, as far as options choose: prompts shared or not, lean or not, compiled or not.
        device: kind of device, with what decides the last bits of its matrix products.
        versions: of torch and transformers.
        code: hash of the code that runs the model.
    """

    weights: str
    rows: str
    per: str
    dtype: str
    autocast: str
    batch_size: int
    padding: int
    images: str
    layers: str
    device: str
    versions: str
    code: str

    def digest(self) -> str:
        """32 hexadecimal digits: the name of the file."""
        parts = json.dumps(asdict(self), sort_keys=True)
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()

    @property
    def path(self) -> Path:
        """Where the log-probs are kept."""
        return cache_directory() / "reference" / f"{self.digest()}.safetensors"


class StartingPolicy(ModelReference):
    """The policy itself as its own reference, which holds before the first step: no copy is made.

    Args:
        policy: with `install_forward`; it is scored in evaluation mode and otherwise left as it is.
    """

    description = "the policy as it was at construction"

    def __init__(self, policy: PreTrainedModel) -> None:
        self.model = policy
        self._began_with = sampled_fingerprint(policy)

    def fingerprint(self) -> str:
        """Hash of the weights at construction."""
        return self._began_with

    @torch.no_grad()
    def score(self, batch: TokenBatch, *, needs: Iterable[str] = ()) -> TokenStats:
        """The policy's statistics of every trained token."""
        was_training = self.model.training
        self.model.eval()
        try:
            return forward(self.model, batch, needs=needs)
        finally:
            self.model.train(was_training)

    def teacher(self, batch: TokenBatch) -> Teacher:
        """Refused: numbers have no hidden states."""
        raise ValueError("the divergence from the reference needs its model: set precompute_ref_log_probs=False")

    def check_unchanged(self) -> None:
        """Refuse a policy that is not what it was at construction.

        Raises:
            ValueError: its weights were changed.
        """
        if sampled_fingerprint(self.model) != self._began_with:
            raise ValueError(
                "the policy's weights were changed after the trainer was made, so it can no longer be its own "
                "reference: change the model before the trainer is made, or pass a copy of it as ref_model"
            )

    def follow(self, policy: nn.Module, *, step: int) -> None:
        """Not allowed: after a step the policy is not the reference."""
        raise AssertionError


class Precomputed(FromColumns):
    """Log-probs that were computed once, before the first step, and given to the rows.

    Args:
        source: what computed them, and is no longer needed.
        knows_tokens: they are per token.
    """

    def __init__(self, source: ModelReference, *, knows_tokens: bool) -> None:
        description = f"computed once before training, by {source.description}"
        super().__init__(description, knows_tokens=knows_tokens)
        self._fingerprint = source.fingerprint()

    def fingerprint(self) -> str:
        """That of the model that computed them."""
        return self._fingerprint

    def logps(self, batch: PreferenceBatch) -> Float[Tensor, "N"]:
        """The rows' own numbers."""
        self._refuse_strangers(batch)
        return super().logps(batch)

    def token_logps(self, batch: PreferenceBatch) -> Float[Tensor, "N T"]:
        """The rows' own numbers per token."""
        self._refuse_strangers(batch)
        return super().token_logps(batch)

    def _refuse_strangers(self, batch: PreferenceBatch) -> None:
        if batch.ref_logps is None and batch.ref_token_logps is None:
            raise ValueError(
                f"rows {batch.row_id.unique().tolist()[:10]} have no log-probs of the reference: they were computed "
                "before training, for the data sets that the trainer was given, and the reference is gone. Give these "
                "rows as eval_dataset when the trainer is made, or set precompute_ref_log_probs=False."
            )


def content_fingerprint(reference: ModelReference) -> str:
    """Hash of all that a reference's model is: every value of every weight and buffer, and its configuration.

    Raises:
        TypeError: a reference whose model is not known.
    """
    if isinstance(reference, FrozenModel | StartingPolicy):
        return model_fingerprint(reference.model)
    if isinstance(reference, AdapterReference):
        adapters = [] if reference.adapter is None else [reference.adapter]
        return model_fingerprint(reference.model, reference.tensors(), adapters=adapters)
    raise TypeError(f"{type(reference).__name__} has no model whose weights could be hashed")


def model_fingerprint(
    model: nn.Module, tensors: Iterable[tuple[str, Tensor]] | None = None, *, adapters: Iterable[str] | None = None
) -> str:
    """32 hexadecimal digits over the configuration and every value of a model; a tied weight counts once.

    Args:
        model: bare, or with adapters.
        tensors: the values by name, if they are not all that the model has.
        adapters: the adapters whose configuration counts; all if None.
    """
    from transformers import PreTrainedModel

    digest = hashlib.blake2b(digest_size=16)
    inner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if inner is not None:
        config, attention = _relevant(inner.config.to_dict()), inner.config._attn_implementation
        digest.update(json.dumps([type(inner).__name__, attention, config], sort_keys=True, default=str).encode())
    settings = adapter_settings(model)
    if chosen := {name: settings[name] for name in (settings if adapters is None else adapters)}:
        digest.update(json.dumps(chosen, sort_keys=True, default=str).encode())
    values = tensors or [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in [*values, *quantisation_tensors(model)]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        for chunk in tensor.detach().reshape(-1).split(CHUNK):
            digest.update(chunk.cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def code_fingerprint() -> str:
    """Hash of this room's code, which runs the model."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def device_fingerprint(device: torch.device) -> str:
    """The kind of device, and what decides the last bits of its matrix products."""
    precision = torch.get_float32_matmul_precision()
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, {precision}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return f"{device.type} {name}, {precision}"


def library_versions() -> str:
    """Of the libraries that compute."""
    return f"torch {torch.__version__}, transformers {version('transformers')}"


def read_logps(key: CacheKey, *, num_values: int) -> Float[Tensor, "R"]:
    """The log-probs that are kept under a key, whose file is there.

    Raises:
        DamagedCacheError: the file is not what was written, or not of this data set.
    """
    try:
        with safe_open(key.path, framework="pt") as file:
            about, values = json.loads(file.metadata()[ABOUT]), file.get_tensor(NAME).clone()
        made_of, digest = about["key"], about["sha256"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedCacheError(f"it cannot be read: {error!r}") from error
    if made_of != asdict(key):
        raise DamagedCacheError("it belongs to another key")
    if values.shape != (num_values,):
        raise DamagedCacheError(f"it has {tuple(values.shape)} values, and the rows need {num_values}")
    if digest != _digest(values):
        raise DamagedCacheError("its SHA-256 is another one: it was changed after it was written")
    if not bool(values.isfinite().all()):
        raise DamagedCacheError("it has values that are not finite")
    return values


def write_logps(key: CacheKey, values: Float[Tensor, "R"]) -> None:
    """Keep log-probs under a key, whole or not at all; a file that is there is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    target = key.path
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}-{secrets.token_hex(4)}.tmp")
    about = json.dumps({"key": asdict(key), "sha256": _digest(values)}, sort_keys=True)
    try:
        save_file({NAME: values.contiguous()}, temporary, metadata={ABOUT: about})
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    except SafetensorError as error:
        raise OSError(f"{target} cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, and those in it, without what no value depends on."""
    return {
        name: _relevant(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in IRRELEVANT
    }


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().view(torch.uint8).numpy().data).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
