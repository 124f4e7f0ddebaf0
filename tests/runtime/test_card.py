from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from burnish.runtime.card import MARK, card_text, is_own_card, shown_command
from burnish.runtime.record import RunRecord
from burnish.runtime.usage import CardOptions

OPTIONS = CardOptions(model_name="tiny", load_name="me/tiny", step=4)
MANIFEST = {
    "command": ["/opt/bin/burnish", "train", "recipe:dpo", "--set", "beta=0.2"],
    "seed": 7,
    "model": {
        "name": "/cache/smollm2",
        "hub_name": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "license": "apache-2.0",
        "class": "LlamaForCausalLM",
        "parameters": 1000,
        "trainable": 900,
    },
    "method": {
        "trainer": "DPOTrainer",
        "name": "dpo",
        "losses": [{"name": "sigmoid", "paper": "2305.18290", "weight": 1.0}],
    },
    "options_set": ["beta"],
    "versions": {"python": "3.11", "peft": None},
    "git": {"sha": "abc", "dirty": True},
    "cpu": {"model": "A | B", "count": 2},
    "memory_bytes": 8_000_000_000,
    "accelerators": [],
    "platform": "Linux",
}
CONFIG = {
    "data": {"train": "owner/rows@main", "eval": {"a": "/home/me/held.jsonl"}},
    "training": {"beta": 0.2, "seed": 7},
}


def evaluation(step: int, **estimates: tuple[float, float, float]) -> dict:
    keys = ("mean", "weight", "standard_error")
    found = {f"eval_{name}": dict(zip(keys, values, strict=True)) for name, values in estimates.items()}
    return {"kind": "evaluation", "step": step, "estimates": found}


def card(events=(), config=CONFIG, manifest=MANIFEST, **options) -> str:
    return card_text(RunRecord(config, manifest, events=events), CardOptions(**{**vars(OPTIONS), **options}))


