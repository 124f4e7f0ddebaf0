from __future__ import annotations

import pytest

from burnish.cli import estimates
from burnish.cli.environment import memory_bytes
from burnish.cli.estimates import estimate_disk, estimate_memory, num_checkpoints, num_steps, training_of
from burnish.cli.rulebook import option_values
from burnish.data.check import RowCheck
from burnish.models.size import ModelShape, ModelSize

SIZE = ModelSize(1000, "a test", ModelShape(layers=1, hidden=2, inner=3, query=2, key=1, vocabulary=5))
ROWS = RowCheck({"text": 10}, (), 5, 7, 2, False, ())


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch):
    monkeypatch.setattr(estimates, "has_accelerator", lambda: False)


def values(**options):
    return option_values({"training": options})


def test_memory_is_that_of_a_full_part_of_the_longest_rows():
    estimate = estimate_memory({}, values(per_device_train_batch_size=3), SIZE, ROWS)
    assert (estimate.num_tokens, estimate.row_tokens) == (6 * 12, 12)
    assert estimate.parts["activations"] == 6 * 12 * 36 * 4
    assert estimate.available == memory_bytes()
    assert "with up to 72 tokens at a time in rows of about 12;" in estimate.line
    unknown = estimate_memory({}, values(per_device_train_batch_size=3, max_length=None), SIZE, None)
    assert unknown.row_tokens == 1024


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"gradient_accumulation_steps": 4}, 4 * 72),  # small micro-batches are put together
        ({"gradient_accumulation_steps": 100}, 1024),  # up to the budget of a CPU
        ({"gradient_accumulation_steps": 100, "bf16": True}, 4096),
        ({"per_device_train_batch_size": 500}, 1024),  # and a large one is cut
        ({"gradient_accumulation_steps": 4, "token_budget": 100}, 100),
        ({"gradient_accumulation_steps": 4, "token_budget": 10}, 24),  # never a pair
        ({"gradient_accumulation_steps": 4, "token_budget": 0}, 72),
    ],
    ids=str,
)
def test_tokens_at_a_time_are_those_of_a_part(options, expected):
    given = values(**{"per_device_train_batch_size": 3, **options})
    assert estimate_memory({}, given, SIZE, ROWS).num_tokens == expected


def test_an_accelerator_has_no_budget_of_its_own(monkeypatch):
    monkeypatch.setattr(estimates, "has_accelerator", lambda: True)
    given = {"per_device_train_batch_size": 500, "gradient_accumulation_steps": 4}
    assert estimate_memory({}, values(**given), SIZE, ROWS).num_tokens == 500 * 24
    assert estimate_memory({}, values(**given, token_budget=300), SIZE, ROWS).num_tokens == 300
    assert estimate_memory({}, values(**given, use_cpu=True, bf16=False), SIZE, ROWS).num_tokens == 1024


def rollout_values(**options):
    return option_values({"method": "grpo", "training": options})


def test_memory_of_a_method_that_draws_its_own_answers():
    """A row is prompt and answer. Of 1 layer of one key: 2 numbers a token of 64 answers that are drawn together."""
    rows = RowCheck({"text": 10}, (), 5, 7, 1, False, ())
    options = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 16}
    estimate = estimate_memory({}, rollout_values(**options), SIZE, rows)
    assert (estimate.num_tokens, estimate.row_tokens) == (1024, 12)
    assert estimate.parts["activations"] == 1024 * 36 * 4
    assert "reference" not in estimate.parts
    assert "cache beyond them" not in estimate.parts
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 64, "beta": 0.1, "token_budget": 0}
    estimate = estimate_memory({}, rollout_values(**small), SIZE, rows)
    assert estimate.parts["cache beyond them"] == 64 * 12 * 2 * 4 - 12 * 36 * 4
    assert estimate.parts["reference"] == 4000


def test_steps_of_rounds():
    """2 prompts a round, 4 rounds of 9 prompts; each a step, or two steps twice over."""
    options = {"num_generations": 4, "per_device_train_batch_size": 8, "num_train_epochs": 2}
    assert num_steps(rollout_values(**options), 9) == 8
    again = {**options, "steps_per_generation": 2, "num_iterations": 2}
    assert num_steps(rollout_values(**again), 9) == 2 * 2 * 4
    assert num_steps(rollout_values(**options), None) is None


