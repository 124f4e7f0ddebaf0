from __future__ import annotations

import pytest

from burnish import DPOConfig


def config(**options) -> DPOConfig:
    return DPOConfig(output_dir="run", report_to="none", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_eval_samples": 0}, "num_eval_samples=0; allowed: whole numbers from 1"),
        ({"eval_max_new_tokens": 2.5}, "eval_max_new_tokens=2.5"),
        ({"eval_temperature": -1.0}, "temperature=-1.0"),
        ({"judge": 3}, "judge=3; give a function"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        config(generate_during_eval=True, **options)


@pytest.mark.parametrize("options", [{"judge": print}, {"eval_temperature": 1.0}, {"num_eval_samples": 3}])
def test_options_that_would_have_no_effect(options):
    with pytest.raises(ValueError, match="would have no effect: set generate_during_eval=True"):
        config(**options)
    assert config(generate_during_eval=True, **options)


def test_how_answers_are_drawn():
    options = config(generate_during_eval=True, eval_max_new_tokens=7, eval_temperature=0.5)
    params = options.eval_sampling((2, 3))
    assert (params.max_new_tokens, params.temperature, params.end_token_ids) == (7, 0.5, (2, 3))
    assert config().eval_sampling(()).is_greedy


def test_a_judge_is_written_by_its_name():
    assert config(generate_during_eval=True, judge=pytest.approx).resolved()["judge"].endswith(":approx")
    assert config(generate_during_eval=True, judge="a.b:c").resolved()["judge"] == "a.b:c"