def front(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_front_matter():
    assert front(card()) == {
        "model_name": "tiny",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "datasets": ["owner/rows"],
        "tags": ["burnish", "dpo", "sigmoid"],
    }


def test_intervals_of_the_first_and_the_last_evaluation_up_to_the_step_of_the_weights():
    """A share has Wilson's: 0.9 of 10 is [0.596, 0.982]; any other mean 1.96 standard errors: 2 +- 0.98."""
    events = [
        evaluation(0, **{"rewards/accuracies": (0.5, 10, 0.1), "loss": (0.7, 10, math.nan)}),
        evaluation(2, **{"rewards/accuracies": (0.6, 10, 0.1), "loss": (0.5, 10, 0.1)}),
        evaluation(4, **{"rewards/accuracies": (0.9, 10, 0.1), "rewards/margins": (2.0, 10, 0.5)}),
        evaluation(4, **{"loss": (0.4, 10, 0.05)}),  # of another data set, or once more
        evaluation(6, **{"rewards/accuracies": (0.1, 10, 0.1)}),  # of weights that are not these
    ]
    text = card(events)
    assert "| metric | step 0 | step 4 |" in text
    assert "| `eval_rewards/accuracies` | 0.500 [0.237, 0.763] | 0.900 [0.596, 0.982] |" in text
    assert "| `eval_rewards/margins` | not measured | 2.000 [1.020, 2.980] |" in text
    assert "| `eval_loss` | 0.700 | 0.400 [0.302, 0.498] |" in text
    assert "| metric | step 6 |" in card(events[-1:], step=6)
    assert "Nothing was evaluated." in card(events[-1:])


def test_numbers_that_events_write_as_text():
    assert "nothing measured" in card([evaluation(1, loss=("NaN", 0.0, "NaN"))])


def test_what_was_dropped_and_warned_of_is_counted_without_the_rows():
    lines = ["train: 3 rows, 1 bad rows dropped (25.0%); fingerprint f", "  dropped row 2: 'my private text'"]
    events = [
        {"kind": "data", "data_set": "train", "lines": ["an earlier start"]},
        {"kind": "data", "data_set": "train", "lines": lines},
        *[{"kind": "skipped_step", "message": f"step {n} skipped"} for n in range(5)],
        {"kind": "first_step", "ok": True, "message": "all is well"},
        {"kind": "resume", "step": 2},
    ]
    events += [{"kind": "dropped_row", "message": "train: dropped row 7: 'more private text'"}] * 2
    events += [{"kind": "stream", "message": "train: 9 rows read from the stream\n  2 dropped"}]
    events += [{"kind": "adapter", "message": "adapter default: LoRA; r 8"}]
    text = card(events)
    assert "1 bad rows dropped (25.0%)" in text
    assert "\n\nadapter default: LoRA; r 8.\n\n" in text
    assert "train: 9 rows read from the stream\n  2 dropped\n" in text
    assert "`stream`" not in text
    assert "private text" not in text
    assert "an earlier start" not in text
    assert "- `skipped_step`, 5 times\n  - step 0 skipped\n" in text
    assert "  - and 2 more\n- `dropped_row`, 2 times\n- resumed 1 times" in text
    assert "all is well" not in text
    assert "## What was skipped or warned of\n\nNothing." in card()


def test_options_command_machine_and_citation():
    text = card()
    chosen, _, everything = text.partition("<summary>All options</summary>")
    assert "| `beta` | `0.2` |" in chosen
    assert "| `seed` | `7` |" not in chosen
    assert "| `seed` | `7` |" in everything
    assert "burnish train recipe:dpo --set beta=0.2\n" in text
    assert r"2 × A \| B, 8 GB of memory, Linux" in text
    assert "| versions | python 3.11 |" in text
    assert "commit abc, with changes" in text
    assert "@misc{arxiv-2305.18290," in text
    assert "Licence: apache-2.0, that of the base model." in text
    assert "900 of 1,000 parameters" in text
    assert "- `owner/rows@main`\n- `held.jsonl`" in text


def test_a_paper_that_is_no_number_of_arxiv_is_named_and_not_cited():
    losses = [{"name": "own", "paper": "my thesis", "weight": 0.5}]
    text = card(manifest={**MANIFEST, "method": {**MANIFEST["method"], "losses": losses}})
    assert "- loss `own`, times 0.5: my thesis" in text
    assert "## Citation" not in text


def test_an_adapter_and_a_model_of_images():
    assert front(card(is_adapter=True))["library_name"] == "peft"
    assert "from peft import AutoPeftModelForCausalLM" in card(is_adapter=True)
    model = {**MANIFEST["model"], "class": "Idefics3ForConditionalGeneration"}
    text = card(manifest={**MANIFEST, "model": model})
    assert front(text)["pipeline_tag"] == "image-text-to-text"
    assert "AutoModelForImageTextToText.from_pretrained(name)" in text


def test_ten_planted_secrets_are_in_no_card():
    token = "hf_" + "Planted" * 5
    config = {
        "data": {"train": f"https://me:{token}@host/rows"},
        "training": {
            "hub_token": "planted-1",
            "model_init_kwargs": {"token": "planted-2", "auth_token": ["planted-3"]},
            "run_name": token,
            "loss_kwargs": {"api_key": "planted-4"},
        },
    }
    manifest = {
        **MANIFEST,
        "command": ["burnish", "train", f"run-{token}.yaml"],
        "model": {**MANIFEST["model"], "name": f"https://me:planted-5@host/{token}", "hub_name": None},
        "options_set": list(config["training"]),
        "platform": token,
        "password": "planted-6",
    }
    events = [
        {"kind": "lint", "message": f"a row holds {token}"},
        {"kind": "data", "data_set": "train", "lines": [f"not read: {token}"]},
    ]
    text = card(events, config, manifest)
    assert "<redacted>" in text
    assert "Planted" not in text
    assert "planted-" not in text


def test_the_home_directory_is_not_told(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    manifest = {**MANIFEST, "command": ["burnish", "train", "/home/somebody/run.yaml", "/home/somebody-else/x"]}
    text = card(manifest=manifest)
    assert "burnish train ~/run.yaml /home/somebody-else/x" in text
    assert "/home/somebody/" not in text


def test_text_of_users_cannot_break_out_of_its_place():
    config = {"training": {"run_name": "a | b\n\n# heading `code`"}}
    manifest = {**MANIFEST, "options_set": ["run_name"], "command": ["burnish", "train", "```\n# heading"]}
    text = card(config=config, manifest=manifest)
    assert "| `run_name` | `\"a \\| b\\n\\n# heading 'code'\"` |" in text
    assert "````bash\nburnish train '```\n# heading'\n````" in text


def test_a_card_of_almost_nothing():
    """A run directory of another version may lack most of it."""
    text = card_text(RunRecord({}, {}), OPTIONS)
    assert "Made from a model in memory" in text
    assert text.endswith(f"{MARK}\n")


def test_own_and_foreign_cards(tmp_path: Path):
    (tmp_path / "own.md").write_text(card())
    (tmp_path / "foreign.md").write_bytes(b"# mine \xff")
    assert is_own_card(tmp_path / "own.md")
    assert not is_own_card(tmp_path / "foreign.md")


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["/x/burnish/__main__.py", "train"], "python -m burnish train"),
        (["-c"], "python -c"),
        (["/env/bin/burnish", "train", "a b.yaml"], "burnish train 'a b.yaml'"),
    ],
)
def test_shown_command(command, shown):
    assert shown_command(command) == shown


def test_values_are_written_as_json():
    text = card(config={"training": {"loss_type": ["sigmoid"], "note": "ä"}})
    assert f"| `loss_type` | `{json.dumps(['sigmoid'])}` |" in text
    assert '| `note` | `"ä"` |' in text


def test_each_of_several_sources_is_named_once():
    data = {"train": {"a": "owner/rows", "b": "/home/me/more.jsonl", "c": "owner/rows"}, "eval": "recipe:held"}
    text = card(config={"data": data})
    assert "## Data\n\n- `owner/rows`\n- `more.jsonl`\n- `recipe:held`\n" in text
    assert front(text)["datasets"] == ["owner/rows"]


@pytest.mark.parametrize(("is_adapter", "options"), [(False, ""), (True, ", num_labels=1, pad_token_id=")])
def test_a_reward_model_is_loaded_as_a_classifier(is_adapter, options):
    reward = {"trainer": "RewardTrainer", "name": "reward", "losses": []}
    manifest = {**MANIFEST, "method": reward, "model": {"class": "LlamaForSequenceClassification"}}
    scored = evaluation(4, accuracy=(1.0, 80.0, 0.0), margin=(2.0, 80.0, 0.1))
    text = card([scored], manifest=manifest, chats=True, is_adapter=is_adapter)
    assert front(text)["pipeline_tag"] == "text-classification"
    assert f"model = AutoModelForSequenceClassification.from_pretrained(name{options}" in text
    assert "print(float(model(**inputs).logits))" in text
    assert "generate" not in text
    assert "1.000 [0.954, 1.000]" in text  # 80 pairs that are right or wrong, and not 80 means


def test_the_accuracy_of_a_policy_has_the_error_of_its_groups():
    assert "0.900 [0.704, 1.096]" in card([evaluation(4, accuracy=(0.9, 80.0, 0.1))])
