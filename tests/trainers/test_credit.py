"""From rewards to advantages and returns, with numbers worked out by hand. gamma = lam = 1 unless said otherwise."""

from __future__ import annotations

import math

import pytest
import torch

from burnish.rollout.whole import gather_round
from burnish.runtime.state import Stateful
from burnish.trainers.credit import Credit, moments_over_ranks
from burnish.trainers.ppo import PPOConfig
from burnish.types import RewardTable, RolloutBatch

NAN = math.nan
# Two answers of three and two tokens, of which the second was cut.
VALUES = [[1.0, 2.0, 3.0], [4.0, 5.0, 99.0]]
MASK = [[True, True, True], [True, True, False]]


def make_batch(**changed) -> RolloutBatch:
    mask = torch.tensor(MASK)
    values = {
        "prompt_ids": torch.ones(2, 1, dtype=torch.long),
        "prompt_mask": torch.ones(2, 1, dtype=torch.bool),
        "completion_ids": torch.ones(2, 3, dtype=torch.long),
        "completion_mask": mask,
        "loss_mask": mask,
        "prompt_index": torch.arange(2),
        "row_id": torch.arange(2),
        "columns": {"truncated": torch.tensor([0.0, 1.0])},
        "advantages": torch.zeros(2, 1),
        "old_logps": torch.tensor([[-1.0, -1.0, -1.0], [-2.0, -2.0, 0.0]]).double(),
        "values": torch.tensor(VALUES).double(),
        "bootstrap_value": torch.tensor([[7.0], [8.0]]).double(),
    }
    return RolloutBatch(**{**values, **changed})


def table(scores, tokens=None) -> RewardTable:
    return RewardTable(
        rewards=torch.tensor(scores, dtype=torch.float64)[:, None],
        names=("r",),
        weights=torch.ones(1, dtype=torch.float64),
        token_rewards=None if tokens is None else torch.tensor(tokens, dtype=torch.float64),
    )


def run(scores=(10.0, 20.0), *, tokens=None, batch=None, credit=None, lam_critic=None, **options):
    batch = make_batch() if batch is None else batch
    settings = {"output_dir": "unused", "kl_coef": 0.0, "lam": 1.0, "whiten_advantages": False}
    credit = credit or Credit(PPOConfig(**{**settings, **options}))
    return credit(gather_round(table(list(scores), tokens), batch), batch, lam_critic=lam_critic)


def lists(tensor: torch.Tensor) -> list[list[float]]:
    return [[round(x, 9) for x in row] for row in tensor.tolist()]


def test_the_score_is_earned_at_the_last_token():
    """Whatever comes before it is worth the whole score; padding and its value are nothing."""
    credited, _, _ = run()
    assert lists(credited.returns) == [[10, 10, 10], [20, 20, 0]]
    assert lists(credited.advantages) == [[9, 8, 7], [16, 15, 0]]


