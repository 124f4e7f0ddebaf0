"""Streams: checked at their beginning, prepared on the way, dealt to ranks, and found again where they were left."""

import json

import datasets
import pytest
from datasets import Dataset, IterableDataset

from burnish.data import stream as room
from burnish.data.collate import PreferenceCollator
from burnish.data.errors import DataError
from burnish.data.stream import RankStream, prepare_stream
from burnish.data.tokenize import prepare_preferences
from burnish.data.truncate import TruncationPolicy
from conftest import make_rows, make_tokenizer

datasets.disable_progress_bars()
ROWS = make_rows(50)
BAD = {**ROWS[0], "rejected": ROWS[0]["chosen"]}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch, tmp_path):
    monkeypatch.setattr(room, "NUM_CHECKED", 10)
    monkeypatch.setattr(room, "CHUNK_ROWS", 4)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def generate(rows):
    yield from rows


def source_of(rows):
    return IterableDataset.from_generator(generate, gen_kwargs={"rows": rows})


def prepare(source, **options):
    return prepare_stream(source, make_tokenizer(), truncation=TruncationPolicy(), **options)


def stream_of(rows, **options):
    return prepare(source_of(rows), **options)[0]


def drain(reader, count=3):
    taken = []
    while rows := reader.take(count):
        taken += rows
    return taken


def ids(rows):
    return [row["row_id"] for row in rows]


def test_rows_are_those_of_a_data_set():
    """On the way a row becomes what it becomes in a table, whatever the table fills with null."""
    extra = {**ROWS[3], "weight": 2, "chosen": "plain text", "rejected": "other text", "prompt": "a text"}
    rows = [{**row, "weight": 1} for row in ROWS[:20]] + [extra]
    table = Dataset.from_list([{key: json.dumps(value) for key, value in row.items()} for row in rows])
    features = datasets.Features({**{key: datasets.Json() for key in ROWS[0]}, "weight": datasets.Value("float64")})
    columns = {key: table[key][:] if key != "weight" else [row["weight"] for row in rows] for key in features}
    wanted, _ = prepare_preferences(
        Dataset.from_dict(columns, features=features), make_tokenizer(), truncation=TruncationPolicy()
    )
    found = drain(RankStream(stream_of(rows)))
    assert found == [dict(row) for row in wanted]


def test_the_first_rows_are_checked_in_one_pass():
    rows = [BAD if index in (2, 7, 9) else row for index, row in enumerate(ROWS)]
    with pytest.raises(DataError, match="3 of 10 rows cannot be trained on") as caught:
        stream_of(rows)
    assert [line.split(",")[0].strip() for line in str(caught.value).splitlines()[1:4]] == ["row 2", "row 7", "row 9"]


def test_dropped_rows_are_named_and_counted():
    rows = [BAD if index in (2, 30, 31, 49) else row for index, row in enumerate(ROWS)]
    stream, report = prepare(source_of(rows), on_bad_row="drop")
    assert (report.num_dropped, report.is_head) == (1, True)
    reader = RankStream(stream)
    assert ids(drain(reader)) == [i for i in range(50) if i not in (2, 30, 31, 49)]
    assert (reader.counts["num_read"], reader.counts["num_dropped"], reader.dropped) == (50, 4, [2, 30, 31, 49])
    named = reader.newly_dropped()
    assert [bad.row for bad in named] == [2, 30, 31, 49]
    assert all(bad.column == "rejected" and bad.fix for bad in named)
    assert reader.newly_dropped() == []


def test_later_rows_of_any_shape_are_dropped_and_not_raised():
    odd = [
        {},
        {"prompt": 5},
        {"prompt": None, "chosen": [[]], "rejected": {}},
        {"row_id": "a"},
        {**ROWS[1], "row_id": "a"},
    ]
    rows = [{**row, "row_id": index} for index, row in enumerate(ROWS[:10])] + odd + [{**ROWS[9], "row_id": 99}]
    reader = RankStream(stream_of(rows))
    assert ids(drain(reader)) == [*range(10), 99]
    assert reader.dropped == list(range(10, 15))
    assert {bad.column for bad in reader.newly_dropped()} <= {"prompt", "chosen", "rejected", "row_id"}


