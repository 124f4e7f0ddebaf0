"""A run of an adapter that is stopped and resumed is bit for bit the run that was never stopped."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_resume import StopAfter, metrics_in

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from training import make_trainer

from burnish import DPOConfig, DPOTrainer
from conftest import make_model, make_rows, make_tokenizer

pytestmark = [pytest.mark.gallery, pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")]
KINDS = {
    "lora": {"r": 4, "target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.2},
    "dora": {"r": 4, "target_modules": "all-linear", "use_dora": True},
    "rslora on the head": {"r": 4, "target_modules": ["q_proj", "lm_head"], "use_rslora": True},
    "copy": {"r": 4, "target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
}
NUM_STEPS = 4


def trainer_at(directory: Path, kind: str, **options) -> DPOTrainer:
    settings = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "learning_rate": 1e-2,
        "disable_dropout": kind != "lora",
        "dtype": torch.float32,
        "ref_seed": None,
        "peft": KINDS.get(kind),
    }
    return make_trainer(directory, **{**settings, **options})


def weights_of(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def stop_at(directory: Path, step: int, kind: str, **options) -> None:
    trainer = trainer_at(directory, kind, **options)
    trainer.add_callback(StopAfter(step + 1))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


FAST = {("lora", 1), ("dora", 3), ("copy", 2)}


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        (k, s) if (k, s) in FAST else pytest.param(k, s, marks=pytest.mark.slow)
        for k in KINDS
        for s in range(1, NUM_STEPS)
    ],
)
def test_resumed_run_is_bit_identical(tmp_path, kind, step):
    whole = trainer_at(tmp_path / "whole", kind)
    whole.train()
    assert whole.state.global_step == NUM_STEPS
    stop_at(tmp_path / "run", step, kind)
    resumed = trainer_at(tmp_path / "run", kind)
    modules = [type(module) for module in resumed.model.modules()]
    trained = [name for name, parameter in resumed.model.named_parameters() if parameter.requires_grad]
    resumed.train(resume_from_checkpoint=True)
    expected = weights_of(whole)
    assert weights_of(resumed).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(resumed).items())
    assert metrics_in(tmp_path / "run") == metrics_in(tmp_path / "whole")
    assert [type(module) for module in resumed.model.modules()] == modules, "the adapter was wrapped again"
    assert [name for name, parameter in resumed.model.named_parameters() if parameter.requires_grad] == trained


def given_trainer(directory: Path, **options) -> DPOTrainer:
    """A policy that comes with a trained adapter of a name of its own."""
    model = get_peft_model(make_model(), LoraConfig(r=4, target_modules=["q_proj"]), adapter_name="mine")
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    settings = {"max_steps": 3, "save_steps": 1, "learning_rate": 1e-2, "report_to": "none", "cpu_tuning": "off"}
    return DPOTrainer(
        model,
        args=DPOConfig(output_dir=str(directory), disable_tqdm=True, **{**settings, **options}),
        train_dataset=make_rows(24),
        processing_class=make_tokenizer(),
    )


def test_a_policy_that_came_with_an_adapter(tmp_path):
    """The reference is a copy of the adapter as it came, and not of that in the checkpoint."""
    whole = given_trainer(tmp_path / "whole")
    whole.train()
    first = given_trainer(tmp_path / "run")
    first.add_callback(StopAfter(3))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert (tmp_path / "run" / "checkpoint-2" / "mine" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "run" / "checkpoint-2" / "burnish_reference").exists()
    resumed = given_trainer(tmp_path / "run")
    resumed.train(resume_from_checkpoint=True)
    expected = weights_of(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(resumed).items())
    batch = whole.data_collator([whole.train_dataset[i] for i in range(4)])
    assert torch.equal(resumed.reference.logps(batch), whole.reference.logps(batch))


def test_files_of_a_run(tmp_path):
    """No pickle, no weights of the base; a damaged adapter is passed over."""
    trainer_at(tmp_path / "run", "dora").train()
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    suffixes = {path.suffix for path in files}
    assert suffixes <= {".safetensors", ".json", ".jsonl", ".yaml", ".jinja", ".lock", ".md"}
    assert not [path for path in files if path.name.startswith("model")]
    shutil.copytree(tmp_path / "run", tmp_path / "copy", ignore=shutil.ignore_patterns("run.lock*"))
    weights = tmp_path / "copy" / f"checkpoint-{NUM_STEPS}" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    resumed = trainer_at(tmp_path / "copy", "dora")
    resumed.train(resume_from_checkpoint=True)
    assert metrics_in(tmp_path / "copy") == metrics_in(tmp_path / "run")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"peft": {**KINDS["dora"], "lora_alpha": 4}}, "adapters: was .*'lora_alpha': 8"),
        ({"peft": {**KINDS["dora"], "r": 2}}, "adapters: was .*'r': 4"),
        ({"peft": None}, "adapters: was"),
    ],
)
def test_another_adapter_is_refused(tmp_path, changed, named):
    stop_at(tmp_path / "run", 1, "dora")
    with pytest.raises(ValueError, match=named):
        trainer_at(tmp_path / "run", "dora", **changed).train(resume_from_checkpoint=True)


def test_the_best_adapter_is_loaded_at_the_end(tmp_path):
    model = make_model()
    args = DPOConfig(
        output_dir=str(tmp_path / "run"),
        per_device_train_batch_size=4,
        max_steps=4,
        learning_rate=3e-2,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_rewards/margins",
        greater_is_better=False,
        report_to="none",
        disable_tqdm=True,
        cpu_tuning="off",
    )
    trainer = DPOTrainer(
        model,
        args=args,
        train_dataset=make_rows(14),
        eval_dataset=make_rows(6),
        processing_class=make_tokenizer(),
        peft_config={"r": 4, "target_modules": ["q_proj"]},
    )
    trainer.train()
    margins = [e["eval_rewards/margins"] for e in trainer.state.log_history if "eval_rewards/margins" in e]
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{margins.index(min(margins)) + 1}")
    assert margins.index(min(margins)) < 3, "the last is the best: nothing would be loaded"
    assert trainer.evaluate()["eval_rewards/margins"] == pytest.approx(min(margins), abs=1e-9)
