"""What the pages take from the code is fresh, and every room of the flow is on its page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import flow
import flow_grpo

ROOT = Path(__file__).parents[2]

PAGES = sorted(
    path.name for path in (ROOT / "docs").glob("*.md") if flow.BLOCK.search(path.read_text(encoding="utf-8"))
)


def blocks(page: str) -> list[str]:
    return [block[1] for block in flow.BLOCK.finditer((ROOT / "docs" / page).read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES)
def test_page_is_fresh(page):
    """`make docs-tables` would change nothing."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert flow.fill(text) == text, f"docs/{page} is stale: run `make docs-tables`"


def test_every_room_is_on_the_page_in_order():
    assert blocks("flow.md") == [f"flow:{room}" for room in flow.FLOW]


def test_every_room_of_grpo_is_on_its_page_in_order():
    assert blocks("flow-grpo.md") == [f"flow-grpo:{room}" for room in flow.GRPO_FLOW]
    assert all(callable(getattr(flow_grpo.GRPOTrainer, room)) for room in flow.GRPO_FLOW)


def test_numbers_of_a_round_fit_together():
    """The policy's log-probs are those of the draw, totals become advantages, and micro-batches add up to the loss."""
    seen = flow_grpo.record_grpo()
    batch, stats, table = seen["_credit"], seen["_get_per_token_logps_and_entropies"], seen["_calculate_rewards"]
    logps = [completion.logps.double() for completion in seen["_generate"]]
    for row in range(4):
        own = stats.logps[row][stats.mask[row]]
        torch.testing.assert_close(own, logps[row], rtol=0, atol=1e-6)  # the sampler's are float32
    groups = table.total().view(2, 4)
    expected = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(batch.advantages.view(2, 4).float(), expected.float(), rtol=1e-5, atol=1e-6)
    parcels, counts = seen["get_batch_samples"]
    assert counts["row"].item() == sum(map(len, parcels)) == 8
    assert counts["token"].item() == sum(len(ids) for ids in logps)
    policy, kl = seen["_compute_loss"].terms
    advantages = parcels[0].advantages.to(policy.losses.dtype).expand_as(stats.mask)
    torch.testing.assert_close(policy.losses[stats.mask], -advantages[stats.mask])
    assert kl.coefficient == 0.1
    assert (kl.losses >= 0).all()


def test_every_table_is_on_a_page():
    used = {name for page in PAGES for name in blocks(page)}
    assert set(flow.TABLES) <= used


def test_rooms_are_methods_of_the_trainer():
    for room in flow.FLOW:
        assert callable(getattr(flow.DPOTrainer, room))


def test_numbers_of_the_rooms_fit_together():
    """Row sums of the log-probs are what the loss gets, and both micro-batches add up to the logged loss."""
    seen = flow.record()
    stats, pair = seen["concatenated_forward"], seen["PairLogps"]
    batch = seen["take_parcels"][0]
    assert stats.sequence_sum()[batch.pairs[:, 0]].tolist() == pair.chosen.tolist()
    assert seen["compute_ref_log_probs"].sum(1)[batch.pairs[:, 1]].tolist() == pair.ref_rejected.tolist()
    parcels, counts = seen["get_batch_samples"]
    assert counts["pair"].item() == sum(len(parcel.pairs) for parcel in parcels) == 3
    assert seen["compute_loss"].item() < seen["log"]["loss"]
