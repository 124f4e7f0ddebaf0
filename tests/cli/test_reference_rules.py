"""What a trainer of pairs refuses is found by `burnish check`, without importing torch; its own words are other ones."""

from __future__ import annotations

import pytest
import yaml

from burnish import DPOConfig
from burnish.cli.runfile import RunFileError, load_runfile
from burnish.trainers.pair_losses import bind_losses

REFUSED = [
    ({"precompute_ref_batch_size": 3}, "has no effect while precompute_ref_log_probs is False"),
    ({"precompute_ref_log_probs": True, "precompute_ref_batch_size": 0}, "a whole number, 1 or more"),
    ({"ref_model_sync_steps": 3}, "has no effect while sync_ref_model is False"),
    ({"sync_ref_model": True, "ref_model_mixup_alpha": 2.0}, "above 0 and 1 or less"),
    ({"sync_ref_model": True, "ref_model_sync_steps": 0}, "a whole number, 1 or more"),
    ({"sync_ref_model": True, "precompute_ref_log_probs": True}, "contradicts precompute_ref_log_probs"),
    ({"reference_free": True, "ref_model_bema": {}}, "contradicts reference_free"),
    ({"num_eval_samples": 3}, "has no effect while generate_during_eval is False"),
    ({"loss_type": ["sigmoid", "sigmoid"]}, "has 'sigmoid' twice"),
    ({"loss_weights": [0]}, "are all 0"),
    ({"loss_type": "aot", "use_weighting": True}, "weights pairs, and aot couples them"),
    ({"loss_type": ["sigmoid", "apo_zero"], "f_divergence_type": "js_divergence"}, "and apo_zero reads none"),
    ({"ld_alpha": 1.5}, "0 or more and 1 or less"),
    ({"loss_type": "discopop", "discopop_tau": 0}, "above 0"),
    ({"pad_to_multiple_of": 0}, "1 or more"),
    ({"token_budget": -1}, "0 or more"),
    ({"save_total_limit": 0}, "1 or more"),
]
# Of what only the model or its reference tells the trainer, `check` knows what the file says of them.
OF_REFERENCE = [
    ({"loss_type": "simpo", "precompute_ref_log_probs": True}, "simpo reads no reference"),
    ({"force_use_ref_model": True}, "is about a ref_model, and there is none"),
    ({"model_init_kwargs": {"dtype": "bloat16"}}, "the dtype \"bloat16\", did you mean 'bfloat16'"),
]


def problems(path, training):
    document = {"model": "smollm2-135m", "data": {"train": "recipe:spoken-train"}, "training": training}
    path.write_text(yaml.safe_dump(document))
    try:
        load_runfile(path)
    except RunFileError as error:
        return error.problems
    return ()


@pytest.mark.parametrize(("training", "problem"), REFUSED)
def test_what_the_configuration_refuses_is_found_before(tmp_path, training, problem):
    with pytest.raises(ValueError, match=r".+"):
        bind_losses(DPOConfig(output_dir=str(tmp_path), **training))
    (found,) = problems(tmp_path / "run.yaml", training)
    assert problem in found


@pytest.mark.parametrize(("training", "problem"), OF_REFERENCE)
def test_what_the_reference_refuses_is_found_before(tmp_path, training, problem):
    (found,) = problems(tmp_path / "run.yaml", training)
    assert problem in found


@pytest.mark.parametrize(
    "training",
    [
        {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 3},
        {"sync_ref_model": True, "ref_model_mixup_alpha": 0.2, "ref_model_sync_steps": 3},
        {"loss_type": ["simpo", "sigmoid"], "precompute_ref_log_probs": True},
        {"loss_type": "hinge", "f_divergence_type": "js_divergence"},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0]},
        {"pad_to_multiple_of": 8, "token_budget": 0, "ld_alpha": 0, "model_init_kwargs": {"torch_dtype": "bfloat16"}},
    ],
)
def test_what_goes_together_has_no_problem(tmp_path, training):
    bind_losses(DPOConfig(output_dir=str(tmp_path), **training))
    assert problems(tmp_path / "run.yaml", training) == ()
