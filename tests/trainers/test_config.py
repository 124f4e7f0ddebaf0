from __future__ import annotations

import json
from dataclasses import dataclass, fields

import pytest
import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from burnish import DPOConfig, PolicyConfig, PPOConfig, RewardConfig, arg
from burnish.trainers.config import REFUSED

ON_A_CPU = not (torch.cuda.is_available() or torch.xpu.is_available())


@pytest.fixture
def make_config(tmp_path):
    return lambda **options: DPOConfig(output_dir=str(tmp_path), report_to="none", **options)


def test_defaults_are_trls(make_config):
    """The numbers of TRL's DPOConfig."""
    config = make_config()
    assert (config.beta, config.label_smoothing, config.loss_type) == (0.1, 0.0, ["sigmoid"])
    assert (config.learning_rate, config.max_length, config.truncation_mode) == (1e-6, 1024, "keep_start")
    assert (config.logging_steps, config.disable_dropout, config.loss_weights) == (10, True, None)


@pytest.mark.skipif(not ON_A_CPU, reason="the defaults of a machine without an accelerator")
def test_defaults_of_a_laptop(make_config):
    config = make_config()
    assert config.bf16 is False
    assert config.gradient_checkpointing is False


def test_what_is_asked_for_wins_over_the_machine(make_config):
    config = make_config(bf16=True, gradient_checkpointing=True, use_cpu=True)
    assert config.bf16 is True
    assert config.gradient_checkpointing is True
    others = [name for name in ("activation_checkpointing",) if name in vars(config)]
    assert all(vars(config)[name] is True for name in others)


def test_the_new_name_of_gradient_checkpointing(make_config):
    if "activation_checkpointing" not in {field.name for field in fields(TrainingArguments)}:
        pytest.skip("this transformers has the old name only")
    assert make_config(activation_checkpointing=True).gradient_checkpointing is True


@pytest.mark.parametrize(("given", "kept"), [("ipo", ["ipo"]), (["sigmoid", "sft"], ["sigmoid", "sft"])])
def test_loss_type_is_a_list(make_config, given, kept):
    assert make_config(loss_type=given).loss_type == kept


def test_loss_type_may_be_a_function(make_config):
    def mine(pair):
        return -pair.chosen

    config = make_config(loss_type=mine)
    assert config.loss_type == [mine]
    assert config.resolved()["loss_type"] == [f"{__name__}:{mine.__qualname__}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, r"loss_weights has 1 numbers for 2 losses"),
        ({"beta": 0.0}, r"beta=0.0; allowed: above 0"),
        ({"beta": float("nan")}, r"beta=nan; allowed: above 0"),
        ({"label_smoothing": 0.5}, r"label_smoothing=0.5; allowed: 0 up to"),
        ({"label_smoothing": -0.1}, r"label_smoothing=-0.1; allowed: 0 up to"),
        ({"on_bad_row": "skip"}, r"on_bad_row='skip'; allowed: error, drop"),
        ({"cpu_tuning": "on"}, r"cpu_tuning='on'; allowed: auto, off"),
        ({"truncation_mode": "middle"}, r"truncation_mode='middle'; allowed: keep_start, keep_end"),
        ({"max_skipped_steps": 0}, r"max_skipped_steps=0; allowed: whole numbers from 1$"),
        ({"per_device_train_batch_size": 0}, r"per_device_train_batch_size=0; allowed: whole numbers from 1"),
        ({"gradient_accumulation_steps": 0}, r"gradient_accumulation_steps=0; allowed: whole numbers from 1"),
        ({"gradient_accumulation_steps": True}, r"gradient_accumulation_steps=True; allowed: whole numbers from 1"),
        ({"max_steps": 2.5}, r"max_steps=2.5; allowed: whole numbers from -1"),
        ({"weight_decay": -0.1}, r"weight_decay=-0.1; allowed: 0 or more$"),
        ({"learning_rate": float("nan")}, r"learning_rate=nan; allowed: 0 or more$"),
        ({"adam_beta1": 1.0}, r"adam_beta1=1.0; allowed: 0 up to, but not including, 1$"),
        ({"ld_alpha": 1.5}, r"ld_alpha=1.5; allowed: 0 to 1$"),
        ({"ref_model_mixup_alpha": 0.0, "sync_ref_model": True}, r"mixup_alpha=0.0; allowed: above 0 up to 1$"),
    ],
    ids=str,
)
def test_what_is_refused(make_config, options, message):
    with pytest.raises(ValueError, match=message):
        make_config(**options)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_options_of_transformers_that_break_a_law(make_config, name):
    """Refused with the reason, and accepted at the value that is fine."""
    allowed, reason = REFUSED[name]
    for value in allowed:
        make_config(**{name: value})
    with pytest.raises(ValueError, match=f"{name}='something' is not supported") as raised:
        make_config(**{name: "something"})
    assert reason in str(raised.value)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_options_exist(name):
    assert name in {field.name for field in fields(PolicyConfig)}


