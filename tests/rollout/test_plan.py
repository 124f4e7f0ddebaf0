"""The arithmetic of a round, worked out by hand."""

from __future__ import annotations

import pytest

from burnish.rollout.plan import RoundPlan, cut_rows, plan_round, refuse_cut_groups

DEFAULTS = {
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": None,
    "generation_batch_size": None,
    "num_iterations": 1,
    "processes": 1,
}


def plan(**changed) -> RoundPlan:
    return plan_round(**{**DEFAULTS, **changed})


def test_a_round_is_one_optimizer_step_unless_told_otherwise():
    """8 rows x 2 micro-batches = 16 answers, four each: 4 prompts."""
    found = plan()
    assert (found.prompts, found.rows_per_process, found.micro_batches, found.steps) == (4, 16, 2, 1)


def test_steps_per_generation_counts_micro_batches():
    """6 micro-batches are 3 optimizer steps of 2; twice over, 6 steps a round."""
    found = plan(steps_per_generation=6, num_iterations=2)
    assert (found.steps, found.micro_batches, found.total_steps) == (3, 2, 6)
    assert found.prompts == 12


def test_generation_batch_size_counts_answers_on_all_processes():
    """64 answers on 2 processes are 32 each: 4 micro-batches of 8."""
    found = plan(generation_batch_size=64, processes=2)
    assert (found.steps, found.prompts_per_process, found.prompts) == (2, 8, 16)


def test_less_than_an_optimizer_step_is_one():
    """A round of 1 micro-batch within a step of 2 would not see another policy: both are one round."""
    assert plan(steps_per_generation=1) == plan()


def test_groups_larger_than_a_micro_batch():
    found = plan(num_generations=16)
    assert found.prompts == 1


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"num_generations": 1}, "num_generations=1; allowed: 2 or more: a group of one has nothing to compare with"),
        ({"num_iterations": 0}, "num_iterations=0; allowed: 1 or more"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0"),
        ({"steps_per_generation": 0}, "steps_per_generation=0; allowed: 1 or more"),
        ({"steps_per_generation": 2, "generation_batch_size": 16}, "say the same thing twice"),
        ({"generation_batch_size": 12}, "no multiple of per_device_train_batch_size x processes = 8 x 1 = 8"),
        ({"generation_batch_size": 0}, "generation_batch_size=0"),
        ({"steps_per_generation": 3}, "3 micro-batches is no whole number of optimizer steps of 2.*=2, 4, 6"),
        ({"num_generations": 3}, "no whole number of groups of num_generations=3"),
    ],
)
def test_numbers_that_do_not_divide_are_refused(changed, named):
    with pytest.raises(ValueError, match=named) as refused:
        plan(**changed)
    assert len(str(refused.value).splitlines()) <= 12


LEGAL = {
    "per_device_train_batch_size": [3, 6, 9],
    "steps_per_generation": [6, 12, 18],
    "num_generations": [2, 4, 8, 16],
}


@pytest.mark.parametrize("name", LEGAL)
def test_the_settings_that_an_error_calls_legal_are_legal(name):
    """8 rows x 2 micro-batches = 16 answers are no groups of 3; each setting that is named makes them divide."""
    with pytest.raises(ValueError, match="Legal, one of") as refused:
        plan(num_generations=3)
    lines = str(refused.value).splitlines()
    (line,) = [line for line in lines if line.startswith(f"- {name}=")]
    numbers = [int(number) for number in line.split("=")[1].split(" or ")]
    assert numbers == LEGAL[name]
    for number in numbers:
        found = plan(**{"num_generations": 3, name: number})
        assert found.rows_per_process % found.num_generations == 0


def test_an_epoch_is_whole_rounds():
    """10 prompts in rounds of 4 are 2 rounds x 2 passes x 1 step x 2 micro-batches; 3 prompts are one round."""
    found = plan(num_iterations=2)
    assert found.micro_batches_in_epoch(10) == 8
    assert found.micro_batches_in_epoch(3) == 4


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "4 prompts × 4 = 16 answers a round, 1 optimizer step a round, 1,000 steps"),
        (
            {"steps_per_generation": 4, "num_iterations": 3, "processes": 2},
            "16 prompts × 4 = 64 answers a round on 2 processes, 6 optimizer steps a round (2 × 3 passes), 1,000 steps",
        ),
        ({"num_generations": 16}, "1 prompt × 16 = 16 answers a round, 1 optimizer step a round, 1,000 steps"),
    ],
)
def test_the_arithmetic_in_words(changed, words):
    assert plan(**changed).describe(num_steps=1000) == words


@pytest.mark.parametrize("changed", [{}, {"steps_per_generation": 6}, {"num_generations": 16}])
def test_every_row_is_cut_into_one_micro_batch(changed):
    found = plan(**changed)
    steps = cut_rows(found)
    assert len(steps) == found.steps
    assert all(len(step) == found.micro_batches for step in steps)
    assert [row for step in steps for rows in step for row in rows] == list(range(found.rows_per_process))


def test_groups_that_a_micro_batch_would_cut_apart():
    whole = RoundPlan(num_generations=4, rows=8, micro_batches=2, steps=1)
    refuse_cut_groups(whole)
    with pytest.raises(ValueError, match=r"=6 cuts groups of num_generations=4 .* Legal: .*=4, 8, 12, …"):
        refuse_cut_groups(RoundPlan(num_generations=4, rows=6, micro_batches=2, steps=1))
