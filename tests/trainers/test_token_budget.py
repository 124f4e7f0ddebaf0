from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from burnish import DPOConfig
from burnish.models.footprint import CPU_TOKENS, CPU_TOKENS_LOW_PRECISION
from burnish.trainers.parts import cut, token_budget
from burnish.types import PreferenceBatch


def make_batch() -> PreferenceBatch:
    """Three prompts of 3, 1 and 2 tokens; answers 4 + 2, 1 + 1 and 3 + 3 tokens: groups of 9, 3 and 8."""
    lengths, sizes = [3, 1, 2], [4, 1, 3, 2, 1, 3]
    prompt_mask = torch.tensor([[column >= 3 - n for column in range(3)] for n in lengths])
    mask = torch.tensor([[column < n for column in range(4)] for n in sizes])
    return PreferenceBatch(
        prompt_ids=torch.arange(9).view(3, 3),
        prompt_mask=prompt_mask,
        completion_ids=torch.arange(24).view(6, 4),
        completion_mask=mask,
        loss_mask=mask,
        prompt_index=torch.tensor([0, 1, 2, 0, 1, 2]),
        row_id=torch.tensor([10, 11, 12, 10, 11, 12]),
        pairs=torch.tensor([[0, 3], [1, 4], [2, 5]]),
        margin=torch.tensor([0.1, 0.2, 0.3]),
        weight=torch.tensor([1.0, 2.0, 3.0]),
        ref_logps=torch.arange(6.0),
        coupled={"aot": torch.arange(9.0).view(3, 3)},
    )


@pytest.mark.parametrize(
    ("budget", "parts"),
    [
        (None, [[0, 1, 2, 3, 4, 5]]),
        (20, [[0, 1, 2, 3, 4, 5]]),
        (19, [[0, 3], [1, 2, 4, 5]]),
        (11, [[0, 3], [1, 2, 4, 5]]),
        (10, [[0, 3], [2, 5], [1, 4]]),
        (1, [[0, 3], [2, 5], [1, 4]]),
    ],
)
def test_whole_groups_longest_first(budget, parts):
    """9, 8 and 3 tokens, prompts counted once; a group over the budget is alone."""
    assert [rows.tolist() for rows in cut(make_batch(), budget)] == parts


def test_a_part_is_a_parcel_of_its_own():
    part = make_batch().take(torch.tensor([1, 2, 4, 5]))
    assert part.prompt_ids.tolist() == [[4, 5], [7, 8]]
    assert part.prompt_index.tolist() == [0, 1, 0, 1]
    assert part.completion_ids.tolist() == [[4, 5, 6], [8, 9, 10], [16, 17, 18], [20, 21, 22]]
    assert part.pairs.tolist() == [[0, 2], [1, 3]]
    assert part.margin.tolist() == pytest.approx([0.2, 0.3])
    assert part.weight.tolist() == [2, 3]
    assert part.ref_logps.tolist() == [1, 2, 4, 5]
    assert part.coupled["aot"].tolist() == [[3, 4, 5], [6, 7, 8]]
    assert part.row_id.tolist() == [11, 12, 11, 12]


def test_a_pair_needs_both_of_its_rows():
    assert make_batch().take(torch.tensor([0, 1, 4])).pairs.tolist() == [[1, 2]]


def test_every_field_of_rows_is_taken():
    """A new field with one entry a row would be left whole by `take` unless it is listed."""
    whole = make_batch()
    full = replace(whole, ref_token_logps=torch.zeros(6, 4), turn_index=torch.zeros(6, 4), columns={"a": torch.ones(6)})
    taken = full.take(torch.tensor([0, 3]))
    lengths = {name: len(value) for name, value in vars(taken).items() if isinstance(value, torch.Tensor)}
    per_pair = {"pairs": 1, "margin": 1, "weight": 1}
    assert lengths == {name: per_pair.get(name, 1 if name in ("prompt_ids", "prompt_mask") else 2) for name in lengths}
    assert len(taken.columns["a"]) == 2


def test_budget_of_a_run(tmp_path):
    def of(**options) -> int | None:
        return token_budget(DPOConfig(output_dir=str(tmp_path), use_cpu=True, **options))

    assert of() == CPU_TOKENS
    assert of(bf16=True) == CPU_TOKENS_LOW_PRECISION
    assert of(token_budget=0) is None
    assert of(token_budget=300) == 300
    with pytest.raises(ValueError, match="token_budget=-1; allowed: whole numbers from 0"):
        of(token_budget=-1)
