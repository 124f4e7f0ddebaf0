"""DPO with adapters, end to end: trained, evaluated, saved, read and merged by plain PEFT; and which reference it has."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_dpo_images import image_rows
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from vision_models import FAMILIES, make_processor, make_vision_model

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from test_two_processes import run
from training import relative_distance

from burnish import DPOConfig, DPOTrainer
from burnish.models.adapter_reference import AdapterReference
from burnish.models.head_layer import UnsupportedModelError
from burnish.models.load import load_policy, load_tokenizer
from burnish.models.refcache import Precomputed, StartingPolicy
from burnish.models.reference import FrozenModel, NoReference
from burnish.runtime.rundir import read_events
from burnish.trainers.selfcheck import plain_logps
from conftest import make_model, make_rows, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
TARGETS = ["q_proj", "v_proj", "down_proj"]
KINDS = {
    "lora": LoraConfig(r=4, target_modules=TARGETS),
    "rslora": LoraConfig(r=4, lora_alpha=4, use_rslora=True, target_modules=TARGETS),
    "dora": LoraConfig(r=4, use_dora=True, target_modules=TARGETS),
    "head": LoraConfig(r=4, target_modules=[*TARGETS, "lm_head"]),
    "copy": LoraConfig(r=4, target_modules=TARGETS, modules_to_save=["lm_head"]),
}


def make_trainer(directory: Path, model, *, rows: int = 8, ref_model=None, **options) -> DPOTrainer:
    peft_config = options.pop("peft_config", None)
    settings = {
        "output_dir": str(directory / "run"),
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "cpu_tuning": "off",
        "seed": 5,
    }
    return DPOTrainer(
        model,
        args=DPOConfig(**{**settings, **options}),
        ref_model=ref_model,
        train_dataset=make_rows(rows),
        eval_dataset=make_rows(5),
        processing_class=make_tokenizer(),
        peft_config=peft_config,
    )


def untied(seed: int = 0):
    return make_model(seed, tie_word_embeddings=False)


def own_logps(model, trainer) -> torch.Tensor:
    """Summed log-probs of every answer through the model's own logits."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    return torch.tensor([plain_logps(model, batch, row) for row in range(len(batch))])


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.gallery) if k in ("rslora", "copy") else k for k in KINDS]
)
def test_trained_saved_read_and_merged(kind, tmp_path):
    """`save_model` writes what plain PEFT reads; merged, a plain model gives the same log-probs."""
    trainer = make_trainer(tmp_path, untied(), peft_config=KINDS[kind])
    frozen = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.train()
    assert "eval_loss" in trainer.evaluate()
    assert all(torch.equal(p, frozen[n]) for n, p in trainer.model.named_parameters() if n in frozen)
    trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    trainer.model.eval()
    expected = own_logps(trainer.model, trainer)
    scored = trainer.concatenated_forward(
        trainer.model, trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    ).sequence_sum()
    torch.testing.assert_close(scored, expected, rtol=1e-5, atol=1e-4)
    start = own_logps(untied(), trainer)
    assert (expected - start).abs().max() > 0.1
    read = PeftModel.from_pretrained(untied(), str(tmp_path / "saved")).eval()
    torch.testing.assert_close(own_logps(read, trainer), expected, rtol=1e-6, atol=1e-5)
    merged = read.merge_and_unload()
    torch.testing.assert_close(own_logps(merged, trainer), expected, rtol=1e-5, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(own_logps(plain, trainer), expected, rtol=1e-5, atol=1e-4)


def test_the_card_of_the_run_does_not_call_the_adapter_a_warning(tmp_path):
    trainer = make_trainer(tmp_path, untied(), peft_config=KINDS["lora"])
    trainer.train()
    trainer.save_model(str(tmp_path / "run"))
    card = (tmp_path / "run" / "README.md").read_text()
    assert "An adapter for" in card
    assert "adapter default" not in card.partition("## What was skipped or warned of")[2].partition("\n## ")[0]


def test_training_is_that_of_a_given_reference(tmp_path):
    """The adapter switched off is the model as it was: the same steps as with a second model, to the bit."""
    alone = make_trainer(tmp_path / "alone", untied(), peft_config=KINDS["lora"])
    given = make_trainer(
        tmp_path / "given", untied(), peft_config=KINDS["lora"], ref_model=untied(), force_use_ref_model=True
    )
    assert type(alone.reference) is AdapterReference
    assert type(given.reference) is FrozenModel
    for trainer in (alone, given):
        trainer.train()
    for one, other in zip(alone.model.parameters(), given.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_dpo_by_hand_on_a_trained_adapter(tmp_path):
    """The first loss is log 2 where the reference is the adapter as it came; TRL's and ours."""
    policy = get_peft_model(untied(), KINDS["dora"])
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    trainer = make_trainer(tmp_path, policy)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[0] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-5)
    assert trainer.reference.description == "a copy of adapter 'default', taken at construction"
    trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "burnish_reference").exists()


