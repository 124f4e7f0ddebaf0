"""What a run was made with: versions, hardware, code, data; and the rule that keeps secrets out of files."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "burnish",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "safetensors",
    "tokenizers",
    "numpy",
)
REDACTED = "<redacted>"

_VARIABLES = re.compile(
    r"OMP_(NUM_THREADS|PROC_BIND|PLACES|WAIT_POLICY)|(MKL|OPENBLAS)_NUM_THREADS|KMP_\w+|GOMP_CPU_AFFINITY"
    r"|MALLOC_\w+|LD_PRELOAD|(DNNL|ONEDNN)_\w+|ATEN_CPU_CAPABILITY|THP_MEM_ALLOC_ENABLE|(CUDA|HIP|ROCR)_VISIBLE_DEVICES"
    r"|CUBLAS_WORKSPACE_CONFIG|NVIDIA_TF32_OVERRIDE|PYTORCH_\w+|TORCH_\w+|NCCL_\w+|PYTHONHASHSEED"
    r"|HF_HUB_OFFLINE|TOKENIZERS_PARALLELISM"
)
_SECRET_WORDS = {"secret", "secrets", "password", "passwords", "passwd", "credential", "credentials"}
_SECRET_KEYS = {"api", "access", "private", "secret", "encryption"}
_TEXT_TOKENS = {
    "pad", "eos", "bos", "unk", "sep", "cls", "mask", "image", "video", "audio", "stop", "special", "end",
    "begin", "start", "think", "response", "instruction", "max", "min", "num", "per", "decoder", "forced",
}  # fmt: skip
_URL_LOGIN = re.compile(r"://[^/@\s:]+:[^/@\s]+@")
# Tokens that can be told by their looks: of Hugging Face, OpenAI and Anthropic, GitHub, AWS, Slack, Google.
SECRET_SHAPE = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-(?:(?:proj|ant|svcacct|admin|or)-[\w-]{20,}|[A-Za-z0-9]{32,})|gh[oprsu]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|A[KS]IA[A-Z0-9]{16}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|AIza[\w-]{35})(?![A-Za-z0-9])|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


def collect_manifest(
    *, command: Sequence[str], seed: int, datasets: list[dict[str, Any]], model: dict[str, Any]
) -> dict[str, Any]:
    """Everything that may change a run's numbers or speed, in JSON types, without secrets or network."""
    return {
        "command": redact_command(command),
        "seed": seed,
        "datasets": redact(datasets),
        "model": redact(model),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git": git_state(Path.cwd()),
        "platform": platform.platform(),
        "cpu": {"model": _cpu_model(), "count": os.cpu_count()},
        "memory_bytes": _memory_bytes(),
        "accelerators": _accelerators(),
        "environment": {
            name: redact(value, key=name) for name, value in sorted(os.environ.items()) if _VARIABLES.fullmatch(name)
        },
    }


def git_state(directory: Path) -> dict[str, Any] | None:
    """The commit of a git work tree and whether files differ from it; None outside one or without git."""
    sha = _git(directory, "rev-parse", "HEAD")
    if sha is None:
        return None
    changes = _git(directory, "status", "--porcelain")
    return {"sha": sha, "dirty": None if changes is None else bool(changes)}


def is_secret_key(key: str) -> bool:
    """Whether a setting of this name holds a secret.

    It does if a word of it is `secret`, `password`, `passwd` or `credential`; if it has `api`, `access`,
    `private`, `secret` or `encryption` before `key`, or `apikey`; or if its last word is `token` or `tokens`
    and no word says that a text's tokens are meant (`pad_token`, `eos_token`, `max_tokens`, ...).

    Example:
        >>> is_secret_key("hub_token"), is_secret_key("eos_token"), is_secret_key("OPENAI_API_KEY")
        (True, False, True)
    """
    words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower())
    named_key = any(first in _SECRET_KEYS and second in ("key", "keys") for first, second in pairwise(words))
    if named_key or _SECRET_WORDS & set(words) or {"apikey", "apikeys"} & set(words):
        return True
    return words[-1:] in (["token"], ["tokens"]) and not _TEXT_TOKENS & set(words)


def redact(value: Any, *, key: str = "") -> Any:
    """`value` without secrets, as a copy.

    Replaced are non-empty strings under a secret key, logins in URLs, and whatever looks like a token (`SECRET_SHAPE`).
    """
    return _redact(value, is_secret_key(key))


def redact_text(text: str) -> str:
    """A text without logins in URLs and without what looks like a token.

    >>> redact_text("https://me:pw@host, hf_" + "a" * 34)
    'https://<redacted>@host, <redacted>'
    """
    return SECRET_SHAPE.sub(REDACTED, _URL_LOGIN.sub(f"://{REDACTED}@", text))


def redact_command(command: Sequence[str]) -> list[str]:
    """A command line without the values of secret options (`--hub_token x`, `--hub_token=x`)."""
    shown: list[str] = []
    secret = False
    for word in command:
        option, equals, value = word.partition("=")
        if equals and is_secret_key(option):
            shown.append(f"{option}={REDACTED if value else ''}")
        else:
            shown.append(_redact(word, secret and not word.startswith("--")))
        secret = word.startswith("-") and not equals and is_secret_key(word)
    return shown


def _redact(value: Any, secret: bool) -> Any:
    if isinstance(value, str):
        return REDACTED if secret and value else redact_text(value)
    if isinstance(value, Mapping):
        return {name: _redact(item, secret or is_secret_key(str(name))) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(item, secret) for item in value]
    return value


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(directory: Path, *arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not a name on this system
        return None


def _accelerators() -> list[str]:
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else []