def test_later_columns_and_keys_are_told():
    late = {**ROWS[20], "annotator": "Bo", "chosen": [{**ROWS[20]["chosen"][0], "mood": "calm"}]}
    reader = RankStream(stream_of([*ROWS[:20], late]))
    drain(reader)
    assert reader.unread == {"annotator", "messages.mood"}


def test_cuts_are_counted():
    stream, _ = prepare_stream(source_of(ROWS), make_tokenizer(), truncation=TruncationPolicy(max_completion_length=10))
    wanted, report = prepare_preferences(
        Dataset.from_list(ROWS), make_tokenizer(), truncation=TruncationPolicy(max_completion_length=10)
    )
    reader = RankStream(stream)
    assert len(drain(reader)) == len(wanted)
    assert {name: reader.counts[name] for name in report.counts} == report.counts
    assert report.counts["num_completions_cut"] > 20


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("num_rows", [1, 3, 12, 50])
def test_ranks_share_the_rows(world, num_rows):
    stream = stream_of(ROWS[:num_rows])
    ranks = [ids(drain(RankStream(stream, rank=rank, num_replicas=world))) for rank in range(world)]
    assert ranks == [list(range(rank, num_rows, world)) for rank in range(world)]


def test_without_bad_rows_a_step_has_the_same_rows_on_any_number_of_ranks():
    stream = stream_of(ROWS)
    steps = []
    for world, size in [(1, 12), (2, 6), (3, 4), (4, 3)]:
        readers = [RankStream(stream, rank=rank, num_replicas=world) for rank in range(world)]
        steps.append([{row for reader in readers for row in ids(reader.take(size))} for _ in range(5)])
    assert all(step == steps[0] for step in steps)


def sources():
    table = Dataset.from_list(ROWS)
    return {
        "generator": source_of(ROWS),
        "table": table.to_iterable_dataset(num_shards=3),
        "mapped": table.to_iterable_dataset().map(lambda row: {"seen": True}),
        "shuffled": table.to_iterable_dataset(num_shards=3).shuffle(seed=3, buffer_size=7),
        "taken": table.to_iterable_dataset().skip(3).take(40),
    }


@pytest.mark.parametrize("kind", ["generator", "table", "mapped", "shuffled", "taken", "buffer"])
def test_a_stream_is_found_again(kind):
    """After any number of rows, in the middle of a chunk and at its end; a state goes through JSON."""
    options = {"shuffle_buffer_size": 6, "seed": 2} if kind == "buffer" else {}

    def reader():
        return RankStream(prepare(sources()["generator" if kind == "buffer" else kind], **options)[0])

    whole = drain(reader(), 1)
    first, taken = reader(), []
    for num_taken in (1, 4, 17, 39):
        taken += [first.take(1)[0] for _ in range(num_taken - len(taken))]
        first.has_more()
        state = json.loads(json.dumps(first.state_dict()))
        second = reader()
        second.load_state_dict(state)
        assert second.counts == first.counts, f"after {num_taken} rows"
        assert json.loads(json.dumps(second.state_dict())).keys() == state.keys(), f"after {num_taken} rows"
        assert taken + drain(second, 1) == whole, f"after {num_taken} rows"


def test_a_state_of_the_source_is_used_where_it_leads_back():
    """The source reads the one chunk again, not the 40 rows before it."""
    read = []
    table = Dataset.from_list(ROWS).to_iterable_dataset(num_shards=50)
    stream, _ = prepare(table.map(lambda row: read.append(1) or row))
    first = RankStream(stream)
    first.take(40)
    first.has_more()
    state = first.state_dict()
    second = RankStream(stream)
    read.clear()
    second.load_state_dict(state)
    assert len(read) <= 6