def test_the_directory_of_an_adapter_is_a_model(tmp_path):
    """With its model, its tokenizer, and a reference that is the adapter as it was saved."""
    untied().save_pretrained(tmp_path / "base")
    base = load_policy(tmp_path / "base")
    trainer = make_trainer(tmp_path, base, peft_config=KINDS["lora"])
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    expected = own_logps(trainer.model.eval(), trainer)
    assert load_tokenizer(str(tmp_path / "saved")).eos_token == "<|im_end|>"
    args = DPOConfig(output_dir=str(tmp_path / "more"), max_steps=1, report_to="none", cpu_tuning="off")
    more = DPOTrainer(str(tmp_path / "saved"), args, train_dataset=make_rows(8))
    assert more.processing_class.eos_token == "<|im_end|>"
    torch.testing.assert_close(own_logps(more.model.eval(), trainer), expected, rtol=1e-6, atol=1e-5)
    batch = more.data_collator([more.train_dataset[i] for i in range(8)])
    torch.testing.assert_close(more.reference.logps(batch), expected, rtol=1e-5, atol=1e-4)
    more.train()
    torch.testing.assert_close(more.reference.logps(batch), expected, rtol=1e-5, atol=1e-4)
    other = make_trainer(tmp_path / "other", untied(), ref_model=str(tmp_path / "saved"))
    torch.testing.assert_close(other.reference.logps(batch), expected, rtol=1e-5, atol=1e-4)


def test_directories_that_cannot_be_read(tmp_path):
    get_peft_model(untied(), LoraConfig()).save_pretrained(tmp_path / "memory")
    with pytest.raises(ValueError, match=r"adapter_config.json does not say which model.*is_trainable=True"):
        load_policy(tmp_path / "memory")
    untied().save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "memory" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "base")
    (tmp_path / "memory" / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "memory" / "adapter_model.safetensors").rename(tmp_path / "memory" / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"has no adapter_model.safetensors, and other files of weights are pickles"):
        load_policy(tmp_path / "memory")


def test_named_adapters(tmp_path):
    """`model_adapter_name` is trained, `ref_adapter_name` is the reference, a third one is left alone."""
    policy = get_peft_model(untied(), LoraConfig(r=2, target_modules=["q_proj"]), adapter_name="sft")
    policy.add_adapter("dpo", LoraConfig(r=2, target_modules=["q_proj"]))
    policy.add_adapter("rest", LoraConfig(r=2, target_modules=["q_proj"]))
    before = {name: p.clone() for name, p in policy.named_parameters()}
    trainer = make_trainer(tmp_path, policy, model_adapter_name="dpo", ref_adapter_name="sft")
    assert trainer.reference.description == "adapter 'sft' of the policy"
    trainer.train()
    changed = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(".dpo." in name for name in changed)
    trainer.save_model(str(tmp_path / "saved"))
    read = PeftModel.from_pretrained(untied(), str(tmp_path / "saved" / "dpo")).eval()
    torch.testing.assert_close(own_logps(read, trainer), own_logps(policy.eval(), trainer), rtol=1e-6, atol=1e-5)
    named = make_trainer(tmp_path / "named", untied(), peft_config=KINDS["lora"], model_adapter_name="mine")
    assert named.model.active_adapters == ["mine"]


