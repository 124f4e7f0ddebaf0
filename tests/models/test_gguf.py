from __future__ import annotations

import gguf
import numpy as np
import pytest

from burnish.models.gguf import read_gguf_header
from burnish.models.size import ModelFileError, read_model_size


@pytest.fixture
def path(tmp_path):
    """A file that the package gguf has written."""
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_vocab_size(10)
    writer.add_rope_freq_base(10000.0)
    writer.add_bool("a.bool", True)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(10)])
    writer.add_token_scores([0.5] * 10)
    writer.add_tensor("token_embd.weight", np.zeros((10, 8), dtype=np.float32))
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((16, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_header(path):
    header = read_gguf_header(path)
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["llama.block_count"] == 2
    assert header.metadata["llama.rope.freq_base"] == 10000.0
    assert header.metadata["a.bool"] is True
    assert header.metadata["tokenizer.ggml.tokens"] == 10
    assert header.shapes == {"token_embd.weight": (8, 10), "blk.0.ffn_up.weight": (8, 16)}
    assert header.num_parameters == 80 + 128
    size = read_model_size(str(path))
    assert (size.num_parameters, size.shape.key, size.shape.inner) == (208, 4, 16)


@pytest.mark.parametrize("length", [0, 3, 8, 30, 200])
def test_a_file_that_ends_early(path, length):
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="no sound GGUF file"):
        read_gguf_header(path)


def test_random_damage_is_an_error_of_ours_or_none(path):
    """Flipped bytes of the header either read as something else, or are refused; never another exception."""
    whole, random = path.read_bytes(), np.random.default_rng(0)
    num_refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[int(random.integers(0, 600))] ^= int(random.integers(1, 256))
        path.write_bytes(bytes(damaged))
        try:
            read_model_size(str(path))
        except ModelFileError:
            num_refused += 1
    assert num_refused > 50
