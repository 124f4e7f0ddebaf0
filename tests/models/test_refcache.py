from __future__ import annotations

import dataclasses
import json
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from burnish.data.collate import PreferenceCollator
from burnish.models import refcache
from burnish.models.forward import forward, install_forward
from burnish.models.refcache import (
    CacheKey,
    DamagedCacheError,
    Precomputed,
    StartingPolicy,
    code_fingerprint,
    content_fingerprint,
    device_fingerprint,
    model_fingerprint,
    read_logps,
    write_logps,
)
from burnish.models.reference import ModelReference, frozen_copy
from conftest import make_model

KEY = CacheKey(
    weights="w",
    rows="r",
    per="row",
    dtype="torch.float32",
    autocast="off",
    batch_size=4,
    padding=1,
    images="",
    layers="",
    device="cpu",
    versions="torch 2, transformers 5",
    code="c",
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def policy():
    model = make_model()
    install_forward(model)
    return model


def make_batch(**numbers):
    answers = {"chosen_input_ids": [13, 14], "chosen_loss_mask": [1, 1], "rejected_input_ids": [15]}
    row = {"row_id": 4, "prompt_input_ids": [11, 12], **answers, "rejected_loss_mask": [1]}
    return PreferenceCollator(0)([{**row, **numbers}])


# The key.


@pytest.mark.parametrize("part", [field.name for field in dataclasses.fields(CacheKey)])
def test_every_part_of_the_key_changes_the_file(part):
    changed = dataclasses.replace(KEY, **{part: 8 if isinstance(vars(KEY)[part], int) else "other"})
    assert changed.path != KEY.path
    assert dataclasses.replace(KEY).path == KEY.path


def test_parts_do_not_run_into_each_other():
    assert dataclasses.replace(KEY, weights="wr", rows="").path != dataclasses.replace(KEY, weights="w", rows="r").path


def test_files_are_in_the_cache_directory(cache):
    assert KEY.path == cache / "reference" / f"{KEY.digest()}.safetensors"
    assert len(KEY.digest()) == 32


# The model's fingerprint.


def test_every_single_value_counts():
    """The sampled fingerprint of a run looks at 64 values of each weight; this one at all, however small the change."""
    model = make_model()
    before = model_fingerprint(model)
    assert model_fingerprint(make_model()) == before
    for parameter in model.parameters():
        flat = parameter.detach().view(-1)
        for place in (0, 1, flat.numel() // 2, flat.numel() - 1):
            old = flat[place].item()
            flat[place] = torch.nextafter(flat[place], torch.tensor(9.0))
            assert model_fingerprint(model) != before
            flat[place] = old
    assert model_fingerprint(model) == before


def test_dtype_configuration_and_attention_count():
    fingerprints = {
        "plain": model_fingerprint(make_model()),
        "float64": model_fingerprint(make_model(dtype=torch.float64)),
        "rope": model_fingerprint(make_model(rms_norm_eps=1e-5)),
        "seed": model_fingerprint(make_model(1)),
    }
    eager = make_model()
    eager.set_attn_implementation("eager")
    fingerprints["eager"] = model_fingerprint(eager)
    assert len(set(fingerprints.values())) == len(fingerprints)


def test_buffers_count():
    model = make_model()
    before = model_fingerprint(model)
    model.register_buffer("steering", torch.zeros(3))
    with_buffer = model_fingerprint(model)
    model.steering[1] = 1
    assert len({before, with_buffer, model_fingerprint(model)}) == 3


def test_large_weights_are_read_in_parts(monkeypatch):
    """The digest does not depend on how many values are brought to the CPU at a time."""
    whole = model_fingerprint(make_model())
    monkeypatch.setattr(refcache, "CHUNK", 100)
    assert model_fingerprint(make_model()) == whole


def test_half_precision_and_scalars_are_hashed():
    model = make_model(dtype=torch.bfloat16)
    model.register_buffer("factor", torch.tensor(2.0, dtype=torch.bfloat16))
    assert model_fingerprint(model) == model_fingerprint(model)


def test_a_copy_and_the_policy_itself_have_one_fingerprint(policy):
    """So that a run with the policy as its reference finds what one with a copy, or with ref_model, has kept."""
    assert content_fingerprint(StartingPolicy(policy)) == content_fingerprint(frozen_copy(policy))


def test_where_a_model_came_from_does_not_matter(tmp_path):
    make_model().save_pretrained(tmp_path)
    loaded = type(make_model()).from_pretrained(tmp_path)
    assert model_fingerprint(loaded) == model_fingerprint(make_model())


def test_code_and_device_are_named():
    assert code_fingerprint() == code_fingerprint()
    here = device_fingerprint(torch.device("cpu"))
    assert here.startswith("cpu ")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert device_fingerprint(torch.device("cpu")) != here
    finally:
        torch.set_float32_matmul_precision(before)


# The file.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_read_is_what_was_written(dtype):
    values = torch.tensor([-1.5, -0.1, -1e-30, -3e4, 0], dtype=dtype)
    write_logps(KEY, values)
    back = read_logps(KEY, num_values=5)
    assert torch.equal(back, values)
    assert back.dtype == dtype


def test_a_file_says_what_it_is():
    write_logps(KEY, torch.tensor([-1.0]))
    with safe_open(KEY.path, framework="pt") as file:
        about = json.loads(file.metadata()["burnish"])
    assert about["key"] == dataclasses.asdict(KEY)
    assert KEY.path.stat().st_mode & stat.S_IRUSR


def test_nothing_else_is_left_in_the_folder():
    write_logps(KEY, torch.tensor([-1.0]))
    write_logps(KEY, torch.tensor([-2.0]))
    assert [path.name for path in KEY.path.parent.iterdir()] == [KEY.path.name]
    assert read_logps(KEY, num_values=1).tolist() == [-2]


def test_a_failed_write_leaves_what_was_there(monkeypatch):
    """The new file is whole, but cannot be put in place: the old one stays, and no temporary one."""
    write_logps(KEY, torch.tensor([-1.0]))

    def fail(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(KEY.path), "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_logps(KEY, torch.tensor([-2.0]))
    assert [path.name for path in KEY.path.parent.iterdir()] == [KEY.path.name]
    assert read_logps(KEY, num_values=1).tolist() == [-1]


def test_a_folder_that_is_a_file_is_an_os_error(cache):
    cache.mkdir()
    (cache / "reference").write_text("not a folder")
    with pytest.raises(OSError, match="reference"):
        write_logps(KEY, torch.tensor([-1.0]))


def damage_flip(content: bytearray) -> bytes:
    content[-3] ^= 1
    return bytes(content)


DAMAGES = {
    "flip": (damage_flip, "SHA-256"),
    "cut": (lambda content: bytes(content[:-3]), "cannot be read"),
    "empty": (lambda content: b"", "cannot be read"),
    "header": (lambda content: b"\xff" * 8 + bytes(content[8:]), "cannot be read"),
    "text": (lambda content: b"not a tensor file at all", "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(damage):
    change, message = DAMAGES[damage]
    write_logps(KEY, torch.linspace(-5, -1, 100))
    KEY.path.write_bytes(change(bytearray(KEY.path.read_bytes())))
    with pytest.raises(DamagedCacheError, match=message):
        read_logps(KEY, num_values=100)


def test_every_flipped_bit_is_found():
    """One bit in any byte of the file: in its header, in its digest, in its values."""
    write_logps(KEY, torch.tensor([-1.0, -2.0]))
    sound = KEY.path.read_bytes()
    for place in range(len(sound)):
        content = bytearray(sound)
        content[place] ^= 1 << place % 8
        KEY.path.write_bytes(content)
        with pytest.raises(DamagedCacheError):
            read_logps(KEY, num_values=2)


def test_values_that_do_not_fit_are_found():
    write_logps(KEY, torch.tensor([-1.0, -2.0]))
    with pytest.raises(DamagedCacheError, match=r"has \(2,\) values, and the rows need 3"):
        read_logps(KEY, num_values=3)
    write_logps(KEY, torch.tensor([-1.0, float("nan")]))
    with pytest.raises(DamagedCacheError, match="not finite"):
        read_logps(KEY, num_values=2)


def test_a_file_under_another_name_is_found():
    other = dataclasses.replace(KEY, weights="other")
    write_logps(KEY, torch.tensor([-1.0]))
    KEY.path.rename(other.path)
    with pytest.raises(DamagedCacheError, match="another key"):
        read_logps(other, num_values=1)


def test_a_file_without_the_tensor_is_found():
    KEY.path.parent.mkdir(parents=True)
    save_file({"other": torch.tensor([-1.0])}, KEY.path, metadata={"burnish": "{}"})
    with pytest.raises(DamagedCacheError, match="cannot be read"):
        read_logps(KEY, num_values=1)


# The two references.


def test_the_policy_before_training_is_its_own_reference(policy):
    """Scored in evaluation mode, without gradient; its mode and its parameters stay as they are, and nothing is copied."""
    policy.train()
    for layer in policy.model.layers:
        layer.self_attn.attention_dropout = 0.5
    reference, batch = StartingPolicy(policy), make_batch()
    logps = reference.logps(batch)
    assert policy.training
    assert not logps.requires_grad
    assert all(parameter.requires_grad for parameter in policy.parameters())
    assert reference.model is policy
    policy.eval()
    assert torch.equal(logps, forward(policy, batch).sequence_sum().detach())
    assert torch.equal(reference.token_logps(batch), forward(policy, batch).logps.detach())
    assert not policy.training


def test_a_changed_policy_is_no_reference(policy):
    reference = StartingPolicy(policy)
    reference.check_unchanged()
    with torch.no_grad():
        policy.model.norm.weight.add_(0.1)
    with pytest.raises(ValueError, match="weights were changed after the trainer was made"):
        reference.check_unchanged()


def test_the_policy_after_a_step_is_no_reference(policy):
    with pytest.raises(AssertionError):
        StartingPolicy(policy).follow(policy, step=1)


def test_precomputed_has_the_fingerprint_of_its_source(policy):
    """A run and its resumption see it before and after the pass."""
    source = StartingPolicy(policy)
    assert Precomputed(source, knows_tokens=False).fingerprint() == source.fingerprint()
    assert source.fingerprint() == frozen_copy(policy).fingerprint()
    assert Precomputed(source, knows_tokens=True).description == (
        "computed once before training, by the policy as it was at construction"
    )


def test_precomputed_reads_the_rows(policy):
    batch = make_batch(ref_chosen_logps=-1.5, ref_rejected_logps=-2.5)
    assert Precomputed(StartingPolicy(policy), knows_tokens=False).logps(batch).tolist() == [-1.5, -2.5]


def test_rows_that_were_not_there_are_named(policy):
    with pytest.raises(ValueError, match=r"rows \[4\] have no log-probs .* as eval_dataset when the trainer is made"):
        Precomputed(StartingPolicy(policy), knows_tokens=False).logps(make_batch())
    with pytest.raises(ValueError, match=r"rows \[4\] have no log-probs"):
        Precomputed(StartingPolicy(policy), knows_tokens=True).token_logps(make_batch())


def test_a_reference_without_weights_cannot_be_hashed():
    class Guess(ModelReference):
        def fingerprint(self):
            return "guess"

        def score(self, batch, *, needs=()):
            raise NotImplementedError

        def teacher(self, batch):
            raise NotImplementedError

    with pytest.raises(TypeError, match="Guess has no model whose weights could be hashed"):
        content_fingerprint(Guess())