@pytest.mark.slow
def test_log_probs_computed_once_are_those_of_the_reference(tmp_path, monkeypatch):
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    live = make_trainer(tmp_path / "live", untied(), peft_config=KINDS["dora"])
    once = make_trainer(tmp_path / "once", untied(), peft_config=KINDS["dora"], precompute_ref_log_probs=True)
    for trainer in (live, once):
        trainer.train()
    assert type(once.reference) is Precomputed
    losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (live, once)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    full = make_trainer(tmp_path / "full", untied(), precompute_ref_log_probs=True)
    full.train()  # the base model is the same: its numbers are read
    kept = [e for e in read_events(tmp_path / "full" / "run" / "events.jsonl") if e["kind"] == "reference"]
    assert [event["computed"] for event in kept] == [False, False]
    given = make_trainer(tmp_path / "given", get_peft_model(untied(), LoraConfig(r=2)), precompute_ref_log_probs=True)
    assert type(given.reference) is StartingPolicy


@pytest.mark.slow
def test_losses_without_a_reference_and_the_divergence_of_two_models(tmp_path):
    none = make_trainer(tmp_path / "none", untied(), peft_config=KINDS["lora"], loss_type="simpo")
    assert type(none.reference) is NoReference
    tdpo = make_trainer(tmp_path / "tdpo", untied(), peft_config=KINDS["head"], loss_type="tdpo")
    tdpo.train()
    full = make_trainer(tmp_path / "given", untied(), peft_config=KINDS["head"], loss_type="tdpo", ref_model=untied())
    full.train()
    assert tdpo.state.log_history[1]["loss"] == pytest.approx(full.state.log_history[1]["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft_config": KINDS["lora"], "sync_ref_model": True}, "sync_ref_model mixes the policy's weights"),
        ({"peft_config": KINDS["lora"], "ref_model_bema": {}}, "ref_model_bema mixes the policy's weights"),
        ({"ref_adapter_name": "sft"}, "ref_adapter_name='sft' is set, but the policy has no adapters"),
        ({"peft_config": KINDS["lora"], "ref_adapter_name": "sft"}, "'sft' is no adapter of the model"),
        ({"force_use_ref_model": True}, "force_use_ref_model is set, but no ref_model is given"),
        ({"ref_model_init_kwargs": {"dtype": "bfloat16"}}, "ref_model_init_kwargs is set, but no ref_model is given"),
        ({"model_adapter_name": "sft"}, "model_adapter_name='sft', but the model has no adapters"),
        ({"peft_config": LoraConfig(bias="lora_only", target_modules=["q_proj"])}, None),
    ],
)
def test_what_is_refused(options, message, tmp_path):
    if message is None:
        make_trainer(tmp_path, untied(), **options)  # the model has no bias to train
        return
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, untied(), **options)


def test_a_reference_inside_of_the_policy_is_refused(tmp_path):
    """PEFT replaces layers of the given model: the same model as the reference would be trained and frozen."""
    model = untied()
    with pytest.raises(ValueError, match="ref_model shares weights with the policy"):
        make_trainer(tmp_path, model, ref_model=model, peft_config=KINDS["lora"])


def test_the_reference_is_loaded_with_its_keywords(tmp_path):
    untied(1).save_pretrained(tmp_path / "ref")
    keywords = {"dtype": "bfloat16"}
    trainer = make_trainer(tmp_path, untied(), ref_model=str(tmp_path / "ref"), ref_model_init_kwargs=keywords)
    assert trainer.reference.model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="ref_model_init_kwargs is for models given by name"):
        make_trainer(tmp_path, untied(), ref_model=untied(1), ref_model_init_kwargs=keywords)


