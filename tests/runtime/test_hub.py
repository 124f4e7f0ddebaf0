from __future__ import annotations

import pytest

from burnish.runtime.hub import UploadRefusedError, check_upload, files_of, link_files, model_files, upload_folder


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "upload"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"\x00" * 10)
    return path


def test_the_list_of_files(folder):
    (folder / "last-checkpoint").mkdir()
    (folder / "last-checkpoint" / "MANIFEST.json").write_text("{}")
    listed = check_upload(folder)
    assert listed == "3 files, 14 bytes: config.json, last-checkpoint/MANIFEST.json, model.safetensors"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (".env", "private file"),
        (".env.local", "private file"),
        ("server.pem", "private file"),
        ("id_ed25519", "private file"),
        (".netrc", "private file"),
        ("training_args.bin", "pickle"),
        ("pytorch_model.BIN", "pickle"),
        ("optimizer.pt", "pickle"),
    ],
)
def test_files_that_never_go_up(folder, name, problem):
    (folder / name).write_text("x")
    with pytest.raises(UploadRefusedError, match=problem) as error:
        check_upload(folder)
    assert f"- {name}: " in str(error.value)


@pytest.mark.parametrize("secret", ["hf_" + "a1" * 17, "sk-ant-" + "b2" * 20, "-----BEGIN PRIVATE KEY-----"])
def test_what_looks_like_a_secret(folder, secret):
    (folder / "tokenizer_config.json").write_text(f'{{"note": "{secret}"}}')
    with pytest.raises(UploadRefusedError, match=r"tokenizer_config\.json: holds what looks like a secret") as error:
        check_upload(folder)
    assert secret[7:] not in str(error.value) or secret.startswith("-----")


def test_the_token_of_the_upload_itself(folder):
    (folder / "notes.md").write_text("use my-own-word")
    assert check_upload(folder, secrets=(None, ""))
    with pytest.raises(UploadRefusedError, match="the token of this upload"):
        check_upload(folder, secrets=("my-own-word",))


def test_a_link_out_of_the_folder(folder, tmp_path):
    (tmp_path / "outside").write_text("x")
    (folder / "inside").symlink_to(tmp_path / "outside")
    with pytest.raises(UploadRefusedError, match="a link"):
        check_upload(folder)


def test_many_problems_are_cut_to_twelve_lines(folder):
    for number in range(20):
        (folder / f"{number}.pt").write_text("x")
    with pytest.raises(UploadRefusedError, match="and 12 more") as error:
        check_upload(folder)
    assert len(str(error.value).splitlines()) <= 12


def test_the_model_in_a_checkpoint_without_its_training_state(folder):
    state = ["optimizer.json", "optimizer.safetensors", "scheduler.json", "scaler.json", "trainer_extra.json"]
    state += ["rank_state_0.json", "rank_state_11.safetensors", "trainer_state.json", "MANIFEST.json"]
    for name in state:
        (folder / name).write_text("{}")
    assert [path.name for path in model_files(folder)] == ["config.json", "model.safetensors"]


def test_links_survive_the_deletion_of_their_source(folder, tmp_path):
    target = upload_folder(tmp_path, "checkpoint-1")
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text("x")
    link_files(files_of(folder), folder, target)
    for path in files_of(folder):
        path.unlink()
    assert [str(path.relative_to(target)) for path in files_of(target)] == [
        "config.json",
        "deep/file",
        "model.safetensors",
    ]
    assert files_of(upload_folder(tmp_path, "checkpoint-1")) == []  # what was left over is gone
