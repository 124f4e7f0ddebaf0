from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from burnish import DPOConfig, compat
from burnish.compat import UNBUILT_DPO, accept_trl_fields, check_versions, resolve_checkpointing


@accept_trl_fields({"ld_alpha": (None, 1.0), "padding_free": (False,)})
@dataclass
class Config:
    beta: float = 0.1
    betas: int = 0


def test_an_unbuilt_option_at_its_default_changes_nothing():
    assert Config(beta=0.3, ld_alpha=None, padding_free=False) == Config(beta=0.3)
    assert Config(ld_alpha=1.0) == Config()


def test_an_unbuilt_option_that_is_on_is_refused_by_name():
    with pytest.raises(ValueError, match=r"ld_alpha=0.5 is an option of TRL .*Remove it \(that is ld_alpha=None\)"):
        Config(ld_alpha=0.5)


def test_unknown_options_are_refused_together_with_the_nearest_names():
    with pytest.raises(TypeError, match=r"Config has no option 'bta', did you mean 'beta'.*; 'zzz' is unknown"):
        Config(bta=1, zzz=2)


def test_positional_arguments_still_work():
    assert Config(0.7).beta == 0.7


@accept_trl_fields({"use_vllm": (False,)}, aliases={"vllm_cap": "cap"})
@dataclass
class Aliased:
    cap: float = 3.0


def test_what_is_set_on_an_instance_is_treated_the_same():
    """Scripts set options after they are parsed, and ask for those that they do not set."""
    config = Aliased(vllm_cap=2.0)
    config.use_vllm = False
    config.vllm_cap = 4.0
    assert (config.cap, config.vllm_cap, config.use_vllm) == (4.0, 4.0, False)
    assert config == Aliased(cap=4.0)
    with pytest.raises(ValueError, match="use_vllm=True is an option of TRL"):
        config.use_vllm = True


@pytest.mark.parametrize("name", sorted(UNBUILT_DPO))
def test_every_unbuilt_option_of_dpo(name, tmp_path):
    """Accepted at each of its defaults, refused when set, and no field of ours, which would hide it."""
    assert name not in {field.name for field in fields(DPOConfig)}
    for default in UNBUILT_DPO[name]:
        DPOConfig(output_dir=str(tmp_path), **{name: default})
    with pytest.raises(ValueError, match=f"{name}='on' is an option of TRL"):
        DPOConfig(output_dir=str(tmp_path), **{name: "on"})


def test_every_option_of_trl_is_known():
    """Each field of TRL 1.16's DPOConfig is ours, or unbuilt and off by default. The list was made by make_trl.py."""
    frozen = json.loads((Path(__file__).parent / "parity" / "trl_1_16.json").read_text())
    ours = {field.name for field in fields(DPOConfig)} | set(UNBUILT_DPO)
    assert sorted(set(frozen["config_fields"]) - ours) == []


@pytest.mark.parametrize("version", ["5.19.0", "5.23.0", "5.19.0.dev0", "6.0.0rc1"])
def test_a_transformers_that_is_new_enough(version, monkeypatch):
    monkeypatch.setattr(compat, "version", lambda name: version)
    check_versions()


@pytest.mark.parametrize("version", ["5.18.2", "4.57.1"])
def test_a_transformers_that_is_too_old(version, monkeypatch):
    monkeypatch.setattr(compat, "version", lambda name: version)
    with pytest.raises(ImportError, match=f"needs transformers >= 5.19, found {version}: pip install -U transformers"):
        check_versions()


def test_the_installed_transformers_is_new_enough():
    assert compat.version is importlib.metadata.version
    check_versions()


@pytest.mark.parametrize(
    ("old", "new", "default", "expected"),
    [(None, None, True, True), (None, None, False, False), (True, None, False, True), (None, False, True, False)],
)
def test_checkpointing_under_both_names(old, new, default, expected):
    class Both:
        gradient_checkpointing = old
        activation_checkpointing = new

    config = Both()
    resolve_checkpointing(config, default=default)
    assert (config.gradient_checkpointing, config.activation_checkpointing) == (expected, expected)


def test_checkpointing_is_not_reentrant_unless_asked_for():
    for given, expected in (
        ({"preserve_rng_state": False}, {"use_reentrant": False, "preserve_rng_state": False}),
        ({"use_reentrant": True}, {"use_reentrant": True}),
        (None, None),
    ):
        config = DPOConfig(output_dir="unused", gradient_checkpointing=True, gradient_checkpointing_kwargs=given)
        assert config.gradient_checkpointing
        assert config.gradient_checkpointing_kwargs == expected
        if "activation_checkpointing" in vars(config):  # its name since transformers 5.23
            assert vars(config)["activation_checkpointing_kwargs"] == expected


def test_checkpointing_under_one_name_adds_no_other():
    class OldOnly:
        gradient_checkpointing = None

    config = OldOnly()
    resolve_checkpointing(config, default=True)
    assert vars(config) == {"gradient_checkpointing": True}
