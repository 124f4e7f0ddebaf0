from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from test_two_processes import run
from training import relative_distance

from burnish import DPOConfig, DPOTrainer
from burnish.models.forward import install_forward
from burnish.models.moving import BemaReference, BemaSchedule, SyncedReference, SyncSchedule
from burnish.models.refcache import StartingPolicy
from burnish.models.reference import FromColumns, FrozenModel, NoReference
from burnish.trainers.reference_options import choose_reference
from conftest import make_model, make_rows, make_tokenizer

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
TOKEN_COLUMNS = ("ref_chosen_token_logps", "ref_rejected_token_logps")
MOVING = ({"sync_ref_model": True}, {"ref_model_bema": {}})


@pytest.fixture
def policy():
    model = make_model()
    install_forward(model)
    return model


def options(**given) -> DPOConfig:
    return DPOConfig(output_dir="unused", report_to="none", **given)


# Which one.


def test_the_usual_one_is_a_frozen_copy(policy):
    reference = choose_reference(policy, None, options())
    assert type(reference) is FrozenModel
    assert reference.model is not policy


def test_a_given_model_is_taken_as_it_is(policy, tmp_path):
    other = make_model(1)
    assert choose_reference(policy, other, options()).model is other
    other.save_pretrained(tmp_path)
    loaded = choose_reference(policy, str(tmp_path), options()).model
    assert torch.equal(loaded.model.norm.weight, other.model.norm.weight)


def test_columns_come_before_a_copy(policy):
    by_row = choose_reference(policy, None, options(), columns=COLUMNS)
    by_token = choose_reference(policy, None, options(), columns=TOKEN_COLUMNS)
    assert (type(by_row), by_row.knows_tokens) == (FromColumns, False)
    assert (type(by_token), by_token.knows_tokens) == (FromColumns, True)
    assert by_token.description == "columns ref_chosen_token_logps and ref_rejected_token_logps of the data set"
    several = choose_reference(policy, None, options(), columns=["ref_completion_logps"])
    assert (type(several), several.knows_tokens) == (FromColumns, False)
    assert choose_reference(policy, None, options(), columns=["ref_completion_token_logps"]).knows_tokens


def test_none_where_no_loss_reads_one(policy):
    assert type(choose_reference(policy, None, options(), need_reference=False)) is NoReference
    assert type(choose_reference(policy, None, options(reference_free=True))) is NoReference
    assert type(choose_reference(policy, make_model(1), options(), need_reference=False)) is FrozenModel


def test_computed_once_by_the_policy_itself_or_by_the_given_model(policy):
    once = options(precompute_ref_log_probs=True)
    own = choose_reference(policy, None, once)
    assert type(own) is StartingPolicy
    assert own.model is policy
    other = make_model(1)
    given = choose_reference(policy, other, once)
    assert type(given) is FrozenModel
    assert given.model is other


def test_moving_ones_start_where_a_still_one_would_be(policy):
    synced = choose_reference(
        policy, None, options(sync_ref_model=True, ref_model_mixup_alpha=0.3, ref_model_sync_steps=7)
    )
    assert type(synced) is SyncedReference
    assert synced.schedule == SyncSchedule(mixup_alpha=0.3, sync_steps=7)
    assert synced.model is not policy
    assert synced.description == (
        "copy of the policy, taken at construction; moves every 7 steps to 0.3 policy + 0.7 reference (TR-DPO)"
    )
    other = make_model(1)
    assert choose_reference(policy, other, options(sync_ref_model=True)).model is other
    bema = choose_reference(policy, None, options(ref_model_bema={"lag": 3}))
    assert type(bema) is BemaReference
    assert bema.schedule == BemaSchedule(lag=3)


def test_a_trainer_chooses_by_its_options_and_rows(tmp_path):
    made = DPOTrainer(
        make_model(),
        args=DPOConfig(output_dir=str(tmp_path), report_to="none", ref_model_bema={}),
        train_dataset=make_rows(3),
        processing_class=make_tokenizer(),
    )
    assert type(made.reference) is BemaReference


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [{"sync_ref_model": True, "ref_model_sync_steps": 1}, {"ref_model_bema": {"update_freq": 1}, "ref_seed": None}],
    ids=["sync", "bema"],
)
def test_a_moving_reference_on_two_processes(tmp_path, given):
    """Each process moves its own, and all are the same: the gradients are those of one process."""
    one = run(tmp_path / "one", 1, use_cpu=True, **given)
    two = run(tmp_path / "two", 2, use_cpu=True, per_device_train_batch_size=2, **given)
    still = run(tmp_path / "still", 1, use_cpu=True, ref_seed=given.get("ref_seed", 1))
    for mine, reference in zip(two[0], one[0], strict=True):
        assert relative_distance(mine, reference) < 1e-11
    assert relative_distance(one[0][-1], still[0][-1]) > 1e-6


