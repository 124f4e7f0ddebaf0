"""The critic's files, where it may come from, and what cannot be one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from online_training import ending_model, make_prompts, near_wanted, step_lines
from ppo_training import make_ppo_trainer, value_model

from burnish.models.critic import ActorCritic, critic_values, value_head
from burnish.models.forward import forward, install_forward
from burnish.trainers.ppo import PPOTrainer
from burnish.trainers.ppo_options import PPOConfig
from burnish.types import TokenBatch
from conftest import make_model, make_tokenizer

TEXTS = ["Say red 0", "no rain today", "a long walk"]


@torch.no_grad()
def scores_of(model, tokenizer) -> torch.Tensor:
    """The plain class's scores of a few texts, one by one."""
    return torch.stack([model(**tokenizer(text, return_tensors="pt")).logits[0, 0] for text in TEXTS])


@pytest.mark.parametrize("critic", ["policy", "head"])
def test_both_load_with_the_plain_classes(tmp_path, critic):
    """The policy lies at the top, the critic in a directory of its own; each says what it said in training."""
    trainer = make_ppo_trainer(tmp_path / "run", dtype=torch.float32, critic=critic, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved" / "critic").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved" / "critic")
    own, ids, found = trainer.actor_critic.eval(), torch.tensor([[5, 6, 7]]), scores_of(loaded, tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(policy(input_ids=ids).logits, own.policy(input_ids=ids).logits, rtol=0, atol=1e-5)
        values = [critic_values(own, row(tokenizer, text))[0, -1] for text in TEXTS]
    torch.testing.assert_close(found, torch.stack(values), rtol=0, atol=1e-5)
    assert found.abs().max() > 1e-3


def row(tokenizer, text: str) -> TokenBatch:
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    return TokenBatch(
        prompt_ids=ids[:, :1], prompt_mask=mask[:, :1], completion_ids=ids[:, 1:], completion_mask=mask[:, 1:],
        loss_mask=mask[:, 1:], prompt_index=torch.tensor([0]), row_id=torch.tensor([0]),
    )  # fmt: skip


def test_a_saved_critic_goes_on(tmp_path):
    """As `value_model`, by its path: the same weights as the run ended with."""
    trainer = make_ppo_trainer(tmp_path / "run", dtype=torch.float32, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    again = PPOTrainer(
        ending_model(0, torch.float32), near_wanted, PPOConfig(output_dir=str(tmp_path / "again"), kl_coef=0),
        value_model=str(tmp_path / "saved" / "critic"), train_dataset=make_prompts(), processing_class=make_tokenizer(),
    )  # fmt: skip
    for (name, mine), theirs in zip(again.critic.named_parameters(), trainer.critic.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_a_head_and_its_trunk_are_one_forward():
    """Values of the head, of a batch with two answers to a prompt, are those of the hidden states; alone, too."""
    policy = make_model(dtype=torch.float64)
    install_forward(policy)
    module = ActorCritic(policy, value_head(policy))
    torch.nn.init.normal_(module.critic.weight)
    ids = torch.tensor([[11, 12, 13], [14, 15, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    batch = TokenBatch(
        prompt_ids=torch.tensor([[5, 6]]), prompt_mask=torch.ones(1, 2, dtype=torch.bool), completion_ids=ids,
        completion_mask=mask, loss_mask=mask, prompt_index=torch.tensor([0, 0]), row_id=torch.tensor([3, 3]),
    )  # fmt: skip
    stats = forward(module, batch, needs=("hidden",))
    expected = (stats.hidden @ module.critic.weight[0]).masked_fill(
        ~torch.nn.functional.pad(mask, (1, 0), value=True), 0
    )
    torch.testing.assert_close(stats.extra["values"], expected)
    assert "hidden" not in forward(module, batch).extra
    assert forward(module, batch).hidden is None
    torch.testing.assert_close(critic_values(module, batch), expected)
    critic_values(module, batch).sum().backward()
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert module.critic.weight.grad.abs().sum() > 0
    forward(module, batch).extra["values"].sum().backward()
    assert policy.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_a_head_in_float32_on_a_trunk_in_bfloat16():
    policy = make_model(dtype=torch.bfloat16)
    install_forward(policy)
    module = ActorCritic(policy, value_head(policy))
    torch.nn.init.normal_(module.critic.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = critic_values(module, row(make_tokenizer(), "some text"))
    assert module.critic.weight.dtype == values.dtype == torch.float32
    assert not torch.equal(values, values.bfloat16().float())


def test_a_critic_in_bfloat16(tmp_path):
    """Loaded by name with options of its own, its head in float32; it is trained and saved."""
    value_model(dtype=torch.float32).save_pretrained(tmp_path / "critic")
    trainer = PPOTrainer(
        ending_model(0, torch.float32), near_wanted,
        PPOConfig(
            output_dir=str(tmp_path / "run"), kl_coef=0, value_model_init_kwargs={"dtype": torch.bfloat16}, max_steps=1,
            report_to="none", disable_tqdm=True, cpu_tuning="off", reward_isolation="none", max_completion_length=8,
        ),
        value_model=str(tmp_path / "critic"), train_dataset=make_prompts(), processing_class=make_tokenizer(),
    )  # fmt: skip
    trainer.train()
    assert {p.dtype for p in trainer.critic.model.parameters()} == {torch.bfloat16}
    trainer.save_model(str(tmp_path / "saved"))
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved" / "critic").dtype == torch.bfloat16


# Where it comes from.


def reward_model(tmp_path: Path, tokenizer=None) -> str:
    """A reward model on disk with its tokenizer."""
    value_model(7, torch.float32).save_pretrained(tmp_path / "reward")
    (tokenizer or make_tokenizer()).save_pretrained(tmp_path / "reward")
    return str(tmp_path / "reward")


@pytest.mark.parametrize("in_memory", [False, True])
def test_from_the_reward_model(tmp_path, in_memory):
    """A copy of it, head and all: training the critic leaves the reward as it is."""
    place = reward_model(tmp_path)
    given = AutoModelForSequenceClassification.from_pretrained(place) if in_memory else place
    trainer = make_ppo_trainer(
        tmp_path / "run", dtype=torch.float32, reward_funcs=[given, near_wanted], critic="reward", max_steps=1
    )
    plain = AutoModelForSequenceClassification.from_pretrained(place)
    for mine, theirs in zip(trainer.critic.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.requires_grad
    trainer.train()
    if in_memory:
        assert all(torch.equal(a, b) for a, b in zip(given.parameters(), plain.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(trainer.critic.parameters(), plain.parameters(), strict=True))


def test_from_the_reward_model_there_has_to_be_one(tmp_path):
    with pytest.raises(
        ValueError, match="critic='reward' is a copy of the reward model, and reward_funcs has 0 of them"
    ):
        make_ppo_trainer(tmp_path, critic="reward")


def test_two_critics(tmp_path):
    with pytest.raises(ValueError, match="value_model is given, and critic='head' makes another one"):
        PPOTrainer(
            ending_model(), near_wanted, PPOConfig(output_dir=str(tmp_path), critic="head"), value_model=value_model(),
            train_dataset=make_prompts(), processing_class=make_tokenizer(),
        )  # fmt: skip


def test_another_vocabulary(tmp_path):
    """By its tokenizer, which lies beside it; without one, by its embeddings."""
    other = make_tokenizer()
    other.add_tokens(["<one more>"])
    place = reward_model(tmp_path, other)
    options = {"train_dataset": make_prompts(), "processing_class": make_tokenizer()}
    config = PPOConfig(output_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"(?s)must have its vocabulary.*260 tokens, the policy's 259, and 1 differ"):
        PPOTrainer(ending_model(), near_wanted, config, value_model=place, **options)
    loaded = AutoModelForSequenceClassification.from_pretrained(place)
    with pytest.raises(ValueError, match="must have its vocabulary"):
        PPOTrainer(ending_model(), near_wanted, config, value_model=loaded, **options)
    small = AutoModelForSequenceClassification.from_config(make_model(vocab_size=100).config)
    small.config.num_labels = 1
    with pytest.raises(ValueError, match="it has 100 embeddings for 259 tokens"):
        PPOTrainer(ending_model(), near_wanted, config, value_model=small, **options)


# Adapters.

LORA = {"type": "lora", "r": 2, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("critic", [None, "head"])
def test_an_adapted_policy(tmp_path, critic):
    """The critic is a model of its own or a head on the adapted trunk; the base stays frozen, a resumed run is the same."""
    ending_model(0, torch.float32).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")

    def make(directory: Path, **more) -> PPOTrainer:
        settings = {
            "output_dir": str(directory), "per_device_train_batch_size": 8, "max_completion_length": 8, "max_steps": 4,
            "num_iterations": 2, "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "steps", "save_steps": 1,
            "report_to": "none", "disable_tqdm": True, "cpu_tuning": "off", "reward_isolation": "none", **more,
        }  # fmt: skip
        return PPOTrainer(
            str(tmp_path / "base"), near_wanted, PPOConfig(**settings), train_dataset=make_prompts(), peft_config=LORA
        )

    options = {} if critic is None else {"critic": critic}
    trainer = make(tmp_path / "run", **options)
    trainer.train()
    assert step_lines(trainer)[2]["objective/kl"] != 0  # the reference is the policy without its adapter
    assert (tmp_path / "run" / "checkpoint-4" / "adapter_model.safetensors").is_file()
    assert [p.name for p in (tmp_path / "run" / "checkpoint-4" / "critic").glob("*.safetensors")] == [
        "model.safetensors" if critic is None else "head.safetensors"
    ]
    frozen = {name for name, p in trainer.policy.named_parameters() if not p.requires_grad}
    assert frozen
    assert all("lora_" not in name for name in frozen)
    resumed = make(tmp_path / "run", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    for (name, mine), theirs in zip(resumed.model.named_parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_an_adapted_policy_in_memory_has_no_trunk_to_copy(tmp_path):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(ending_model(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    options = {"train_dataset": make_prompts(), "processing_class": make_tokenizer()}
    with pytest.raises(ValueError, match="this policy has an adapter in it: give value_model"):
        PPOTrainer(adapted, near_wanted, PPOConfig(output_dir=str(tmp_path)), **options)


def test_named_adapters(tmp_path):
    """`model_adapter_name` is trained, `ref_adapter_name` is the reference."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    policy = get_peft_model(ending_model(0, torch.float32), lora, adapter_name="sft")
    policy.add_adapter("ppo", lora)
    settings = {"critic": "head", "model_adapter_name": "ppo", "ref_adapter_name": "sft", "cpu_tuning": "off"}
    trainer = PPOTrainer(
        policy, near_wanted, PPOConfig(output_dir=str(tmp_path), report_to="none", **settings),
        train_dataset=make_prompts(), processing_class=make_tokenizer(),
    )  # fmt: skip
    trained = {name for name, p in trainer.policy.named_parameters() if p.requires_grad}
    assert trained
    assert all(".ppo." in name for name in trained)
    assert trainer.reference.description == "adapter 'sft' of the policy"


# Scripts of TRL.


def test_a_script_of_trl(tmp_path):
    """Keywords of TRL 0.25, rows that are token ids, a reward model without a name: it reads the same texts."""
    tokenizer = make_tokenizer()
    rows = [{"input_ids": tokenizer(f"Question {i}: ")["input_ids"]} for i in range(8)]
    config = PPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_ppo_epochs=2, num_mini_batches=2,
        response_length=6, total_episodes=8, missing_eos_penalty=1.0, report_to="none", disable_tqdm=True,
        cpu_tuning="off", logging_steps=1, save_strategy="no",
    )  # fmt: skip
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=ending_model(0, torch.float32),
        ref_model=ending_model(0, torch.float32), reward_model=value_model(5, torch.float32),
        value_model=value_model(5, torch.float32), train_dataset=rows, eval_dataset=rows[:2],
    )  # fmt: skip
    trainer.train()
    lines = step_lines(trainer)
    assert len(lines) == 4
    keys = {
        "eps", "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward",
        "objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg", "loss/policy_avg", "loss/value_avg",
        "val/clipfrac_avg", "policy/entropy_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "lr", "episode",
    }  # fmt: skip
    assert keys <= {key for line in lines for key in line}
    assert trainer.train_dataset[3]["prompt"] == "Question 3: "
    assert trainer.train_dataset[3]["prompt_input_ids"] == rows[3]["input_ids"]


def test_ids_of_another_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"row 1, column 'input_ids': are not the token ids of any text"):
        make_ppo_trainer(tmp_path, rows=[{"input_ids": [50, 60]}, {"input_ids": []}])
