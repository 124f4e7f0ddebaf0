from __future__ import annotations

import json
import struct
import subprocess
import sys

import pytest
from safetensors.torch import save_file

from burnish.models.embedded import EMBEDDED
from burnish.models.size import ModelFileError, model_shape, read_model_size
from conftest import make_model
from vision_models import make_processor, make_vision_model


@pytest.fixture
def saved(tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model(saved):
    size = read_model_size(str(saved))
    assert size.num_parameters == make_model().num_parameters()
    assert size.source == "the header of model.safetensors"
    shape = size.shape
    assert (shape.layers, shape.hidden, shape.inner, shape.query, shape.key, shape.vocabulary) == (
        2,
        32,
        48,
        32,
        16,
        259,
    )
    assert not size.reads_images


def test_a_model_in_several_files(tmp_path):
    model = make_model(tie_word_embeddings=False)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert read_model_size(str(tmp_path)).num_parameters == model.num_parameters()
    gone = sorted(tmp_path.glob("model-*.safetensors"))[0]
    gone.unlink()
    with pytest.raises(ModelFileError, match=rf"lacks 1 of \d+ files of weights: {gone.name}"):
        read_model_size(str(tmp_path))


def test_a_vision_language_model(tmp_path):
    model = make_vision_model("qwen2_vl", make_processor("qwen2_vl"))
    model.save_pretrained(tmp_path)
    size = read_model_size(str(tmp_path))
    assert (size.reads_images, size.num_parameters, size.shape.layers) == (True, model.num_parameters(), 2)


def test_without_a_header_the_size_is_estimated(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    size = read_model_size(str(saved))
    assert size.source == "config.json, estimated"
    assert size.num_parameters == make_model().num_parameters()


def test_experts_count_as_many_as_are_chosen():
    config = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 5, "head_dim": 6}
    assert model_shape(config).query == 12
    assert model_shape(config).inner == 32
    assert model_shape({**config, "num_experts_per_tok": 3, "moe_intermediate_size": 7}).inner == 21
    assert model_shape({"hidden_size": 8}) is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "was not copied whole"),
        (lambda path: path.write_bytes(b"\xff" * 100), "no sound safetensors file"),
        (lambda path: path.write_bytes(b""), "no sound safetensors file"),
        (lambda path: path.write_bytes(struct.pack("<Q", 2) + b"[]"), "no sound safetensors file"),
        (lambda path: path.unlink(), "has no weights"),
        (lambda path: (path.parent / "config.json").write_text("{"), "config.json is no JSON"),
        (lambda path: (path.parent / "config.json").write_text("[]"), "config.json is no mapping"),
    ],
)
def test_damaged_files_are_named(saved, damage, message):
    damage(saved / "model.safetensors")
    with pytest.raises(ModelFileError, match=message):
        read_model_size(str(saved))


def test_an_index_that_is_none(saved):
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weights": {}}))
    with pytest.raises(ModelFileError, match="no index of weights"):
        read_model_size(str(saved))


def test_a_header_with_metadata_and_no_tensors(saved):
    save_file({}, saved / "model.safetensors", metadata={"format": "pt"})
    assert read_model_size(str(saved)).num_parameters == 0


def test_a_model_of_the_hub_is_not_here():
    assert read_model_size("owner/name") is None


def test_the_embedded_model():
    if EMBEDDED["smollm2-135m"].path is None:
        pytest.skip("the package with the embedded model is not installed")
    size = read_model_size("smollm2-135m")
    assert (size.num_parameters, size.shape.layers, size.shape.vocabulary) == (134_515_008, 30, 49152)
    assert EMBEDDED["smollm2-135m"].file in size.source


def test_no_torch_is_imported():
    code = "import sys, burnish.models.size, burnish.models.footprint; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
