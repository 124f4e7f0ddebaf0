"""The fuzz of `test_fuzz` on the way: a thousand broken rows of a stream are dropped by name, and a thousand sound ones kept.

A stream hands out rows as they are, with whatever Python values. So the kinds of rows whose columns of a table could not
hold the faults, numbers, several completions and token ids, are broken here. Everything is drawn from a seed.
"""

import copy
import itertools
import math
import random
from typing import ClassVar

import datasets
import pytest
from datasets import IterableDataset
from test_fuzz import COLUMNS, IMPLICIT, TOKENIZER, WITH_PROMPT, Sound, broken_rows, table

from burnish.data import stream as room
from burnish.data.stream import RankStream, prepare_stream
from burnish.data.truncate import TruncationPolicy

NUM_ROWS, NUM_CHECKED = 1000, 40
TOGETHER = [("completions", "scores", "ranks"), *((f"{a}_input_ids", f"{a}_loss_mask") for a in ("chosen", "rejected"))]
NO_LIST = [None, "text", 5, {}, {"a": 1}]
NO_NUMBER = [None, "5", "", [], [1], {"a": 1}, True, math.nan, math.inf, -math.inf, 10**400]
NO_TIE = [None, "true", "", 2, -1, 0.5, [], {}, math.nan]
NO_INTEGER = [None, "a", 1.5, [], True]
NO_IDS = [*NO_LIST, ["a"], [1.5], [-1], [10**6], [None], [[1]], [True], [math.nan]]
NO_MASK = ["mask", 5, [1], ["x", "y"], [2, 2], [None, None], [0, 0], {}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(room, "NUM_CHECKED", NUM_CHECKED)


class Numbers(Sound):
    """Text rows with every number that a pair may have."""

    faults: ClassVar = {
        "weight": [*NO_NUMBER, -1, -0.5],
        "margin": NO_NUMBER,
        "score_chosen": NO_NUMBER,
        "score_rejected": NO_NUMBER,
        "ref_chosen_logps": NO_NUMBER,
        "ref_rejected_logps": NO_NUMBER,
        "tie": NO_TIE,
        "row_id": NO_INTEGER,
        "source": NO_INTEGER,
        "prompt": [None, 5, "a\x00b", [], [[]]],
    }

    def row(self, number):
        draw = self.draw
        floats = ("weight", "margin", "score_chosen", "score_rejected", "ref_chosen_logps", "ref_rejected_logps")
        numbers = {name: draw.choice([0, 1, 2.5, 1e-3]) for name in floats}
        return {**self.texts(), **numbers, "tie": draw.choice([True, False]), "row_id": number, "source": 1}


class Completions(Sound):
    """Prompts with two to four graded completions."""

    faults: ClassVar = {
        "completions": [
            *NO_LIST,
            [],
            ["a"],
            ["a", "a"],
            ["a", 5],
            ["a", None],
            ["a", ""],
            ["a", "a\x00"],
            [["b"], "a"],
        ],
        "scores": [*NO_LIST, [], [1], [1] * 9, ["2", "1"], [2, 2], [None, 1], [math.nan, 1], [math.inf, 1], [True, 2]],
        "weight": [*NO_NUMBER, -2],
        "prompt": [None, 5, "", "\x00", [[]]],
    }

    def row(self, number):
        count = self.draw.randint(2, 4)
        scores = self.draw.sample([-1, 0, 0.5, 3, 10], count)
        return {
            "prompt": self.text(),
            "completions": [self.text() for _ in range(count)],
            "scores": scores,
            "weight": self.draw.choice([0, 1, 2.5]),
        }


class Ranks(Completions):
    """The same with ranks."""

    faults: ClassVar = {
        "ranks": [*NO_LIST, [0, 1], [1.5, 2], [-1, 2], [1, 1], [math.nan, 1], ["1", "2"], [1, 2, 3, 4, 5]]
    }

    def row(self, number):
        row = {key: value for key, value in super().row(number).items() if key != "scores"}
        return {**row, "ranks": self.draw.sample(range(1, 6), len(row["completions"]))}


class Ids(Sound):
    """Token ids of pairs, every second one with masks."""

    faults: ClassVar = {
        "prompt_input_ids": NO_IDS,
        "chosen_input_ids": [*NO_IDS, []],
        "rejected_input_ids": [*NO_IDS, []],
        "chosen_loss_mask": NO_MASK,
        "rejected_loss_mask": NO_MASK,
        "truncated": ["yes", 5, [1], [2, 2], [None, None], [1, 0, 1]],
        "weight": [*NO_NUMBER, -1],
    }

    def ids(self, length):
        return [self.draw.randint(3, 258) for _ in range(length)]

    def row(self, number):
        lengths = [self.draw.randint(3, 9) for _ in range(2)]
        masks = [[1, *(self.draw.randint(0, 1) for _ in range(length - 1))] for length in lengths]
        return {
            "prompt_input_ids": self.ids(self.draw.randint(1, 9)),
            **{f"{name}_input_ids": self.ids(n) for name, n in zip(("chosen", "rejected"), lengths, strict=True)},
            **{f"{name}_loss_mask": m for name, m in zip(("chosen", "rejected"), masks, strict=True)},
            "truncated": self.draw.choice([[True, False], [False, False]]),
            "weight": 1.0,
        }


def generate(rows):
    yield from rows


def drained(source):
    stream, _ = prepare_stream(source, TOKENIZER, truncation=TruncationPolicy())
    reader = RankStream(stream)
    kept = []
    while rows := reader.take(16):
        kept += rows
    return reader, kept


def check(head, broken, sound, source):
    """Of the rows head, bad, sound, bad, sound, ... each bad one is named, and every other one kept."""
    reader, kept = drained(source)
    named = {bad.row: bad for bad in reader.newly_dropped()}
    places = range(len(head), len(head) + 2 * len(broken), 2)
    alarms = {row: str(bad) for row, bad in named.items() if row not in places}
    missed = [row for place, (row, _) in zip(places, broken, strict=True) if place not in named]
    assert (alarms, missed) == ({}, [])
    assert len(kept) == len(head) + len(sound)
    assert reader.counts["num_dropped"] == len(broken)
    for place, (row, columns) in zip(places, broken, strict=True):
        bad = named[place]
        mixed = {"chosen", "rejected"} if bad.problem.startswith("mixed layout") else set()
        assert bad.column.partition("[")[0] in columns | mixed, (row, str(bad))
        assert bad.problem
        assert bad.value
        assert bad.fix.endswith(".")
        assert len(str(bad)) < 600


@pytest.mark.parametrize("kind", [Numbers, Completions, Ranks, Ids])
def test_broken_rows_of_raw_values(kind):
    draw = random.Random(4)
    maker, counter = kind(draw), itertools.count()
    faults = itertools.cycle([(column, value) for column, values in kind.faults.items() for value in values])
    broken = []
    for column, value in itertools.islice(faults, NUM_ROWS):
        row = {**maker.row(next(counter)), column: copy.deepcopy(value)}
        together = next((names for names in TOGETHER if column in names), ())  # which of them is wrong, is open
        broken.append((row, {column, *together}))
    sound = [maker.row(next(counter)) for _ in range(NUM_ROWS)]
    head = [maker.row(next(counter)) for _ in range(NUM_CHECKED)]
    mixed = [row for (bad, _), good in zip(broken, sound, strict=True) for row in (bad, good)]
    check(head, broken, sound, IterableDataset.from_generator(generate, gen_kwargs={"rows": [*head, *mixed]}))


@pytest.mark.parametrize(("layouts", "columns"), [(WITH_PROMPT, COLUMNS), (IMPLICIT, COLUMNS[1:3])])
def test_broken_rows_of_every_layout(layouts, columns):
    draw = random.Random(5)
    num_rows = NUM_ROWS if layouts == WITH_PROMPT else NUM_ROWS // 5
    makers = itertools.cycle([getattr(Sound(draw), layout) for layout in layouts])
    head, sound = ([next(makers)() for _ in range(count)] for count in (NUM_CHECKED, num_rows))
    broken = list(broken_rows(draw, layouts, num_rows))
    mixed = [row for (bad, _), good in zip(broken, sound, strict=True) for row in (bad, good)]
    wanted = dict.fromkeys([*columns, *(key for row in mixed for key in row)])
    check(head, broken, sound, table([*head, *mixed], wanted).to_iterable_dataset())