# Contradictions of options alone: before any model is loaded.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"sync_ref_model": True, "precompute_ref_log_probs": True},
            "precompute_ref_log_probs and sync_ref_model exclude",
        ),
        (
            {"ref_model_bema": {}, "precompute_ref_log_probs": True},
            "precompute_ref_log_probs and ref_model_bema exclude",
        ),
        ({"ref_model_bema": {}, "sync_ref_model": True}, "sync_ref_model and ref_model_bema exclude"),
        ({"reference_free": True, "sync_ref_model": True}, "reference_free and sync_ref_model exclude"),
        (
            {"reference_free": True, "precompute_ref_log_probs": True},
            "reference_free and precompute_ref_log_probs exclude",
        ),
        ({"precompute_ref_batch_size": 4}, "no effect without precompute_ref_log_probs=True"),
        ({"precompute_ref_log_probs": True, "precompute_ref_batch_size": 0}, "precompute_ref_batch_size=0; allowed"),
        ({"precompute_ref_log_probs": True, "precompute_ref_batch_size": 2.5}, "precompute_ref_batch_size=2.5"),
        ({"ref_model_mixup_alpha": 0.5}, "no effect without sync_ref_model=True"),
        ({"ref_model_sync_steps": 10}, "no effect without sync_ref_model=True"),
        ({"sync_ref_model": True, "ref_model_mixup_alpha": 1.1}, "ref_model_mixup_alpha=1.1"),
        ({"sync_ref_model": True, "ref_model_sync_steps": 0}, "ref_model_sync_steps=0"),
        ({"ref_model_bema": {"gamma": 1}}, "ref_model_bema has no option 'gamma'"),
        ({"ref_model_bema": True}, "ref_model_bema=True; give a mapping"),
    ],
)
def test_contradictory_options(given, message):
    with pytest.raises(ValueError, match=message):
        options(**given)


def test_trls_defaults_are_accepted():
    options(sync_ref_model=False, ref_model_mixup_alpha=0.6, ref_model_sync_steps=512, precompute_ref_batch_size=None)


# Contradictions with model, rows and losses.


def test_the_policy_is_no_reference_of_itself(policy):
    with pytest.raises(ValueError, match="ref_model is the policy itself"):
        choose_reference(policy, policy, options())


def test_two_references(policy):
    other = make_model(1)
    with pytest.raises(ValueError, match="ref_model is given, and the data set has ref_chosen_logps"):
        choose_reference(policy, other, options(), columns=COLUMNS)
    with pytest.raises(ValueError, match="ref_model is given, and reference_free=True"):
        choose_reference(policy, other, options(reference_free=True))
    with pytest.raises(ValueError, match="ref_model is given, and ref_model_bema"):
        choose_reference(policy, other, options(ref_model_bema={}))


@pytest.mark.parametrize("switch", [*MOVING, {"precompute_ref_log_probs": True}], ids=lambda given: next(iter(given)))
def test_options_about_a_model_that_is_not_there(policy, switch):
    (name,) = switch
    with pytest.raises(ValueError, match=f"{name} is set, and the data set has ref_chosen_logps"):
        choose_reference(policy, None, options(**switch), columns=COLUMNS)
    with pytest.raises(ValueError, match=f"{name} is set, and the data set has ref_chosen_token_logps"):
        choose_reference(policy, None, options(**switch), columns=TOKEN_COLUMNS)
    with pytest.raises(ValueError, match=f"{name} is set, and none of the losses reads a reference"):
        choose_reference(policy, None, options(**switch), need_reference=False)


def test_a_divergence_is_no_number_of_a_row(policy):
    with pytest.raises(ValueError, match="divergence of the policy from the reference"):
        choose_reference(policy, None, options(precompute_ref_log_probs=True), needs={"divergence"})


def test_another_architecture_cannot_be_mixed(policy):
    with pytest.raises(ValueError, match="of the same architecture"):
        choose_reference(policy, make_model(1, intermediate_size=64), options(sync_ref_model=True))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # peft asks transformers by the old name
@pytest.mark.parametrize("switch", MOVING, ids=["sync", "bema"])
def test_an_adapter_cannot_be_mixed(policy, switch):
    peft = pytest.importorskip("peft")
    from transformers import LlamaForCausalLM

    adapted = peft.get_peft_model(make_model(), peft.LoraConfig(target_modules=["q_proj"], r=2))
    (name,) = switch
    with pytest.raises(ValueError, match=f"{name} mixes the policy's weights .* this policy is an adapter"):
        choose_reference(adapted, None, options(**switch))
    inner = adapted.get_base_model()  # injected: the class says nothing
    assert type(inner) is LlamaForCausalLM
    assert isinstance(inner, nn.Module)
    with pytest.raises(ValueError, match="this policy is an adapter"):
        choose_reference(inner, None, options(**switch))


def test_a_stream_cannot_be_scored_before(tmp_path):
    def stream():
        yield from make_rows(3)

    from datasets import IterableDataset

    with pytest.raises(ValueError, match="stream"):
        DPOTrainer(
            make_model(),
            args=DPOConfig(output_dir=str(tmp_path), report_to="none", precompute_ref_log_probs=True, max_steps=1),
            train_dataset=IterableDataset.from_generator(stream),
            processing_class=make_tokenizer(),
        )


class Softened(FrozenModel):
    """A reference of a user's: the model at twice the temperature."""

    def score(self, batch, *, needs=(), temperature=1.0):
        return super().score(batch, needs=needs, temperature=2 * temperature)


def test_a_reference_of_the_users_is_taken_as_it_is(policy, tmp_path):
    model = make_model(1)
    install_forward(model)
    own = Softened(model, description="softened")
    assert choose_reference(policy, own, options()) is own
    for switch in MOVING[0], {"precompute_ref_log_probs": True}:
        with pytest.raises(
            ValueError, match=f"{next(iter(switch))} makes a reference of a model, and ref_model is one"
        ):
            choose_reference(policy, own, options(**switch))
    config = DPOConfig(output_dir=str(tmp_path), max_steps=1, report_to="none", cpu_tuning="off")
    trainer = DPOTrainer(
        make_model(), config, ref_model=own, train_dataset=make_rows(4), processing_class=make_tokenizer()
    )
    trainer.train()
    assert trainer.reference is own
