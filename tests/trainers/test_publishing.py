"""Cards and uploads of a real trainer, the uploads to a hub on this machine."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM

from burnish.runtime.card import MARK
from burnish.runtime.hub import UploadRefusedError
from burnish.runtime.rundir import read_events
from conftest import make_rows

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from training import make_trainer

from hub_server import running_hub

TOKEN = "hf_" + "Secret" * 6
MODEL = {"model.safetensors", "config.json", "generation_config.json"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
PUBLISHED = {*MODEL, *TOKENIZER, "README.md"}


@pytest.fixture
def hub(monkeypatch):
    with running_hub() as server:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("transformers.utils.hub._hf_api", HfApi(endpoint=server.url))
        yield server


def pushing(path: Path, **options):
    settings = {"push_to_hub": True, "hub_model_id": "me/tiny", "hub_token": TOKEN, "max_steps": 2}
    return make_trainer(path, **{**settings, **options})


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_saved_model_has_a_card_of_its_run(tmp_path):
    trainer = make_trainer(tmp_path / "run", loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5], beta=0.2)
    trainer.eval_dataset = trainer._prepare_eval(make_rows(6))
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    card = (tmp_path / "run" / "README.md").read_text()
    assert front_matter(card)["tags"] == ["burnish", "dpo", "sigmoid", "sft"]
    assert "| metric | step 0 | step 4 |" in card
    assert re.search(r"\| `eval_rewards/accuracies` \| 0\.\d+ \[0\.\d+, 0\.\d+\] \| ", card)
    assert "loss `sft`, times 0.5: [arXiv 2404.19733]" in card
    assert "| `beta` | `0.2` |" in card.split("<summary>All options")[0]
    assert "| `label_smoothing` |" not in card.split("<summary>All options")[0]
    assert trainer.data_reports["train"].fingerprint in card
    loading = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    exec(loading.replace("path/to/run", str(tmp_path / "run")), {})


def test_a_card_without_a_run_and_in_another_directory(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    trainer.save_model(str(tmp_path / "elsewhere"))
    card = (tmp_path / "elsewhere" / "README.md").read_text()
    assert "# run\n" in card
    assert "Nothing was evaluated." in card
    assert trainer.data_reports["train"].fingerprint in card


def test_a_readme_of_a_person_is_left_alone(tmp_path, caplog):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text("mine\n")
    trainer = make_trainer(tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        trainer.save_model()
    assert (tmp_path / "run" / "README.md").read_text() == "mine\n"
    assert "left as it is" in caplog.text
    trainer.create_model_card()  # asked for by name
    assert MARK in (tmp_path / "run" / "README.md").read_text()


def test_create_model_card_takes_the_arguments_of_transformers_and_trl(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    trainer.create_model_card(
        language="en",
        license="mit",
        tags=["mine", "dpo"],
        model_name="Tiny",
        finetuned_from="somebody/base",
        tasks="text2text-generation",
        dataset_tags="somebody/rows",
        dataset_name="my rows",
        dataset_args="default",
    )
    card = (tmp_path / "run" / "README.md").read_text()
    assert front_matter(card) == {
        "model_name": "Tiny",
        "base_model": "somebody/base",
        "library_name": "transformers",
        "pipeline_tag": "text2text-generation",
        "license": "mit",
        "language": ["en"],
        "datasets": ["somebody/rows"],
        "tags": ["burnish", "dpo", "sigmoid", "mine", "text2text-generation"],
    }
    assert "Licence: mit.\n" in card
    assert "- `my rows`\n- configuration `default`" in card


def test_checkpoints_hold_no_card(tmp_path):
    trainer = make_trainer(tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=1)
    trainer.train()
    assert not list((tmp_path / "run").glob("checkpoint-*/README.md"))


def test_push_to_hub_uploads_the_model_and_its_card_and_nothing_else(tmp_path, hub, caplog):
    trainer = pushing(tmp_path / "run", hub_private_repo=True)
    trainer.train()
    (tmp_path / "run" / ".env").write_text(f"TOKEN={TOKEN}\n")
    (tmp_path / "run" / "notes.txt").write_text("private\n")
    with caplog.at_level(logging.WARNING):
        commit = trainer.push_to_hub(license="mit", commit_message="done")
    ((repository, revision, message, files),) = hub.commits
    assert (repository, revision, message) == ("me/tiny", "main", "done")
    assert hub.repositories == {"me/tiny": "private"}
    assert hub.authorizations == {f"Bearer {TOKEN}"}
    assert set(files) == PUBLISHED
    assert commit.oid == "abc"
    card = files["README.md"].decode()
    assert (front_matter(card)["license"], front_matter(card)["model_name"]) == ("mit", "tiny")
    assert 'name = "me/tiny"' in card
    assert TOKEN not in "".join(content.decode("utf-8", "replace") for content in files.values())
    assert f"{len(PUBLISHED)} files" in caplog.text
    assert not list((tmp_path / "run").glob(".hub-upload*"))
    published = tmp_path / "published"
    published.mkdir()
    for name, content in files.items():
        (published / name).write_bytes(content)
    assert AutoModelForCausalLM.from_pretrained(published).config.hidden_size == 32


def test_save_model_pushes_if_the_option_says_so(tmp_path, hub):
    trainer = pushing(tmp_path / "run")
    trainer.save_model()
    assert [(message, set(files)) for *_, message, files in hub.commits] == [("Model save", PUBLISHED)]
    assert MARK in (tmp_path / "run" / "README.md").read_text()


STATE = {"optimizer.json", "optimizer.safetensors", "scheduler.json", "trainer_extra.json", "trainer_state.json"}
STATE |= {"MANIFEST.json", "rank_state_0.json"}


@pytest.mark.parametrize(
    ("strategy", "folders"),
    [("every_save", []), ("checkpoint", ["last-checkpoint"]), ("all_checkpoints", ["checkpoint-1", "checkpoint-2"])],
)
def test_what_is_pushed_at_every_save(tmp_path, hub, strategy, folders):
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "hub_always_push": True}
    trainer = pushing(tmp_path / "run", hub_strategy=strategy, **options)
    trainer.train()
    assert [message for _, _, message, _ in hub.commits] == [f"Training in progress, step {step}" for step in (1, 2)]
    for number, (*_, files) in enumerate(hub.commits):
        at_the_root = {name for name in files if "/" not in name}
        assert at_the_root == PUBLISHED
        inside = {name.partition("/")[0] for name in files if "/" in name}
        assert inside == set(folders[number : number + 1] or folders[-1:])
        for folder in inside:
            names = {name.partition("/")[2] for name in files if name.startswith(f"{folder}/")}
            assert names >= STATE | MODEL
            assert not [name for name in names if name.endswith((".bin", ".pt"))]
    assert f"step {1}, " in hub.commits[0][3]["README.md"].decode()
    assert not list((tmp_path / "run").rglob("training_args.bin"))
    assert not list((tmp_path / "run").glob(".hub-upload*"))
    assert [event["repo"] for event in read_events(tmp_path / "run" / "events.jsonl") if event["kind"] == "push"]


def test_hub_strategy_end_pushes_no_checkpoint(tmp_path, hub):
    pushing(tmp_path / "run", hub_strategy="end", save_strategy="steps", save_steps=1).train()
    assert hub.commits == []


def test_a_failed_push_is_told_and_training_goes_on(tmp_path, hub, caplog):
    hub.refuses_commits = True
    trainer = pushing(tmp_path / "run", save_strategy="steps", save_steps=1, hub_always_push=True)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 2
    failed = [event for event in read_events(tmp_path / "run" / "events.jsonl") if event["kind"] == "push_failed"]
    assert len(failed) == 2
    assert "nothing new is on me/tiny" in caplog.text
    assert not list((tmp_path / "run").glob(".hub-upload*"))
    with pytest.raises(OSError, match="403"):
        trainer.save_model()
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert MARK in (tmp_path / "run" / "README.md").read_text()


def test_a_secret_in_a_file_of_the_tokenizer_stops_the_push(tmp_path, hub):
    trainer = pushing(tmp_path / "run", save_strategy="steps", save_steps=2)
    trainer.processing_class.chat_template += "{# " + "hf_" + "x1" * 17 + " #}"
    trainer.train()
    refused = [event for event in read_events(tmp_path / "run" / "events.jsonl") if event["kind"] == "push_refused"]
    assert len(refused) == 1
    with pytest.raises(UploadRefusedError, match=r"chat_template\.jinja: holds what looks like a secret"):
        trainer.push_to_hub()
    assert hub.commits == []
    assert not list((tmp_path / "run").glob(".hub-upload*"))


def test_the_manifest_says_how_the_policy_is_trained(tmp_path):
    trainer = make_trainer(tmp_path / "run", max_steps=1, loss_type="simpo", ref_seed=None)
    trainer.train()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    losses = [{"name": "simpo", "paper": "2405.14734", "weight": 1.0}]
    assert manifest["method"] == {"trainer": "DPOTrainer", "name": "dpo", "losses": losses}
    assert "loss_type" in manifest["options_set"]
    assert "max_length" not in manifest["options_set"]
