"""The pages of the seams are short and linked, and the signatures that they promise are frozen here, word for word."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

import burnish
from burnish import testing

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted((DOCS / "seams").glob("*.md"))

# A change here breaks the code of users: it belongs in the changelog, with what to write instead.
SIGNATURES = {
    "preference_loss": "(name, *, paper=None, **facts)",
    "policy_loss": "(name, *, paper=None, **facts)",
    "reward_loss": "(name, *, paper=None, **facts)",
    "advantage": "(name, *, paper=None, **facts)",
    "kl_estimator": "(name, *, paper=None, **facts)",
    "reward": "(name, *, paper=None, **facts)",
    "arg": "(default, help)",
    "forward": "(model, batch, *, needs=(), teacher=None, temperature=1.0)",
    "PolicyTrainer.__init__": "(self, model, args=None, *, train_dataset=None, eval_dataset=None, "
    "processing_class=None, data_collator=None, callbacks=None, optimizers=(None, None), peft_config=None, "
    "quantization_config=None)",
    "PolicyTrainer.loss": "(self, model, batch)",
    "PolicyTrainer.prepare_step": "(self, model, parcels)",
    "PolicyTrainer.follow_policy": "(self)",
    "PolicyTrainer.stateful": "(self)",
    "PolicyTrainer.binding": "(self)",
    "PolicyTrainer.log_metric": "(self, name, values, *, weight=None)",
    "OnlineTrainer.__init__": "(self, model, reward_funcs, args=None, *, reward_processing_classes=None, "
    "generator=None, ref_model=None, train_dataset=None, eval_dataset=None, **kwargs)",
    "OnlineTrainer.draw": "(self, prompts, num_samples, *, model=None, stream=0)",
    "OnlineTrainer.compute_ref_log_probs": "(self, batch)",
    "OnlineTrainer.compute_teacher": "(self, batch)",
    "DPOTrainer.draw": "(self, batch, rows, params, *, model=None)",
    "TokenBatch.with_answers": "(self, rows, answers)",
    "OnlineTrainer.advantage_choice": "(self, options)",
    "OnlineTrainer._generate": "(self, prompts)",
    "OnlineTrainer._calculate_rewards": "(self, answers, num_tokens)",
    "OnlineTrainer._rescore": "(self, batch)",
    "OnlineTrainer._shape_rewards": "(self, rewards, batch)",
    "OnlineTrainer._credit": "(self, whole, batch)",
    "Generator.generate": "(self, prompts, params, *, num_samples, seed, round_index)",
    "Generator.update_policy": "(self, model, *, version)",
    "ModelReference.score": "(self, batch, *, needs=(), temperature=1.0)",
    "ModelReference.teacher": "(self, batch)",
    "ModelReference.fingerprint": "(self)",
    "ModelReference.follow": "(self, policy, *, step)",
    "Reference.logps": "(self, batch)",
    "Reference.token_logps": "(self, batch)",
    "LossOutput.of": "(losses, *, per, name='loss', metrics=None)",
    "Mean.of": "(values, *, weight=None)",
}
CONTRACTS = {
    "assert_loss_contract": "(loss, **hyper_parameters)",
    "assert_advantage_contract": "(advantage, **hyper_parameters)",
    "assert_reward_contract": "(reward, *, columns=None, **settings)",
    "assert_kl_estimator_contract": "(estimator, *, unbiased=None, never_negative=None)",
    "assert_generator_contract": "(make_generator, *, make_model=tiny_model, end_token_ids=(1, 7, 12), num_draws=2000)",
    "assert_reference_contract": "(make_reference, *, make_model=dropping_model, without=())",
    "assert_trainer_contract": "(trainer, *, options=None, make_rows=None, make_model=tiny_model, make_keywords=None, "
    "reward_funcs=near_wanted, processes=2, without=())",
}
PARCELS = {
    "TokenBatch": "prompt_ids prompt_mask completion_ids completion_mask loss_mask prompt_index row_id columns "
    "turn_index extra is_filler",
    "PreferenceBatch": "prompt_ids prompt_mask completion_ids completion_mask loss_mask prompt_index row_id columns "
    "turn_index extra is_filler pairs margin weight ref_logps ref_token_logps coupled",
    "RolloutBatch": "prompt_ids prompt_mask completion_ids completion_mask loss_mask prompt_index row_id columns "
    "turn_index extra is_filler advantages old_logps ref_logps sampler_logps importance_weights policy_mask values "
    "returns bootstrap_value temperature",
    "TokenStats": "logps mask entropy hidden extra aux_loss",
    "PairLogps": "chosen rejected ref_chosen ref_rejected chosen_length rejected_length chosen_row margin "
    "chosen_kl rejected_kl weight",
    "PolicyTokens": "logps old_logps advantages mask log_ratio sampler_logps importance_weights entropy",
    "TokenLoss": "losses metrics",
    "RewardTable": "rewards names weights token_rewards extra",
    "Prompt": "ids key extra",
    "SamplingParams": "max_new_tokens temperature top_k top_p min_p repetition_penalty end_token_ids stop_strings "
    "min_new_tokens",
    "Completion": "prompt_ids token_ids logps kept_mass loss_mask turns finish_reason policy_version",
    "Term": "name losses per coefficient",
    "LossOutput": "terms metrics",
    "Mean": "total weight squares",
}


def signature(item) -> str:
    """Names, kinds and defaults, without annotations."""
    plain = [p.replace(annotation=p.empty) for p in inspect.signature(item).parameters.values()]
    text = str(inspect.Signature(plain))
    return re.sub(r"<function (\w+) at 0x\w+>", r"\1", text)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_frozen(name):
    owner, _, member = name.partition(".")
    item = getattr(burnish, owner)
    found = signature(getattr(item, member) if member else item)
    assert found.replace("(self, ", "(") == SIGNATURES[name].replace("(self, ", "(")


@pytest.mark.parametrize("name", CONTRACTS)
def test_contracts_are_frozen(name):
    assert signature(getattr(testing, name)) == CONTRACTS[name]


@pytest.mark.parametrize("name", PARCELS)
def test_fields_of_parcels_are_frozen(name):
    assert " ".join(field.name for field in fields(getattr(burnish, name))) == PARCELS[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_short_and_linked(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert not [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).is_file(), target
    assert f"](seams/{page.name})" in (DOCS / "seams.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_use_public_names(page):
    """What a page imports from `burnish` is exported."""
    names = re.findall(r"^from burnish import (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    used = {name.strip() for line in names for name in line.split(",")}
    assert used <= set(burnish.__all__)
