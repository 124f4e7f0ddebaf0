"""The manifest: what a run was made with, without secrets and without the network."""

from __future__ import annotations

import json
import platform
import subprocess

import pytest
import torch

from burnish.runtime.manifest import (
    REDACTED,
    collect_manifest,
    git_state,
    is_secret_key,
    redact,
    redact_command,
)


def test_manifest_names_versions_hardware_and_inputs(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "x")
    monkeypatch.setenv("MY_PRIVATE_THING", "never shown")
    monkeypatch.setenv("HF_TOKEN", "hf_never_shown")
    manifest = collect_manifest(
        command=["train", "--hub_token", "hf_never_shown", "run.yaml"],
        seed=7,
        datasets=[{"name": "a", "rows": 3}],
        model={"name": "m", "token": "hf_never_shown"},
    )
    text = json.dumps(manifest, allow_nan=False)
    assert "never" not in text
    assert manifest["seed"] == 7
    assert manifest["command"] == ["train", "--hub_token", REDACTED, "run.yaml"]
    assert manifest["versions"]["python"] == platform.python_version()
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["versions"]["transformers"]
    assert manifest["cpu"]["count"] >= 1
    assert manifest["cpu"]["model"]
    assert manifest["environment"]["OMP_NUM_THREADS"] == "2"
    assert manifest["environment"]["MALLOC_TRIM_THRESHOLD_"] == "1"
    assert manifest["environment"]["PYTORCH_ALLOC_CONF"] == "x"


def test_git_state_of_a_work_tree(tmp_path, monkeypatch):
    assert git_state(tmp_path) is None
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "a@b")

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "code.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    assert git_state(tmp_path) == {"sha": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "code.py").write_text("x = 2\n")
    assert git_state(tmp_path) == {"sha": git("rev-parse", "HEAD"), "dirty": True}


def test_absent_git_is_fine(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None


@pytest.mark.parametrize(
    "key",
    ["token", "hub_token", "push_to_hub_token", "hf-token", "hubToken", "HF_TOKEN", "auth_tokens", "wandb_api_key",
     "api_key", "apikey", "OPENAI_API_KEY", "api_keys", "client_secret", "password", "db_passwd", "credentials",
     "aws_secret_access_key", "private_key", "accessKey"],
)  # fmt: skip
def test_secret_keys(key):
    assert is_secret_key(key)


@pytest.mark.parametrize(
    "key",
    ["pad_token", "eos_token", "bos_token", "unk_token", "mask_token", "image_token", "stop_token", "stop_tokens",
     "max_tokens", "max_new_tokens", "num_tokens", "additional_special_tokens", "eosToken", "tokenizer",
     "tokenizer_name", "token_budget", "tokens_per_second", "include_num_input_tokens_seen", "key", "label_key",
     "loss_type", "keys_to_ignore", "secretary", "monkey"],
)  # fmt: skip
def test_other_keys(key):
    assert not is_secret_key(key)


def test_redact_replaces_strings_only_and_copies():
    config = {
        "hub_token": "abc",
        "token": None,
        "api_key": "",
        "auth_token": 17,
        "pad_token": "<pad>",
        "nested": [{"password": "p", "keep": "q"}],
        "api_keys": ["a", "b"],
        "credentials": {"user": "me", "uses": 3},
        "tracking_uri": "https://me:pw@host/path",
        "plain_uri": "https://host:8080/a@b",
    }
    before = json.dumps(config)
    assert redact(config) == {
        "hub_token": REDACTED,
        "token": None,
        "api_key": "",
        "auth_token": 17,
        "pad_token": "<pad>",
        "nested": [{"password": REDACTED, "keep": "q"}],
        "api_keys": [REDACTED, REDACTED],
        "credentials": {"user": REDACTED, "uses": 3},
        "tracking_uri": f"https://{REDACTED}@host/path",
        "plain_uri": "https://host:8080/a@b",
    }
    assert json.dumps(config) == before


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["t", "--hub_token=abc"], ["t", f"--hub_token={REDACTED}"]),
        (["t", "--hub-token", "abc", "x"], ["t", "--hub-token", REDACTED, "x"]),
        (["t", "--token", "--seed", "3"], ["t", "--token", "--seed", "3"]),
        (["t", "wandb.api_key=abc"], ["t", f"wandb.api_key={REDACTED}"]),
        (["t", "--eos_token", "</s>"], ["t", "--eos_token", "</s>"]),
        (["token", "abc"], ["token", "abc"]),
    ],
)
def test_redact_command(command, shown):
    assert redact_command(command) == shown


@pytest.mark.parametrize(
    "secret",
    ["hf_" + "aB3" * 12, "sk-" + "proj-" + "x9" * 12, "ghp_" + "a1" * 18, "github_pat_" + "A_1" * 12, "AKIA" + "Z9" * 8,
     "xoxb-" + "12-ab" * 4, "AIza" + "_b-" * 11 + "Zz", "-----BEGIN RSA PRIVATE KEY-----"],
)  # fmt: skip
def test_what_looks_like_a_token_is_replaced_wherever_it_is(secret):
    assert redact({"note": f"use {secret}, please"}) == {"note": f"use {REDACTED}, please"}
    assert redact_command(["train", f"--set=extra={{a: {secret}}}"]) == ["train", f"--set=extra={{a: {REDACTED}}}"]


@pytest.mark.parametrize(
    "text", ["hf_hub", "sk-learn", "asking-hf_internal-testing/tiny", "risk-averse", "AKIA", "hf_" + "a" * 5]
)
def test_what_does_not_look_like_a_token_stays(text):
    assert redact(text) == text