def test_unknown_option(make_config):
    with pytest.raises(TypeError, match=r"DPOConfig has no option 'lerning_rate', did you mean 'learning_rate'"):
        make_config(lerning_rate=1e-6)


def test_output_dir_names_method_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (DPOConfig(report_to="none").output_dir for _ in range(2))
    assert first.startswith("runs/dpo-")
    assert second != first


def test_output_dir_must_be_given_to_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="the processes of a distributed run must agree on it"):
        DPOConfig(report_to="none")


def test_resolved_is_plain(make_config):
    """Every option, in types that YAML and JSON hold without loss."""
    resolved = make_config(lr_scheduler_type="cosine", loss_kwargs={"a": (1, 2)}).resolved()
    assert json.loads(json.dumps(resolved)) == resolved
    assert yaml.safe_load(yaml.safe_dump(resolved)) == resolved
    assert {"beta", "loss_type", "learning_rate", "max_length"} <= resolved.keys()
    assert resolved["lr_scheduler_type"] == "cosine"
    assert resolved["loss_kwargs"] == {"a": [1, 2]}


def test_resolved_can_be_given_again(make_config):
    """What run.yaml holds makes the same configuration."""
    first = make_config(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5], max_steps=7)
    known = {field.name for field in fields(DPOConfig) if field.init}
    again = DPOConfig(**{name: value for name, value in first.resolved().items() if name in known})
    assert again.resolved() == first.resolved()


def test_arg():
    @dataclass
    class Config:
        number: int = arg(3, "A number.")
        names: list = arg(["a"], "Names.")
        table: dict = arg({"a": 1}, "A table.")

    first, second = Config(), Config()
    first.names.append("b")
    first.table["b"] = 2
    assert (second.number, second.names, second.table) == (3, ["a"], {"a": 1})
    assert [field.metadata["help"] for field in fields(Config)] == ["A number.", "Names.", "A table."]


def test_a_default_list_is_not_shared(make_config):
    make_config().loss_type.append("sft")
    assert make_config().loss_type == ["sigmoid"]


def test_pad_to_multiple_of_auto(make_config):
    assert make_config(pad_to_multiple_of="auto").pad_to_multiple_of is None
    assert make_config(pad_to_multiple_of=8).pad_to_multiple_of == 8


@pytest.mark.parametrize("config", [DPOConfig, PPOConfig, RewardConfig])
def test_scripts_read_options_off_their_command_line(config, tmp_path):
    """With `HfArgumentParser`, as those of TRL do; what has no single type is JSON there."""
    parser = HfArgumentParser(config)
    arguments = ["--output_dir", str(tmp_path), "--learning_rate", "2e-4", "--dataset_weights", '{"a": 1, "b": 3}']
    (args,) = parser.parse_args_into_dataclasses(arguments)
    assert (args.learning_rate, args.dataset_weights) == (2e-4, {"a": 1, "b": 3})
    assert args.loss_type == config(output_dir=str(tmp_path)).loss_type


def test_flags_of_trl_are_read_too(tmp_path):
    """Under the names that its own scripts are started with."""
    flags = "--num_ppo_epochs 2 --response_length 9 --cliprange 0.1 --missing_eos_penalty 1.0 --stop_token eos"
    (args,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(["--output_dir", str(tmp_path), *flags.split()])
    assert (args.num_iterations, args.max_completion_length, args.epsilon) == (2, 9, 0.1)


def test_the_ranges_of_a_configuration_of_the_user():
    """Those of all that it is made of; `gamma` of PPO is at most 1, and that of a loss of one's own whatever it is."""

    @dataclass
    class Own(DPOConfig):
        gamma: float = arg(1.4, "A margin.")

    @dataclass
    class OfTwo(DPOConfig, RewardConfig):
        pass

    assert Own(output_dir="unused").gamma == 1.4
    with pytest.raises(ValueError, match=r"center_rewards_coefficient=-1\.0; allowed: 0 or more"):
        OfTwo(output_dir="unused", center_rewards_coefficient=-1.0)
    with pytest.raises(ValueError, match="beta=-1; allowed: above 0"):
        Own(output_dir="unused", beta=-1)