def test_dropout_of_the_adapter(tmp_path):
    """Off like every other dropout unless asked for; on, the reference is still scored without."""
    config = LoraConfig(r=4, target_modules=TARGETS, lora_dropout=0.5, init_lora_weights=False)
    off = make_trainer(tmp_path / "off", untied(), peft_config=config)
    assert off.num_dropouts_disabled == 6
    on = make_trainer(tmp_path / "on", untied(), peft_config=config, disable_dropout=False)
    assert on.num_dropouts_disabled == 0
    batch = on.data_collator([on.train_dataset[i] for i in range(4)])
    on.model.train()
    assert torch.equal(on.reference.logps(batch), on.reference.logps(batch))
    first, second = (on.concatenated_forward(on.model, batch).logps for _ in range(2))
    assert not torch.equal(first, second)
    for trainer, said in ((off, "lora_dropout 0.5, switched off by disable_dropout"), (on, "lora_dropout 0.5;")):
        trainer.train()
        events = read_events(Path(trainer.args.output_dir) / "events.jsonl")
        assert said in next(event["message"] for event in events if event["kind"] == "adapter")
        manifest = json.loads((Path(trainer.args.output_dir) / "manifest.json").read_text())
        assert manifest["model"]["adapter"]["kind"] == "LoRA"
        assert manifest["model"]["trainable"] == manifest["model"]["adapter"]["trainable"] == 1536
    on_head = LoraConfig(r=4, target_modules=["lm_head"], lora_dropout=0.5)
    with pytest.raises(UnsupportedModelError, match=r"lora_dropout=0\.5, which drops hidden states"):
        make_trainer(tmp_path / "head", untied(), peft_config=on_head, disable_dropout=False)


def first_step(trainer) -> dict:
    trainer.train()
    events = read_events(Path(trainer.args.output_dir) / "events.jsonl")
    return next(event for event in events if event["kind"] == "first_step")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_reads_images(tmp_path, family):
    """The adapter is in text and vision layers alike; log-probs are those of the model's own forward."""
    processor = make_processor(family)
    args = DPOConfig(output_dir=str(tmp_path / "run"), max_steps=2, report_to="none", cpu_tuning="off")
    trainer = DPOTrainer(
        make_vision_model(family, processor),
        args,
        train_dataset=image_rows(),
        processing_class=processor,
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
    )
    assert any("vis" in name and p.requires_grad for name, p in trainer.model.named_parameters())
    assert first_step(trainer)["ok"]


def test_experts_of_a_mixture(tmp_path):
    """LoRA on the weights of experts, which are parameters and no layers; the load-balancing loss goes on."""
    sizes = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "pad_token_id": 0}
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**sizes, **heads, initializer_range=0.2, eos_token_id=2, bos_token_id=1))
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"])
    trainer = make_trainer(tmp_path, model, peft_config=config, router_aux_loss_coef=0.01)
    assert first_step(trainer)["ok"]
    assert all("loss/aux_loss" in line for line in trainer.state.log_history if "grad_norm" in line)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "head"])
def test_two_processes(tmp_path, kind):
    """DDP sees the adapters, and the reference goes through the unwrapped model: the gradients of one process."""
    targets = {"lora": TARGETS, "head": [*TARGETS, "lm_head"]}[kind]
    options = {"ref_seed": None, "peft": {"r": 4, "target_modules": targets, "init_lora_weights": False}}
    one = run(tmp_path / "one", 1, use_cpu=True, **options)
    two = run(tmp_path / "two", 2, use_cpu=True, per_device_train_batch_size=2, **options)
    for first, second in zip(one[0], two[0], strict=True):
        assert relative_distance(second, first) < 1e-9
