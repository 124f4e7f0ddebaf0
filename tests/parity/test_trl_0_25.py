"""Numbers of TRL 0.25.1, frozen by make_trl_0_25.py, beside Burnish's. TRL is not needed here.

Equal: 21 cases of its DPO trainer, and the losses of its CPO and ORPO trainers. Where 0.25 means something else:
- `aot_pair` is `aot_unpaired` in 1.16 and here.
- `alpha_divergence`: the coefficient a of 0.25 is 1 - a in 1.16 and here.
- `bco_pair`: delta there contains the batch that it is taken from; here the steps before it, so that splitting a step
  changes nothing.
- `use_weighting`: 0.25 subtracts each token's normaliser from the log-prob of the token before it. Ours pairs the same
  token's, as 1.16 and the paper do.
- `ld_alpha`: 0.25 counts positions from the start of the prompt, and leaves the reference alone. Ours counts from the
  start of the answer, in both models, as 1.16 does.
- `cpo`: the likelihood term there is a mean over the tokens of a micro-batch, here over each answer's own, and pairs.
- `orpo`: its likelihood term there runs over the prompt as well, here over the answer, as the paper says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_trl import batch_loss
from trl_setup import BETA, OPTIONS_0_25, ROWS, gradient_norm, make_model, make_tokenizer

from burnish import DPOConfig, DPOTrainer

FROZEN = json.loads((Path(__file__).parent / "trl_0_25.json").read_text())
OURS = {
    **{case: options for case, (_, options) in OPTIONS_0_25.items()},
    "aot_pair": {"loss_type": "aot_unpaired"},
    "alpha_divergence": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1 - 0.3},
    "cpo": {"loss_type": "cpo"},
    "simpo": {"loss_type": "simpo", "loss_kwargs": {"simpo_gamma": 0.5}},
    "orpo": {"loss_type": "orpo"},
}
WITHOUT_REFERENCE = {"reference_free", "cpo", "simpo", "orpo", "sft"}
OTHER_MEANING = {"bco_pair", "weighted", "ld"}
# In the fast suite: what 1.16 has no number of, and the plainest.
FAST = {"sigmoid", "smoothed", "rpo", "reference_free", "aot_pair", "alpha_divergence", "cpo", "simpo", "orpo"}
EQUAL = [
    case if case in FAST else pytest.param(case, marks=pytest.mark.gallery)
    for case in OPTIONS_0_25
    if case not in OTHER_MEANING
]


@pytest.fixture
def make_trainer(tmp_path):
    def make(case: str) -> DPOTrainer:
        options = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "cpu_tuning": "off"}
        return DPOTrainer(
            make_model(0.0),
            ref_model=None if case in WITHOUT_REFERENCE else make_model(1.0),
            args=DPOConfig(**options, beta=BETA, **OURS[case]),
            train_dataset=ROWS,
            processing_class=make_tokenizer(),
        )

    return make


def losses_alone(trainer: DPOTrainer) -> list[float]:
    return [batch_loss(trainer, [row]).item() for row in trainer.train_dataset]


def test_the_file_says_what_it_came_from():
    assert FROZEN["versions"]["trl"] == "0.25.1"
    assert FROZEN["beta"] == BETA
    assert set(FROZEN["losses"]) == set(OPTIONS_0_25)


def test_tokens(make_trainer):
    names = ("prompt_input_ids", "chosen_input_ids", "rejected_input_ids")
    rows = make_trainer("sigmoid").train_dataset
    assert [{name: list(row[name]) for name in names} for row in rows] == FROZEN["tokens"]


@pytest.mark.parametrize("case", EQUAL)
def test_loss_of_each_pair_and_gradient_of_a_batch(make_trainer, case):
    """The batch to 1e-6: TRL ran plain rows, and the model's norms, in float32, round differently in a tree."""
    trainer, frozen = make_trainer(case), FROZEN["losses"][case]
    assert losses_alone(trainer) == pytest.approx(frozen["alone"], rel=1e-9)
    if case == "cpo":  # a batch of it means something else
        return
    total = batch_loss(trainer, list(trainer.train_dataset))
    total.backward()
    assert total.item() == pytest.approx(frozen["batch"], rel=1e-6)
    assert gradient_norm(trainer.model) == pytest.approx(frozen["gradient_norm"], rel=1e-6)


@pytest.mark.parametrize("case", sorted(OTHER_MEANING))
def test_another_meaning_gives_other_numbers(make_trainer, case):
    """Each stands in the list above; were it equal, the list would be wrong."""
    total = batch_loss(trainer := make_trainer(case), list(trainer.train_dataset))
    assert total.item() != pytest.approx(FROZEN["losses"][case]["batch"], rel=1e-3)


def test_bco_with_its_delta_is_the_same(make_trainer):
    """With delta at the mean reward of the batch, where 0.25 takes it from, the losses agree."""
    trainer = make_trainer("bco_pair")
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        pair = trainer.score_pairs(trainer.model, batch)
        rewards = BETA * torch.cat([pair.chosen_logratio, pair.rejected_logratio])
        ((metric, momentum),) = trainer.follows
        trainer.running_means.update({metric: torch.tensor([rewards.sum(), len(rewards)], dtype=torch.float64)})
        assert trainer.running_means.value(metric, momentum) == pytest.approx(rewards.mean().item())
        (term,) = trainer.dpo_loss(pair, batch)
    assert term.losses.mean().item() == pytest.approx(FROZEN["losses"]["bco_pair"]["batch"], rel=1e-9)
