"""Which adapters are supported, what is refused by name, and how one is made."""

from __future__ import annotations

import sys

import pytest
import torch
from peft import (
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from test_head_layer import make_batch, own_logps

from burnish.models.adapter_files import load_adapter_weights, save_adapter
from burnish.models.adapter_summary import adapter_line, adapter_settings, describe_adapter
from burnish.models.adapters import SUPPORTED, adapt, is_adapted, make_config, plain_model, trained_adapter
from burnish.models.forward import forward, install_forward
from burnish.models.introspect import disable_dropout
from conftest import make_model

QV = ["q_proj", "v_proj"]
KINDS = {
    "LORA": LoraConfig(r=4, target_modules=QV),
    "LOHA": LoHaConfig(r=4, target_modules=QV),
    "LOKR": LoKrConfig(r=4, target_modules=QV),
    "IA3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "VERA": VeraConfig(r=4, target_modules=["q_proj", "o_proj"]),
    "OFT": OFTConfig(oft_block_size=4, target_modules=["q_proj", "o_proj"], use_cayley_neumann=False),
    "HRA": HRAConfig(r=4, target_modules=QV),
    "LN_TUNING": LNTuningConfig(target_modules=["input_layernorm", "norm"]),
    "TRAINABLE_TOKENS": TrainableTokensConfig(token_indices=[4, 5, 6]),
}


def shake(model) -> None:
    """Change everything that is trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # PEFT about norms, with LN_TUNING
@pytest.mark.parametrize("kind", SUPPORTED)
def test_each_supported_kind_is_scored_exactly_switched_off_and_kept(kind, tmp_path):
    """Log-probs with and without the adapter are those of the model's own forward; files bring the adapter back."""
    plain, batch = make_model(0, torch.float64), make_batch()
    install_forward(plain)
    before = forward(plain, batch).logps
    model = adapt(plain, KINDS[kind], seed=3)
    install_forward(plain_model(model))
    shake(model)
    model.eval()
    scored = forward(model, batch).logps
    torch.testing.assert_close(scored, own_logps(model, batch), rtol=1e-9, atol=1e-9)
    assert (scored - before).abs().max() > 1e-6
    with model.disable_adapter():
        torch.testing.assert_close(forward(model, batch).logps, before, rtol=1e-12, atol=1e-12)
    save_adapter(model, str(tmp_path))
    other = PeftModel.from_pretrained(make_model(0, torch.float64), str(tmp_path)).eval()
    torch.testing.assert_close(own_logps(other, batch), scored, rtol=1e-9, atol=1e-9)
    again = adapt(make_model(0, torch.float64), KINDS[kind], seed=4)
    load_adapter_weights(again, tmp_path)
    assert all(torch.equal(found, wanted) for found, wanted in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (PromptTuningConfig(num_virtual_tokens=2), r"PromptTuningConfig.*virtual tokens before the prompt"),
        (PrefixTuningConfig(num_virtual_tokens=2), r"PrefixTuningConfig.*virtual keys and values"),
        (PromptEncoderConfig(num_virtual_tokens=2), r"PromptEncoderConfig.*virtual tokens"),
        (LoraConfig(init_lora_weights="pissa"), r"init_lora_weights='pissa' is not supported"),
        (LoraConfig(layer_replication=[(0, 2), (1, 2)]), r"layer_replication=.*changes the base model"),
        (
            LoraConfig(alora_invocation_tokens=[1], task_type="CAUSAL_LM"),
            r"alora_invocation_tokens=\[1\] is not supported",
        ),
        ({"type": "adalora"}, r"adalora is not supported, since it needs an update of its ranks"),
        ({"type": "lorra"}, r"lorra is not supported.*Supported: LORA"),
        ({"r": 8, "lora_alhpa": 2}, r"LoraConfig has no field 'lora_alhpa', did you mean 'lora_alpha'"),
    ],
)
def test_others_are_refused_by_name(config, reason):
    with pytest.raises(ValueError, match=reason):
        adapt(make_model(), config)


