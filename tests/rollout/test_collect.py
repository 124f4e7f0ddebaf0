"""A round, with the engine and a tiny model: who answers what, in which order, and what dynamic sampling replaces."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from burnish.generation.base import Prompt, SamplingParams
from burnish.generation.native import NativeGenerator
from burnish.rollout.collect import (
    Clock,
    PromptRow,
    Refill,
    RolloutSteps,
    ScoredGroups,
    chosen_groups,
    collect,
    joined,
    make_answers,
)
from burnish.types import Completion, RewardTable
from conftest import make_model, make_tokenizer

SIZE, LENGTH = 3, 5
TOKENIZER = make_tokenizer()
SAMPLING = SamplingParams(max_new_tokens=LENGTH, end_token_ids=tuple(range(2, 70)))  # a quarter of all tokens


def row(number: int, *, chat: bool = False, **columns) -> PromptRow:
    text = f"Say {number}"
    prompt = [{"role": "user", "content": text}] if chat else text
    ids = torch.tensor(TOKENIZER(text)["input_ids"])
    return PromptRow(row_id=number, ids=ids, prompt=prompt, columns=columns)


def table_of(totals) -> RewardTable:
    column = torch.as_tensor(totals, dtype=torch.float32)[:, None]
    return RewardTable(rewards=column, names=("r",), weights=torch.ones(1))


def answer(rows, generator=None) -> list[Completion]:
    generator = generator or NativeGenerator(make_model(), pad_token_id=0)
    prompts = [Prompt(ids=row.ids, key=row.row_id) for row in rows]
    return generator.generate(prompts, SAMPLING, num_samples=SIZE, seed=1, round_index=0)


def steps(score, **changed) -> RolloutSteps:
    generator = NativeGenerator(make_model(), pad_token_id=0)
    plain = {
        "generate": lambda rows: answer(rows, generator),
        "score": score,
        "rescore": lambda batch: batch,
        "shape": lambda rewards, batch: rewards,
        "credit": lambda whole, batch: batch,
    }
    return RolloutSteps(**{**plain, **changed})


def run(rows, rollout_steps, **settings):
    return collect(rows, rollout_steps, tokenizer=TOKENIZER, pad_token_id=0, temperature=1.0, **settings)


def by_row(signal: dict[int, bool]):
    """Rewards 0, 1, 2 for the answers of a row with signal, all 0 for those of another."""

    def score(answers, num_tokens):
        del num_tokens
        order = [index % SIZE for index in range(len(answers))]
        return table_of([float(place) * signal[number] for place, number in zip(order, answers.row_id, strict=True)])

    return score


def test_a_round_is_its_groups_in_the_order_of_the_prompts():
    rows = [row(7), row(3), row(5)]
    found = run(rows, steps(lambda answers, _: table_of(range(len(answers)))))
    batch = found.batch
    assert batch.row_id.tolist() == [7, 7, 7, 3, 3, 3, 5, 5, 5]
    assert batch.prompt_index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for index, completion in enumerate(answer(rows)):
        length = len(completion)
        assert batch.completion_ids[index, :length].tolist() == completion.token_ids.tolist()
        assert batch.completion_mask[index].sum() == length
    for index, prompt in enumerate(rows):
        assert batch.prompt_ids[index][batch.prompt_mask[index]].tolist() == prompt.ids.tolist()
    assert found.groups.rewards.total().tolist() == list(range(9))
    assert torch.equal(found.whole.rewards.total(), found.groups.rewards.total())
    lengths = batch.completion_mask.sum(1)
    assert lengths.min() < lengths.max() == LENGTH
    assert (found.num_replaced, found.num_surplus) == (0, 0)


def test_answers_hang_on_the_row_alone():
    """The prompt of row 3 has the same answers, beside whatever other prompts."""
    alone = run([row(3)], steps(lambda answers, _: table_of([0.0] * len(answers)))).groups.answer_ids()
    beside = run([row(7), row(3)], steps(lambda answers, _: table_of([0.0] * len(answers)))).groups.answer_ids()
    assert beside[SIZE:] == alone
    assert len(set(alone)) == SIZE


def test_every_step_gets_what_the_one_before_it_made():
    """Re-scored, shaped and credited in this order; the width that scores are asked for is that of the batch."""
    seen = {}

    def score(answers, num_tokens):
        seen["num_tokens"] = num_tokens
        return table_of([1.0] * len(answers))

    def rescore(batch):
        return replace(batch, old_logps=torch.full(batch.loss_mask.shape, -2.0))

    def shape(rewards, batch):
        return replace(rewards, rewards=rewards.rewards - batch.old_logps[:, :1])

    def credit(whole, batch):
        return replace(batch, advantages=whole.mine(whole.rewards.total())[:, None])

    found = run([row(1), row(2)], steps(score, rescore=rescore, shape=shape, credit=credit))
    assert found.batch.advantages.tolist() == [[3.0]] * 6
    assert found.groups.rewards.total().tolist() == [1.0] * 6  # what functions returned stays what it was
    assert seen["num_tokens"] == found.batch.completion_ids.shape[1]
    assert set(found.seconds) == {"generate", "score", "rescore", "credit"}


def test_cut_answers_are_masked_and_stay_in_the_rewards():
    found = run([row(1), row(2)], steps(lambda answers, _: table_of(range(len(answers)))), mask_truncated=True)
    truncated = found.batch.columns["truncated"].bool()
    assert truncated.any()
    assert not truncated.all()
    assert not found.batch.loss_mask[truncated].any()
    assert found.batch.loss_mask[~truncated].any(1).all()
    assert found.whole.rewards.total().tolist() == list(range(6))


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_answers_as_reward_functions_see_them(chat):
    rows = [row(7, chat=chat, solution="a", level=[1]), row(3, chat=chat, solution="b", level=[2])]
    completions = answer(rows)
    found = make_answers(rows, completions, TOKENIZER)
    texts = [TOKENIZER.decode(c.token_ids.tolist(), skip_special_tokens=True) for c in completions]
    assert list(found.completions) == ([[{"role": "assistant", "content": t}] for t in texts] if chat else texts)
    assert list(found.prompts) == [rows[0].prompt] * SIZE + [rows[1].prompt] * SIZE
    assert [list(ids) for ids in found.completion_ids] == [c.token_ids.tolist() for c in completions]
    assert found.columns == {"solution": ["a"] * 3 + ["b"] * 3, "level": [[1]] * 3 + [[2]] * 3}
    assert (list(found.prompt_index), list(found.row_id)) == ([0, 0, 0, 1, 1, 1], [7, 7, 7, 3, 3, 3])
    assert list(found.truncated) == [c.finish_reason == "length" for c in completions]
    assert (found.turns, len(found)) == (None, 6)


def test_special_tokens_are_not_in_the_text():
    completion = replace(answer([row(1)])[0], token_ids=torch.tensor([1, 70, 2]))
    found = make_answers([row(1)], [completion], TOKENIZER)
    assert found.completions[0] == TOKENIZER.decode([70])
    assert list(found.completion_ids[0]) == [1, 70, 2]


def test_turns_are_those_of_the_tokens():
    first, second, third = answer([row(1)])
    turns = torch.arange(len(first)) // 2
    found = make_answers([row(1)], [replace(first, turns=turns), second, third], TOKENIZER)
    assert found.turns == [turns.tolist(), [0] * len(second), [0] * len(third)]


NAN = math.nan


@pytest.mark.parametrize(
    ("totals", "signal"),
    [
        ([0, 1, 0, 2, 2, 2], [True, False]),
        ([NAN, 1, 0, NAN, 2, 2], [True, False]),
        ([NAN, NAN, NAN, 2, NAN, NAN], [False, False]),
    ],
    ids=["scored", "partly", "one answer or none"],
)
def test_a_group_has_signal_if_two_scored_answers_differ(totals, signal):
    rows = (row(1), row(2))
    groups = ScoredGroups(prompts=rows, completions=tuple(answer(rows)), rewards=table_of(totals))
    assert groups.signal().tolist() == signal


# Dynamic sampling.


class Supply:
    """Further prompts for `Refill`, numbered from 100, and what was asked for."""

    def __init__(self, others: int = 0):
        self.drawn: list[int] = []
        self.missing: list[int] = []
        self.others = others

    def draw(self, count: int) -> list[PromptRow]:
        rows = [row(100 + len(self.drawn) + index) for index in range(count)]
        self.drawn += [drawn.row_id for drawn in rows]
        return rows

    def most_missing(self, missing: int) -> int:
        """As if another rank missed `others`."""
        self.missing.append(missing)
        return max(missing, self.others)


def refilled(signal: dict[int, bool], supply: Supply, *, attempts: int = 3):
    rows = [row(number) for number in (7, 3, 5)]
    refill = Refill(draw=supply.draw, most_missing=supply.most_missing, max_attempts=attempts)
    return run(rows, steps(by_row(signal)), refill=refill)


def test_groups_without_signal_are_replaced():
    """Row 3 is flat; the first further prompt is too, the second one is not."""
    supply = Supply()
    found = refilled({7: True, 3: False, 5: True, 100: False, 101: True}, supply)
    assert [prompt.row_id for prompt in found.groups.prompts] == [7, 5, 101]
    assert found.batch.row_id.tolist() == [7, 7, 7, 5, 5, 5, 101, 101, 101]
    assert (found.num_replaced, found.num_surplus) == (1, 0)
    assert (supply.missing, supply.drawn) == ([1, 1, 0], [100, 101])
    alone = run([row(101)], steps(by_row({101: True}))).groups
    assert found.groups.answer_ids()[6:] == alone.answer_ids()
    assert found.groups.rewards.total().tolist() == [0, 1, 2] * 3


def test_a_full_round_draws_nothing():
    supply = Supply()
    found = refilled({7: True, 3: True, 5: True}, supply)
    assert (found.num_replaced, found.num_surplus, supply.drawn) == (0, 0, [])


def test_when_the_budget_is_spent_the_first_flat_groups_stay():
    """Rows 7 and 3 are flat; of two attempts of 2 and 1 prompts only row 101 has signal."""
    supply = Supply()
    signal = {7: False, 3: False, 5: True, 100: False, 101: True, 102: False}
    found = refilled(signal, supply, attempts=2)
    assert [prompt.row_id for prompt in found.groups.prompts] == [7, 5, 101]
    assert (found.num_replaced, found.num_surplus) == (1, 0)
    assert (supply.missing, supply.drawn) == ([2, 1], [100, 101, 102])
    assert found.batch.row_id.tolist() == [7, 7, 7, 5, 5, 5, 101, 101, 101]


def test_no_signal_anywhere_ends_with_the_round_as_it_came():
    supply = Supply()
    signal = dict.fromkeys([7, 3, 5, *range(100, 120)], False)
    found = refilled(signal, supply)
    assert [prompt.row_id for prompt in found.groups.prompts] == [7, 3, 5]
    assert (found.num_replaced, found.num_surplus, len(supply.drawn)) == (0, 0, 9)


def test_ranks_stay_in_step_and_what_is_too_much_is_counted():
    """This rank misses nothing, another one misses two: both draw two. The groups of this one are left over."""
    supply = Supply(others=2)
    found = refilled(dict.fromkeys([7, 3, 5, *range(100, 120)], True), supply, attempts=2)
    assert [prompt.row_id for prompt in found.groups.prompts] == [7, 3, 5]
    assert (supply.missing, supply.drawn) == ([0, 0], [100, 101, 102, 103])
    assert (found.num_replaced, found.num_surplus) == (0, 4)


def test_joining_and_choosing_groups_keeps_rows_together():
    rows = [row(number) for number in (1, 2, 3)]
    completions = answer(rows)
    parts = [
        ScoredGroups(
            prompts=(prompt,),
            completions=tuple(completions[index * SIZE : (index + 1) * SIZE]),
            rewards=table_of([10 * index + place for place in range(SIZE)]),
        )
        for index, prompt in enumerate(rows)
    ]
    groups = joined(joined(parts[0], parts[1]), parts[2])
    chosen = chosen_groups(groups, torch.tensor([2, 0]))
    assert [prompt.row_id for prompt in chosen.prompts] == [3, 1]
    assert chosen.answer_ids() == [tuple(c.token_ids.tolist()) for c in (*completions[6:], *completions[:3])]
    assert chosen.rewards.total().tolist() == [20, 21, 22, 0, 1, 2]


def test_a_clock_adds_up_phases_also_of_what_fails():
    clock = Clock()
    for _ in range(2):
        with clock.phase("a"):
            pass
    with pytest.raises(KeyError), clock.phase("b"):
        raise KeyError
    assert set(clock.seconds) == {"a", "b"}
    assert all(seconds > 0 for seconds in clock.seconds.values())
