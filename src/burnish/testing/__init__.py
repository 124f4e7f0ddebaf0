"""Whether a loss, an advantage or a reward of your own keeps the laws that every trainer relies on.

    from burnish.testing import assert_loss_contract

    def test_my_loss():
        assert_loss_contract(my_loss, beta=0.1)

Each check runs a function on made-up cases, small ones first. A failure is an `AssertionError` that names the law, why
trainers need it, and the smallest case that breaks it. The library's own tables go through the same checks.
"""

from __future__ import annotations

from burnish.testing.advantages import assert_advantage_contract
from burnish.testing.contract import ContractError
from burnish.testing.losses import assert_loss_contract
from burnish.testing.rewards import assert_reward_contract

__all__ = ["ContractError", "assert_advantage_contract", "assert_loss_contract", "assert_reward_contract"]
