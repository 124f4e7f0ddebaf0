"""Quantised models: the configuration reaches `from_pretrained`, adapters are trained on them, and nothing else is.

The quantiser of these tests is a real one in the sense of transformers, registered like any other: it keeps weights in
steps of a sixteenth of the largest value of their row, and the head as it is.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from burnish import DPOConfig, DPOTrainer
from burnish.models.adapters import adapt
from burnish.models.head_layer import UnsupportedModelError, head_matrix
from burnish.models.introspect import is_quantised
from burnish.models.load import load_policy
from burnish.models.refcache import model_fingerprint
from conftest import make_model, make_rows, make_tokenizer


@register_quantization_config("sixteenths")
class Sixteenths(QuantizationConfigMixin):
    """A configuration as users write it."""

    def __init__(self, **kwargs):
        self.quant_method = "sixteenths"


@register_quantizer("sixteenths")
class SixteenthsQuantizer(HfQuantizer):
    """Rounds every linear layer but the head."""

    requires_calibration = False
    is_trainable = True

    def is_serializable(self):
        return True

    def _process_model_after_weight_loading(self, model, **kwargs):
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and name != "lm_head":
                module.weight.data = rounded(module.weight.data)
        return model


def rounded(weight: torch.Tensor) -> torch.Tensor:
    step = weight.abs().amax(1, keepdim=True) / 16
    return (weight / step).round() * step


@pytest.fixture
def saved(tmp_path):
    make_model(tie_word_embeddings=False, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def options(tmp_path, **given) -> DPOConfig:
    settings = {"max_steps": 2, "learning_rate": 1e-2, "report_to": "none", "disable_tqdm": True, "cpu_tuning": "off"}
    return DPOConfig(output_dir=str(tmp_path / "run"), **{**settings, **given})


LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"]}


@pytest.mark.parametrize("way", ["argument", "model_init_kwargs"])
def test_an_adapter_on_a_quantised_model(saved, tmp_path, way):
    """Adapters in float32 on weights that stay as they were rounded; the reference is the model without them."""
    given = {"quantization_config": Sixteenths()}
    trainer = DPOTrainer(
        str(saved),
        options(tmp_path, **({} if way == "argument" else {"model_init_kwargs": given})),
        train_dataset=make_rows(6),
        peft_config=LORA,
        **(given if way == "argument" else {}),
    )
    assert is_quantised(trainer.model)
    weight = trainer.model.get_base_model().model.layers[0].mlp.down_proj.base_layer.weight
    assert torch.equal(weight, rounded(load_policy(saved).model.layers[0].mlp.down_proj.weight))
    before = weight.clone()
    trainer.train()
    assert torch.equal(weight, before)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    assert trainer.reference.description == "the policy with its adapter switched off"


def test_quantised_weights_alone_cannot_be_trained(saved, tmp_path):
    with pytest.raises(ValueError, match=r"LlamaForCausalLM is quantised, and quantised weights cannot be trained"):
        DPOTrainer(str(saved), options(tmp_path), train_dataset=make_rows(6), quantization_config=Sixteenths())


def test_a_loaded_model_cannot_be_quantised():
    with pytest.raises(ValueError, match="quantization_config is for models given by name"):
        load_policy(make_model(), quantization_config=Sixteenths())


def test_a_quantised_head_is_refused_with_what_to_do():
    class Linear4bit(nn.Linear):
        """A layer whose weight is no matrix."""

    with pytest.raises(UnsupportedModelError, match=r"head of M is Linear4bit.*llm_int8_skip_modules=\['lm_head'\]"):
        head_matrix(Linear4bit(2, 3), owner="M")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_four_bits_of_bitsandbytes(saved, tmp_path):
    """The gradient through a 4-bit layer is that of its dequantised weights, after evaluations too."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is large, and slow to import")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    given = {"train_dataset": make_rows(6), "peft_config": {**LORA, "init_lora_weights": False}}
    four = DPOTrainer(str(saved), options(tmp_path / "four"), quantization_config=config, **given)
    whole = load_policy(saved)
    layers = dict(four.model.get_base_model().named_modules())
    for name, module in whole.named_modules():
        for candidate in (layers.get(name), layers.get(f"{name}.base_layer")):
            if isinstance(candidate, bitsandbytes.nn.Linear4bit):
                weight = candidate.weight
                module.weight.data = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    plain = DPOTrainer(whole, options(tmp_path / "plain"), processing_class=make_tokenizer(), **given)
    for trainer in (four, plain):
        trainer.train()
    losses = [[line["loss"] for line in trainer.state.log_history if "loss" in line] for trainer in (four, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    trained = [[p for p in trainer.model.parameters() if p.requires_grad] for trainer in (four, plain)]
    for one, other in zip(*trained, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    scaled = adapt(load_policy(saved, quantization_config=config), LORA)
    first = model_fingerprint(scaled)
    layer = next(m for m in scaled.modules() if isinstance(m, bitsandbytes.nn.Linear4bit))
    layer.weight.quant_state.absmax.mul_(2)  # the same codes mean other weights
    assert model_fingerprint(scaled) != first