def test_rewards_of_tokens_are_earned_where_they_are():
    """The first answer's total of 10 has 4 at its first token: 10 before it, 6 behind it."""
    credited, _, _ = run(tokens=[[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert lists(credited.returns)[0] == [10, 6, 6]


def test_discount_and_lambda():
    """gamma = lam = 1/2, the second answer: delta_1 = 20 - 5 = 15, delta_0 = 2.5 - 4; A_0 = -1.5 + 15 / 4."""
    credited, _, _ = run(gamma=0.5, lam=0.5)
    assert lists(credited.advantages)[1] == [2.25, 15, 0]


def test_the_critic_has_a_lambda_of_its_own():
    """lam = 0 for the policy: one step ahead; 1 for the critic: all that is earned."""
    credited, _, _ = run(lam=0.0, lam_critic=1.0)
    assert lists(credited.advantages) == [[1, 1, 7], [1, 15, 0]]
    assert lists(credited.returns) == [[10, 10, 10], [20, 20, 0]]


def test_lambda_by_length():
    """alpha = 1: 1 - 1/3 and 1 - 1/2. The second answer: A_1 = 15, A_0 = 1 + 15 / 2."""
    settings = {"output_dir": "unused", "kl_coef": 0.0, "lam_length_alpha": 1.0, "whiten_advantages": False}
    credited, _, _ = run(credit=Credit(PPOConfig(**settings)))
    assert lists(credited.advantages)[1] == [8.5, 15, 0]
    assert lists(credited.advantages)[0] == [round(1 + 2 / 3 * (1 + 2 / 3 * 7), 9), round(1 + 2 / 3 * 7, 9), 7]


REFERENCE = torch.tensor([[-1.0, -3.0, -1.0], [-2.0, -2.5, 0.0]]).double()  # k1: 0, 2, 0 and 0, 0.5


def test_kl_in_the_reward():
    """kl_coef = 2: 4 off at the first answer's second token, 1 off at the second answer's."""
    credited, means, numbers = run(batch=make_batch(ref_logps=REFERENCE), kl_coef=2.0)
    assert lists(credited.returns) == [[6, 6, 10], [19, 19, 0]]
    assert float(means["objective/kl"].total / means["objective/kl"].weight) == 1.25
    assert float(means["objective/non_score_reward"].total) == -5
    assert float(means["objective/rlhf_reward"].total) == 25
    assert numbers["kl_coef"] == 2


def test_kl_of_other_estimators():
    """k2 of a log-ratio of 2 is 2."""
    credited, _, _ = run(batch=make_batch(ref_logps=REFERENCE), kl_coef=2.0, kl_estimator="k2")
    assert lists(credited.returns)[0] == [6, 6, 10]


def test_kl_in_the_loss_costs_no_reward():
    credited, _, _ = run(batch=make_batch(ref_logps=REFERENCE), kl_coef=2.0, use_kl_in_reward=False)
    assert lists(credited.returns) == [[10, 10, 10], [20, 20, 0]]


def test_the_coefficient_follows_the_kl():
    """1.25 nats against a target of 1, a fifth at most: 2 (1 + 0.2 x 2 answers / 4). It counts from the next round on."""
    options = {"kl_coef": 2.0, "kl_target": 1.0, "kl_horizon": 4.0}
    credit = Credit(PPOConfig(output_dir="unused", **options))
    _, _, numbers = run(batch=make_batch(ref_logps=REFERENCE), credit=credit)
    assert numbers["kl_coef"] == 2
    assert credit.kl_coef == pytest.approx(2.2)
    assert isinstance(credit.kl_control, Stateful)


def test_an_answer_that_was_cut_pays():
    credited, means, _ = run(missing_eos_penalty=3.0)
    assert lists(credited.returns) == [[10, 10, 10], [17, 17, 0]]
    assert float(means["objective/scores"].total) == 27


def test_an_answer_that_was_cut_goes_on():
    """What the critic expects behind it, 8, takes the place of its score; rewards of its tokens stay."""
    credited, _, _ = run(bootstrap_truncated=True, tokens=[[0.0] * 3, [1.0, 0.0, 0.0]])
    assert lists(credited.returns) == [[10, 10, 10], [9, 8, 0]]


def test_scores_are_scaled_by_all_rounds():
    """10 and 20 have the mean 15 and the unbiased standard deviation sqrt(50)."""
    std = math.sqrt(50)
    scaled, _, _ = run(reward_scaling="scale")
    assert lists(scaled.returns)[1] == [round(20 / std, 9)] * 2 + [0]
    normalised, _, _ = run(reward_scaling="normalize", tokens=[[4.0, 0.0, 0.0], [0.0] * 3])
    assert lists(normalised.returns)[0] == [round(-5 / std, 9)] + [round(-9 / std, 9)] * 2
    credit = Credit(PPOConfig(output_dir="unused", kl_coef=0.0, reward_scaling="scale"))
    run(credit=credit)
    run(scores=(30.0, NAN), credit=credit)
    assert (credit.scale.count, credit.scale.mean) == (3, 20)


def test_scores_are_clipped():
    credited, _, _ = run(scores=(10.0, -20.0), reward_clip=12.0)
    assert lists(credited.returns) == [[10, 10, 10], [-12, -12, 0]]


def test_an_answer_that_nothing_scored_is_not_trained():
    """Neither the policy nor the critic learns from it, and it is in no mean."""
    credited, means, _ = run(scores=(10.0, NAN))
    assert credited.loss_mask.tolist() == [[True, True, True], [False] * 3]
    assert lists(credited.advantages)[1] == lists(credited.returns)[1] == [0, 0, 0]
    assert float(means["objective/scores"].weight) == 1


def test_advantages_are_whitened_over_the_round():
    credited, _, numbers = run(whiten_advantages=True)
    found = credited.advantages[credited.loss_mask]
    assert float(found.mean()) == pytest.approx(0, abs=1e-12)
    assert float(found.var()) == pytest.approx(1, rel=1e-6)
    raw = torch.tensor([9.0, 8.0, 7.0, 16.0, 15.0])
    assert (numbers["advantages/mean"], numbers["advantages/std"]) == (11.0, pytest.approx(float(raw.std())))
    torch.testing.assert_close(found, ((raw - 11) / raw.std()).double(), rtol=1e-6, atol=1e-8)


def test_rewards_are_whitened_without_a_shift():
    """0, 0, 10, 0 and 20 have the mean 6 and the variance 80: 10 becomes (10 - 6) / sqrt(80) + 6."""
    credited, _, _ = run(whiten_rewards=True, lam=0.0)
    assert credited.returns[0, 2] == pytest.approx(4 / math.sqrt(80) + 6)


def test_advantages_are_clipped_last():
    credited, _, _ = run(advantage_clip=9.5)
    assert lists(credited.advantages) == [[9, 8, 7], [9.5, 9.5, 0]]
    assert lists(credited.returns) == [[10, 10, 10], [20, 20, 0]]


def test_explained_variance():
    """Of a critic that knows the returns up to a constant: 1; of one that says the same of all: 0."""
    same = make_batch(values=torch.full((2, 3), 3.0).double())
    knows = make_batch(values=torch.tensor([[7.0, 7.0, 7.0], [17.0, 17.0, 0.0]]).double())
    assert run(batch=same)[2]["val/explained_variance"] == pytest.approx(0)
    assert run(batch=knows)[2]["val/explained_variance"] == pytest.approx(1)
    assert "val/explained_variance" not in run(scores=(1.0, 1.0))[2]


def test_kl_by_the_place_in_the_answer():
    """Of three tokens the second lies in 25-50 %, of two in 50-75 %."""
    _, means, _ = run(batch=make_batch(ref_logps=REFERENCE), kl_coef=1.0)
    found = {name: float(m.total / m.weight) for name, m in means.items() if "position" in name and m.weight > 0}
    assert found == {"kl_position/0-25": 0.0, "kl_position/25-50": 2.0, "kl_position/50-75": 0.25}


def test_moments():
    mask = torch.tensor(MASK)
    found = moments_over_ranks({"a": torch.tensor(VALUES), "b": torch.ones(2, 3)}, mask)
    assert [float(x) for x in found["a"]] == [3.0, 2.5]
    assert [float(x) for x in found["b"]] == [1.0, 0.0]
    assert [float(x) for x in moments_over_ranks({"a": torch.tensor(VALUES)}, mask & False)["a"]] == [0.0, 0.0]