def test_what_is_no_configuration():
    with pytest.raises(TypeError, match=r"peft_config is int; give a configuration of PEFT"):
        make_config(8)


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'burnish\[peft\]'"):
        adapt(make_model(), {"r": 8})


def test_a_mapping_is_a_configuration():
    config = make_config({"type": "lora", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], "use_dora": True})
    assert (type(config), config.r, config.lora_alpha, config.use_dora) == (LoraConfig, 2, 6, True)
    assert type(make_config({"r": 2})) is LoraConfig
    assert type(make_config({"type": "loha"})) is LoHaConfig


def test_the_configuration_that_was_given_is_left_alone():
    config = LoraConfig(r=2, target_modules="all-linear")
    adapt(make_model(), config)
    assert config.target_modules == "all-linear"


def test_the_seed_decides_the_new_weights_and_nothing_else():
    """LoRA's random factor depends on the seed alone, and the generators of the run go on as if nothing had been."""

    def factors(seed: int, state: int) -> torch.Tensor:
        model = make_model()
        torch.manual_seed(state)
        adapted = adapt(model, {"r": 4, "target_modules": ["q_proj"]}, seed=seed)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(state)))
        return torch.cat([p.flatten() for n, p in adapted.named_parameters() if "lora_A" in n])

    assert torch.equal(factors(1, 10), factors(1, 11))
    assert not torch.equal(factors(1, 10), factors(2, 10))


def test_a_new_adapter_freezes_the_base_and_is_float32():
    model = adapt(make_model(dtype=torch.bfloat16), KINDS["LORA"])
    trained = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert set(trained.values()) == {torch.float32}


def test_names_of_adapters():
    model = adapt(make_model(), KINDS["LORA"], adapter="first")
    assert trained_adapter(model) == "first"
    model.add_adapter("second", LoraConfig())
    assert trained_adapter(adapt(model, None)) == "first"
    assert trained_adapter(adapt(model, None, adapter="second")) == "second"
    assert all(("second" in name) == p.requires_grad for name, p in model.named_parameters() if "lora_" in name)
    with pytest.raises(
        ValueError, match=r"model_adapter_name='third' is no adapter of the model. It has: 'first', 'sec"
    ):
        adapt(model, None, adapter="third")


def test_models_that_cannot_get_one():
    with pytest.raises(ValueError, match=r"peft_config is given, and the model has adapters already"):
        adapt(get_peft_model(make_model(), LoraConfig()), KINDS["LORA"])
    with pytest.raises(ValueError, match=r"model_adapter_name='mine', but the model has no adapters"):
        adapt(make_model(), None, adapter="mine")
    frozen = get_peft_model(make_model(), LoraConfig()).requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"no parameter of adapter 'default' is trained: load it with is_trainable=True"
    ):
        adapt(frozen, None)
    inside = make_model()
    inside.add_adapter(LoraConfig())
    with pytest.raises(ValueError, match=r"has an adapter inside that was added by transformers"):
        adapt(inside, None)


def test_a_model_without_adapters_is_left_alone():
    model = make_model()
    assert adapt(model, None) is model
    assert not is_adapted(model)
    assert plain_model(model) is model
    assert adapter_line(model) is None
    assert describe_adapter(model) is None
    assert adapter_settings(model) == {}


def test_what_is_told_of_it():
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.25, use_dora=True, use_rslora=True
    )
    model = adapt(make_model(), config)
    expected = (
        "adapter default: DoRA with rank-stabilised scaling; r 4; lora_alpha 8; target_modules down_proj, gate_proj, "
        "up_proj, k_proj, o_proj, q_proj, v_proj; lora_dropout 0.25{}; 4,160 of 27,968 parameters are trained (14.87%)"
    )
    assert adapter_line(model) == expected.format("")
    assert disable_dropout(model) == 14
    assert adapter_line(model) == expected.format(", switched off by disable_dropout")
    assert adapter_settings(model)["default"]["r"] == 4
