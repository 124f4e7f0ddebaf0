"""What the pages take from the code is fresh, and every room of the flow is on its page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import flow

ROOT = Path(__file__).parents[2]

PAGES = sorted(
    path.name for path in (ROOT / "docs").glob("*.md") if flow.BLOCK.search(path.read_text(encoding="utf-8"))
)


def blocks(page: str) -> list[str]:
    return [block[1] for block in flow.BLOCK.finditer((ROOT / "docs" / page).read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES)
def test_page_is_fresh(page):
    """`make docs` would change nothing."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert flow.fill(text) == text, f"docs/{page} is stale: run `make docs`"


def test_every_room_is_on_the_page_in_order():
    assert blocks("flow.md") == [f"flow:{room}" for room in flow.FLOW]


def test_every_table_is_on_a_page():
    used = {name for page in PAGES for name in blocks(page)}
    assert set(flow.TABLES) <= used


def test_rooms_are_methods_of_the_trainer():
    for room in flow.FLOW:
        assert room == "data_collator" or callable(getattr(flow.DPOTrainer, room))


def test_numbers_of_the_rooms_fit_together():
    """Row sums of the log-probs are what the loss gets, and both micro-batches add up to the logged loss."""
    seen = flow.record()
    stats, pair = seen["concatenated_forward"], seen["PairLogps"]
    batch = seen["data_collator"]
    assert stats.sequence_sum()[batch.pairs[:, 0]].tolist() == pair.chosen.tolist()
    assert seen["compute_ref_log_probs"].sum(1)[batch.pairs[:, 1]].tolist() == pair.ref_rejected.tolist()
    parcels, counts = seen["get_batch_samples"]
    assert counts["pair"].item() == sum(len(parcel.pairs) for parcel in parcels) == 3
    assert seen["compute_loss"].item() < seen["log"]["loss"]
