"""The key `peft` of a run file: checked without PEFT, and trained."""

from __future__ import annotations

import importlib.machinery
import json
import subprocess
import sys

import pytest
import yaml
from peft import LoraConfig, PeftModel
from run_place import start
from test_run import arguments  # noqa: F401 - a fixture
from test_runfile import GOOD, only_problem, problems, write  # noqa: F401 - a fixture
from typer.testing import CliRunner

from burnish.cli.app import app
from burnish.cli.runfile import load_runfile
from burnish.compat import MODEL_CONFIG_FIELDS
from burnish.models.adapters import make_config
from conftest import make_model

LORA = "peft: {r: 4, lora_alpha: 1e1, target_modules: [q_proj, down_proj], use_dora: true}\n"


def test_a_run_file_with_an_adapter(write):  # noqa: F811
    runfile = load_runfile(write(GOOD + LORA))
    assert runfile.peft == {"r": 4, "lora_alpha": 10, "target_modules": ["q_proj", "down_proj"], "use_dora": True}
    assert type(runfile.peft["lora_alpha"]) is int
    assert runfile.as_dict()["peft"] == runfile.peft
    assert load_runfile(write(GOOD)).peft is None
    assert load_runfile(write(GOOD), ["peft.r=2", "peft.type=loha"]).peft == {"r": 2, "type": "loha"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "peft: {lora_alhpa: 3}",
            "line 8, peft.lora_alhpa: is no field of lora, did you mean 'lora_alpha' or 'lora_bias'?",
        ),
        ("peft: {lora_r: 3}", "line 8, peft.lora_r: is TRL's name; here it is 'peft.r'"),
        ("peft: {use_peft: true}", "line 8, peft.use_peft: is TRL's, and says nothing here: remove it"),
        ("peft: {type: lra}", "line 8, peft.type: is 'lra', did you mean 'lora' or 'hra'? known: lora, loha"),
        (
            "peft: {type: prompt_tuning}",
            "is not supported, since it puts virtual tokens before the prompt; known: lora",
        ),
        ("peft: {type: loha, lora_alpha: 3}", "line 8, peft.lora_alpha: is TRL's name; here it is 'peft.lora_alpha'"),
        ("peft: {type: loha, xyz: 3}", "line 8, peft.xyz: is no field of loha; it has: rank_pattern"),
        ("peft: {r: many}", 'line 8, peft.r: is "many", text. Allowed: a whole number'),
        ("peft: {init_lora_weights: pissa}", 'peft.init_lora_weights: is "pissa"'),
        ("peft: 8", "line 8, peft: is 8, a whole number. Allowed: a mapping, or null"),
        ("lora_r: 8", "line 8, lora_r: is TRL's name; here it is 'peft.r'"),
        ("load_in_4bit: true", "here it is 'training.model_init_kwargs.quantization_config'"),
        ("peft: {r: 4}\n#", None),
    ],
)
def test_what_is_wrong_with_one(write, text, message):  # noqa: F811
    path = write(f"{GOOD}{text}\n")
    if message is None:
        assert load_runfile(path).peft == {"r": 4}
    else:
        assert message in only_problem(path)


def test_an_adapter_and_a_reference_that_moves(write):  # noqa: F811
    path = write(GOOD + "  sync_ref_model: true\n" + LORA)
    assert "training.sync_ref_model: mixes the policy's weights" in only_problem(path)
    assert len(problems(path, "training.ref_model_bema={}", "peft.rr=2")) >= 2


def test_checking_needs_neither_torch_nor_peft(write):  # noqa: F811
    code = (
        "import sys; from burnish.cli.runfile import load_runfile; "
        f"print(load_runfile({str(write(GOOD + LORA))!r}).peft['r'], {{'torch', 'peft', 'transformers'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "4 set()"


def test_without_the_package_the_extra_is_named(write, monkeypatch):  # noqa: F811
    monkeypatch.setattr(sys, "path_hooks", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if f is not importlib.machinery.PathFinder])
    monkeypatch.delitem(sys.modules, "peft")
    assert "line 8, peft: needs the package peft: pip install 'burnish[peft]'" in only_problem(write(GOOD + LORA))


def test_every_field_of_the_schema_is_one_of_peft():
    from burnish.cli.validate import load_schema

    for kind, schema in load_schema()["x-peft"].items():
        known = vars(make_config({"type": kind})) if kind != "trainable_tokens" else {"token_indices", "target_modules"}
        assert set(schema["properties"]) <= {*known, "init_weights"}
    names = {place.removeprefix("peft.") for place in MODEL_CONFIG_FIELDS.values() if place.startswith("peft.")}
    assert names <= set(load_schema()["x-peft"]["lora"]["properties"]) <= set(vars(LoraConfig()))


def test_train_and_resume(arguments, tmp_path):  # noqa: F811
    config, overrides = arguments
    config.write_text(config.read_text() + LORA)
    outcome, screen = start(config, overrides)
    run_dir = tmp_path / "run"
    shown = " ".join(screen.split())
    assert "adapter default: DoRA; r 4; lora_alpha 10; target_modules down_proj, q_proj; 1," in shown
    assert "reference: the policy with its adapter switched off" in shown
    assert outcome.before["eval_rewards/accuracies"].mean == 0.5
    assert yaml.safe_load((run_dir / "run.yaml").read_text())["peft"]["r"] == 4
    assert json.loads((run_dir / "adapter_config.json").read_text())["base_model_name_or_path"] == "model"
    PeftModel.from_pretrained(make_model(), str(run_dir))
    result = CliRunner().invoke(app, ["resume", str(run_dir), "--set", "max_steps=4"])
    assert result.exit_code == 0, result.output
    assert "steps 4 to 4" in result.output
    again = CliRunner().invoke(app, ["resume", str(run_dir), "--set", "max_steps=5", "--set", "peft.r=8"])
    assert again.exit_code != 0
    assert "adapters: was" in again.output
