"""Whether a function or a class of your own keeps the laws that runs rely on: losses, rewards, trainers and more.

    from burnish.testing import assert_loss_contract

    def test_my_loss():
        assert_loss_contract(my_loss, beta=0.1)

Each check runs a function on made-up cases, small ones first. A failure is an `AssertionError` that names the law, why
trainers need it, and the smallest case that breaks it. The library's own tables go through the same checks.
"""

from __future__ import annotations

from burnish.testing.advantages import assert_advantage_contract
from burnish.testing.contract import ContractError
from burnish.testing.estimators import assert_kl_estimator_contract
from burnish.testing.generators import assert_generator_contract
from burnish.testing.losses import assert_loss_contract
from burnish.testing.references import assert_reference_contract
from burnish.testing.rewards import assert_reward_contract
from burnish.testing.trainers import assert_trainer_contract

__all__ = [
    "ContractError",
    "assert_advantage_contract",
    "assert_generator_contract",
    "assert_kl_estimator_contract",
    "assert_loss_contract",
    "assert_reference_contract",
    "assert_reward_contract",
    "assert_trainer_contract",
]