@pytest.mark.parametrize(
    ("document", "options", "expected"),
    [
        ({}, {}, True),
        ({}, {"reference_free": True}, False),
        ({}, {"loss_type": "simpo"}, False),
        ({}, {"loss_type": ["simpo", "sigmoid"]}, True),
        ({}, {"loss_type": "my:loss"}, True),
        ({}, {"precompute_ref_log_probs": True}, False),
        ({"ref_model": "other"}, {"precompute_ref_log_probs": True}, True),
        ({}, {"sync_ref_model": True}, True),
    ],
)
def test_when_a_second_model_is_held(document, options, expected):
    assert training_of(document, values(**options), num_tokens=1).has_reference is expected


def test_rows_with_the_references_numbers_need_no_second_model():
    rows = RowCheck({}, (), 5, 7, 2, True, ())
    assert not training_of({}, values(), num_tokens=1, rows=rows).has_reference


def test_precision_optimizer_and_checkpointing(monkeypatch):
    training = training_of({}, values(optim="adagrad", model_init_kwargs={"dtype": "bfloat16"}), num_tokens=1)
    assert (training.optimizer_states, training.weight_bytes) == (1, 2)
    assert training_of({}, values(model_init_kwargs='{"dtype": "torch.float16"}'), num_tokens=1).weight_bytes == 2
    assert training_of({}, values(model_init_kwargs="{"), num_tokens=1).weight_bytes == 4
    assert training_of({}, values(optim="made_up"), num_tokens=1).optimizer_states == 2
    assert not training_of({}, values(), num_tokens=1).is_autocast
    assert training_of({}, values(bf16=True), num_tokens=1).is_autocast
    monkeypatch.setattr(estimates, "has_accelerator", lambda: True)
    accelerated = training_of({}, values(), num_tokens=1)
    assert (accelerated.is_autocast, accelerated.is_checkpointed) == (True, True)
    assert not training_of({}, values(use_cpu=True), num_tokens=1).is_autocast
    assert estimate_memory({}, values(), SIZE, ROWS).available is None


@pytest.mark.parametrize(
    ("options", "num_rows", "expected"),
    [
        ({"max_steps": 7}, None, 7),
        ({}, None, None),
        ({"num_train_epochs": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}, 25, 6),
    ],
)
def test_steps(options, num_rows, expected):
    assert num_steps(values(**options), num_rows) == expected


@pytest.mark.parametrize(
    ("options", "steps", "expected"),
    [
        ({"save_strategy": "no"}, 100, 0),
        ({"save_steps": 10}, 100, 10),
        ({"save_steps": 0.25}, 100, 4),
        ({"save_steps": 10, "save_total_limit": 2}, 100, 3),
        ({"save_steps": 10, "save_total_limit": 2, "load_best_model_at_end": True}, 100, 4),
        ({"save_steps": 60, "save_total_limit": 5}, 100, 2),
        ({"save_strategy": "epoch", "num_train_epochs": 2.5}, None, 3),
        ({"save_strategy": "best"}, 100, None),
        ({"save_strategy": "best", "save_total_limit": 1}, 100, 2),
        ({"save_steps": 10}, None, None),
    ],
)
def test_checkpoints_at_a_time(options, steps, expected):
    assert num_checkpoints(values(**options), steps) == expected


def test_disk(tmp_path):
    options = values(max_steps=30, save_steps=10, output_dir=str(tmp_path / "new" / "run"))
    estimate = estimate_disk({}, options, SIZE, None)
    assert (estimate.checkpoint, estimate.model, estimate.num_checkpoints) == (12_000, 4_000, 3)
    assert (estimate.total, estimate.folder) == (40_000, tmp_path)
    assert not estimate.is_too_much
    unknown = estimate_disk({}, values(save_strategy="best"), SIZE, None)
    assert "their number is not known" in unknown.line
    assert unknown.total == 4_000
