from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish import DPOConfig, DPOTrainer
from burnish.metrics import EXPLANATIONS, Estimate, MetricBuffer, explain
from burnish.types import Mean
from conftest import make_model, make_rows, make_tokenizer


def one_rank(table: torch.Tensor) -> torch.Tensor:
    return table


def test_buffer_reads_a_mean_and_its_error():
    """Values 1, 2, 3: mean 2, variance 2/3 with divisor n, standard error sqrt((2/3) / 2) = 0.5773502692."""
    buffer = MetricBuffer()
    buffer.add({"a": Mean.of(torch.tensor([1.0, 2.0])), "b": Mean.of(torch.tensor([5.0]))})
    buffer.add({"a": Mean.of(torch.tensor([3.0]))})
    assert "a" in buffer
    estimates = buffer.flush(one_rank)
    assert estimates["a"].mean == 2.0
    assert estimates["a"].weight == 3.0
    assert estimates["a"].standard_error == pytest.approx(0.5773502691896257, abs=1e-12)
    assert math.isnan(estimates["b"].standard_error)


def test_standard_error_is_that_of_the_sample():
    """The usual formula: sample standard deviation over the square root of n."""
    values = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = Mean.of(values)
    estimate = Estimate.of(float(mean.total), float(mean.weight), float(mean.squares))
    assert estimate.standard_error == pytest.approx(float(values.std() / math.sqrt(50)), rel=1e-10)


def test_flush_forgets():
    buffer = MetricBuffer()
    buffer.add({"a": Mean.of(torch.ones(1))})
    buffer.flush(one_rank)
    assert "a" not in buffer
    assert buffer.flush(one_rank) == {}


def test_reduction_is_one_call_over_all_sums():
    """Two ranks with the same sums: weights double, means stay."""
    shapes = []

    def two_ranks(table):
        shapes.append(tuple(table.shape))
        return 2 * table

    buffer = MetricBuffer()
    buffer.add({"b": Mean.of(torch.tensor([1.0, 3.0])), "a": Mean.of(torch.tensor([7.0]))})
    estimates = buffer.flush(two_ranks)
    assert shapes == [(2, 3)]
    assert (estimates["b"].mean, estimates["b"].weight, estimates["a"].mean) == (2.0, 4.0, 7.0)


def test_names_are_in_one_order_on_every_rank():
    """Ranks may meet names in different orders; the rows of the reduction must not depend on that."""
    first, second = MetricBuffer(), MetricBuffer()
    first.add({"a": Mean.of(torch.ones(1)), "b": Mean.of(torch.zeros(1))})
    second.add({"b": Mean.of(torch.zeros(1)), "a": Mean.of(torch.ones(1))})
    assert list(first.state()) == list(second.state()) == ["a", "b"]


def test_nothing_measured_is_nan():
    estimate = Estimate.of(0.0, 0.0, 0.0)
    assert math.isnan(estimate.mean)
    assert estimate.weight == 0.0


@given(
    st.lists(st.tuples(st.floats(-100, 100), st.floats(0.1, 10)), min_size=1, max_size=20),
    st.lists(st.integers(0, 3), min_size=20, max_size=20),
)
@settings(max_examples=50, deadline=None, derandomize=True, database=None)
def test_buffer_is_one_pass_over_all_values_however_split(samples, places):
    """Weighted mean of everything, whichever of four micro-batches each value came in."""
    buffer = MetricBuffer()
    for part in range(4):
        mine = [sample for sample, place in zip(samples, places, strict=False) if place == part]
        if mine:
            values, weights = torch.tensor(mine, dtype=torch.float64).unbind(1)
            buffer.add({"x": Mean.of(values, weight=weights)})
    total = sum(value * weight for value, weight in samples)
    weight = sum(weight for _, weight in samples)
    estimate = buffer.flush(one_rank)["x"]
    assert estimate.weight == pytest.approx(weight, rel=1e-12)
    assert estimate.mean == pytest.approx(total / weight, rel=1e-9, abs=1e-9)


def test_state_continues_the_sums():
    buffer, resumed = MetricBuffer(), MetricBuffer()
    buffer.add({"a": Mean.of(torch.tensor([1.0, 2.0]))})
    resumed.load_state(buffer.state(), "cpu")
    resumed.add({"a": Mean.of(torch.tensor([6.0]))})
    assert resumed.flush(one_rank)["a"].mean == 3.0
    assert buffer.flush(one_rank)["a"].mean == 1.5


@pytest.mark.parametrize("name", ["loss", "eval_loss", "eval_held_out_rewards/margins", "loss/sft", "eval_loss/aot"])
def test_explain_knows_prefixes(name):
    assert explain(name).endswith(".")