@pytest.mark.slow
def test_dropped_rows_survive_being_found_again():
    rows = [BAD if index in (12, 21, 22, 33) else row for index, row in enumerate(ROWS)]
    for num_taken in range(1, 46):
        stream = stream_of(rows)
        first, second = RankStream(stream), RankStream(stream)
        first.take(num_taken)
        first.has_more()
        second.load_state_dict(first.state_dict())
        assert (second.counts, second.dropped) == (first.counts, first.dropped)
        assert second.newly_dropped() == []
        drain(second)
        assert second.dropped == [12, 21, 22, 33]


@pytest.mark.parametrize("changed", [11, 30])
@pytest.mark.parametrize("buffer", [None, 5])
def test_other_rows_are_noticed(changed, buffer):
    """A row before the place, which the source's state leads past, and one behind it in the chunk."""
    others = [ROWS[0] if index == changed else row for index, row in enumerate(ROWS)]
    first = RankStream(stream_of(ROWS, shuffle_buffer_size=buffer))
    first.take(31)
    state = first.state_dict()
    second = RankStream(stream_of(others, shuffle_buffer_size=buffer))
    if changed == 11 and buffer is None:
        second.load_state_dict(state)  # nothing is read again: only what comes is compared
        assert ids(second.take(1)) == [31]
    else:
        with pytest.raises(DataError, match="no longer those that this run was trained on"):
            second.load_state_dict(state)


def test_a_shorter_stream_is_noticed():
    first = RankStream(stream_of(ROWS))
    first.take(31)
    with pytest.raises(DataError, match="no longer those"):
        RankStream(stream_of(ROWS[:25])).load_state_dict(first.state_dict())


def test_the_buffer_shuffles_and_loses_nothing():
    orders = [
        ids(drain(RankStream(stream_of(ROWS, shuffle_buffer_size=size, seed=seed))))
        for size, seed in [(8, 1), (8, 1), (8, 2), (99, 1)]
    ]
    assert orders[0] == orders[1] != orders[2] != orders[3]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert all(row < place + 8 for place, row in enumerate(orders[0])), "no row comes before it is in the buffer"


def test_ranks_share_a_shuffled_stream():
    stream = stream_of(ROWS, shuffle_buffer_size=9)
    ranks = [ids(drain(RankStream(stream, rank=rank, num_replicas=2))) for rank in (0, 1)]
    assert sorted(ranks[0] + ranks[1]) == list(range(50))


def test_a_filler_counts_for_nothing():
    stream = stream_of(ROWS)
    batch = PreferenceCollator(0)([RankStream(stream).filler()])
    assert batch.is_filler


@pytest.mark.parametrize("size", [-1, 0, 1])
def test_buffers_that_are_refused(size):
    with pytest.raises(ValueError, match=f"shuffle_buffer_size={size}; allowed: 2 or more"):
        stream_of(ROWS, shuffle_buffer_size=size)


def test_an_empty_stream():
    with pytest.raises(DataError, match="train: the stream has no rows"):
        stream_of([])


def test_a_missing_column_is_named_at_once():
    with pytest.raises(DataError, match="no column 'rejected'"):
        stream_of([{"prompt": "a", "chosen": "b"}] * 12)


def test_ref_logps_of_a_stream_are_split():
    rows = [{**row, "ref_logps": [-3.0, -4.0]} for row in ROWS[:12]] + [{**ROWS[12], "ref_logps": [1.0]}]
    reader = RankStream(stream_of(rows))
    found = drain(reader)
    assert [(row["ref_chosen_logps"], row["ref_rejected_logps"]) for row in found] == [(-3.0, -4.0)] * 12
    assert reader.newly_dropped()[0].column == "ref_chosen_logps"