def test_explain_takes_the_sentence_of_the_metric_not_of_its_tail():
    assert explain("eval_rewards/margins") == EXPLANATIONS["rewards/margins"]
    assert explain("eval_easy_loss") == EXPLANATIONS["loss"]


@pytest.mark.parametrize("name", ["no_such_metric", "eval_nothing", "my/loss", ""])
def test_explain_does_not_invent(name):
    assert explain(name) is None


@pytest.mark.parametrize("name", sorted(EXPLANATIONS))
def test_every_explanation_is_a_sentence(name):
    assert EXPLANATIONS[name].endswith(".")
    assert len(EXPLANATIONS[name]) <= 200


def test_every_logged_key_has_a_sentence(tmp_path):
    """Two steps of two losses, and an evaluation of two sets: all that the trainer ever logs."""
    trainer = DPOTrainer(
        make_model(),
        args=DPOConfig(
            output_dir=str(tmp_path),
            loss_type=["sigmoid", "sft"],
            max_steps=2,
            per_device_train_batch_size=2,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            cpu_tuning="off",
        ),
        train_dataset=make_rows(4),
        eval_dataset={"easy": make_rows(2), "hard": make_rows(2)},
        processing_class=make_tokenizer(),
    )
    trainer.train()
    logged = {name for line in trainer.state.log_history for name in line} - {"step"}
    assert {"loss", "loss/sft", "rewards/margins", "eval_easy_loss", "eval_hard_rewards/accuracies"} <= logged
    assert sorted(name for name in logged if explain(name) is None) == []


def test_correlation_from_means():
    """x = 1, 2, 3 and y = 2, 2, 5: covariance (mean of x y 7) - 2 x 3 = 1, spreads 2/3 and 2: 1 / sqrt(4/3)."""
    x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 5.0])
    buffer = MetricBuffer()
    buffer.add({"length_difference": Mean.of(x), "rewards/margins": Mean.of(y)})
    buffer.add({"_length_difference_x_margins": Mean.of(x * y)})
    found = buffer.flush(lambda table: table)
    assert found["length_margin_correlation"].mean == pytest.approx(math.sqrt(3) / 2, abs=1e-12)
    assert "_length_difference_x_margins" not in found


def test_calibration_error_from_bins():
    """Two pairs sure to 0.7 of which one is right, eight sure to 0.95 and all right: (2 x 0.2 + 8 x 0.05) / 10."""
    buffer = MetricBuffer()
    for name, right, sure in (("70-80", [1.0, 0.0], [0.7, 0.7]), ("90-100", [1.0] * 8, [0.95] * 8)):
        buffer.add({f"reliability/{name}": Mean.of(torch.tensor(right))})
        buffer.add({f"_confidence/{name}": Mean.of(torch.tensor(sure, dtype=torch.float64))})
    nothing = Mean.of(torch.zeros(2), weight=torch.zeros(2))
    buffer.add({"reliability/50-60": nothing, "_confidence/50-60": nothing})
    found = buffer.flush(lambda table: table)
    assert found["calibration_error"].mean == pytest.approx(0.08, abs=1e-12)
    assert found["calibration_error"].weight == 10
    assert set(found) == {"reliability/70-80", "reliability/90-100", "calibration_error"}


def test_correlation_of_what_does_not_vary_is_left_out():
    buffer = MetricBuffer()
    same = torch.full((3,), 2.0)
    buffer.add({"length_difference": Mean.of(same), "rewards/margins": Mean.of(torch.tensor([1.0, 2.0, 3.0]))})
    buffer.add({"_length_difference_x_margins": Mean.of(2 * torch.tensor([1.0, 2.0, 3.0]))})
    assert set(buffer.flush(lambda table: table)) == {"length_difference", "rewards/margins"}


def test_what_was_not_measured_is_left_out():
    """A mean of weight 0 says nothing; a loss that is not a number is shown as one."""
    buffer = MetricBuffer()
    none = torch.tensor(0.0)
    buffer.add({"none": Mean(total=none, weight=none, squares=none), "loss": Mean.of(torch.tensor([math.nan]))})
    found = buffer.flush(lambda table: table)
    assert set(found) == {"loss"}
    assert math.isnan(found["loss"].mean)


def test_a_family_of_metrics_has_one_sentence():
    assert explain("eval_rewards/accuracies/math") == EXPLANATIONS["rewards/accuracies/"]
    assert explain("loss/dpop") == EXPLANATIONS["loss/"]
    assert explain("unknown/dpop") is None
