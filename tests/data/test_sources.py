import datetime
import gzip
import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, disable_progress_bars

from burnish.data import sources
from burnish.data.errors import DataError
from burnish.data.sources import load_rows, load_stream, split_rows

disable_progress_bars()
ROWS = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "d", "chosen": "e", "rejected": "f", "weight": 2}]
FILLED = [{**ROWS[0], "weight": None}, ROWS[1]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def lines(rows):
    return "\n".join(json.dumps(row) for row in rows)


def test_data_set_is_returned_as_it_is():
    dataset = Dataset.from_list(ROWS)
    assert load_rows(dataset) is dataset


def test_split_is_picked_or_named():
    splits = DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])})
    assert len(load_rows(splits, split="test")) == 1
    with pytest.raises(DataError, match="no split 'validation'; it has: train, test"):
        load_rows(splits, split="validation")


def test_list_with_differing_keys():
    assert load_rows(ROWS).to_list() == FILLED


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "list.json", "rows.parquet"])
def test_files(tmp_path, name):
    path = tmp_path / name
    text = json.dumps(ROWS) if name == "list.json" else lines(ROWS) + "\n\n"
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif name.endswith(".parquet"):
        load_rows(ROWS).to_parquet(path)
    else:
        path.write_text(text)
    assert load_rows(path).to_list() == FILLED
    assert load_rows(str(path)).to_list() == FILLED


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_csv_keeps_text_as_text(tmp_path, name):
    path = tmp_path / name
    text = "prompt,chosen,rejected,weight\n1+1?,2,NA,0.5\nhi,,None,1\n"
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert load_rows(path).to_list() == [
        {"prompt": "1+1?", "chosen": "2", "rejected": "NA", "weight": 0.5},
        {"prompt": "hi", "chosen": None, "rejected": "None", "weight": 1.0},
    ]


def test_messages_with_differing_keys(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"chosen": [{"role": "user", "content": "a"}]},
        {"chosen": [{"content": "b", "role": "user", "name": "Bo"}]},
    ]
    path.write_text(lines(rows))
    assert load_rows(path).to_list()[0] == {"chosen": [{"role": "user", "content": "a", "name": None}]}


def test_changed_file_is_read_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(ROWS))
    assert len(load_rows(path)) == 2
    path.write_text(lines(ROWS * 2))
    assert len(load_rows(path)) == 4


@pytest.mark.parametrize("odd", [5, ["x"], {"role": "user"}, [{"role": "user", "content": "天"}], "5", True])
def test_values_without_a_type_in_common_stay_as_they_are(tmp_path, odd):
    """Kept as JSON; columns that have a type keep it."""
    rows = [*ROWS * 600, {**ROWS[0], "chosen": odd}, ROWS[0]]
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(rows))
    for loaded in (load_rows(path), load_rows(rows)):
        assert loaded["chosen"][1199:] == ["e", odd, "b"]
        assert loaded.features["weight"].dtype == "int64"
        assert loaded["weight"][1199:] == [2, None, None]


@pytest.mark.parametrize("bad", ["\ud800", ["\ud800"], {"a": "\ud800"}])
@pytest.mark.parametrize("others", [ROWS, [*ROWS, {"chosen": 5}]])
def test_invalid_unicode_names_row_and_column(tmp_path, bad, others):
    rows = [*others * 600, {**ROWS[0], "chosen": bad}]
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(rows))
    named = f"row {len(rows) - 1}, column 'chosen'"
    with pytest.raises(DataError, match=rf"rows.jsonl, {named}"):
        load_rows(path)
    with pytest.raises(DataError, match=named):
        load_rows(rows)


def test_values_that_json_does_not_know_name_row_and_column():
    day = datetime.date(2020, 1, 2)
    with pytest.raises(DataError, match=r"row 2, column 'chosen': datetime.date\(.* does not fit into a table"):
        load_rows([*ROWS, {**ROWS[0], "chosen": day}])
    with pytest.raises(DataError, match=r"row 3, column 'chosen': datetime.date\(.* does not fit into a table"):
        load_rows([*ROWS, {**ROWS[0], "chosen": 5}, {**ROWS[0], "chosen": day}])


def test_broken_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(ROWS) + '\n\n{"prompt": ')
    with pytest.raises(DataError, match=r"line 4 \(row 2\), is no JSON"):
        load_rows(path)
    path.write_text("[1, 2]")
    with pytest.raises(DataError, match="row 0: a row is a dict"):
        load_rows(path)


def test_nothing_there(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "empty.csv").write_text("prompt,chosen\n")
    for source in ([], Dataset.from_list([]), tmp_path / "empty.jsonl", tmp_path / "empty.csv"):
        with pytest.raises(DataError, match="at least one"):
            load_rows(source)
    with pytest.raises(DataError, match="there is no file"):
        load_rows(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="no recipe data set 'absent'"):
        load_rows("recipe:absent")


def test_recipe(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tiny.jsonl").write_text(lines(ROWS))
    monkeypatch.setattr(sources.resources, "files", lambda package: tmp_path)
    assert load_rows("recipe:tiny").to_list() == FILLED


def test_hub_name_with_revision(monkeypatch):
    asked = []
    monkeypatch.setattr(
        sources.datasets,
        "load_dataset",
        lambda *a, **k: asked.append((a, k)) or DatasetDict(train=Dataset.from_list(ROWS)),
    )
    assert len(load_rows("owner/name@v2")) == 2
    load_rows("owner/name")
    assert asked == [(("owner/name",), {"revision": "v2"}), (("owner/name",), {"revision": None})]


def test_hub_failure_is_named(monkeypatch):
    def fail(*_, **__):
        raise FileNotFoundError("no such data set")

    monkeypatch.setattr(sources.datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"cannot load 'owner/absent' from the hub: .*no such data set"):
        load_rows("owner/absent")


def test_streaming_and_other_kinds():
    with pytest.raises(ValueError, match="accepted as train_dataset alone"):
        load_rows(Dataset.from_list(ROWS).to_iterable_dataset())
    with pytest.raises(TypeError, match="not int"):
        load_rows(5)


def test_split_rows_is_deterministic_and_disjoint():
    dataset = Dataset.from_dict({"x": list(range(50))})
    train, held_out = split_rows(dataset, 7, seed=1)
    assert (len(train), len(held_out)) == (43, 7)
    assert sorted([*train["x"], *held_out["x"]]) == list(range(50))
    assert split_rows(dataset, 7, seed=1)[1]["x"][:] == held_out["x"][:]
    assert split_rows(dataset, 7, seed=2)[1]["x"][:] != held_out["x"][:]
    with pytest.raises(DataError, match="eval_rows=50"):
        split_rows(dataset, 50, seed=0)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "parquet", "recipe"])
def test_a_file_as_a_stream_has_the_same_rows(tmp_path, kind):
    rows = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no"} for i in range(5)]
    name = "recipe:spoken-train" if kind == "recipe" else str(tmp_path / f"rows.{kind}")
    if kind.startswith("json"):
        text = json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows)
        content = text.encode()
        Path(name).write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    elif kind == "csv":
        Dataset.from_list(rows).to_csv(name)
    elif kind == "parquet":
        Dataset.from_list(rows).to_parquet(name)
    assert list(load_stream(name)) == load_rows(name).to_list()


def test_a_streamed_file_that_is_none(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        load_stream(tmp_path / "none.jsonl")
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n[2]\n')
    with pytest.raises(DataError, match=r"row 1: a row is a dict .* found \[2\]"):
        list(load_stream(path))


def test_a_stream_of_the_hub(monkeypatch):
    asked = []
    stream = IterableDataset.from_generator(lambda: iter(ROWS))
    monkeypatch.setattr(
        sources.datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or IterableDatasetDict(train=stream)
    )
    assert list(load_stream("owner/name@v2")) == ROWS
    assert asked == [(("owner/name",), {"revision": "v2", "streaming": True})]


def test_csv_says_true_and_false(tmp_path):
    path = tmp_path / "judged.csv"
    path.write_text("prompt,completion,label,tie\na,True,True,\nb,False,false,1\nc,x,good,0\n")
    rows = load_rows(path).to_list()
    assert [row["completion"] for row in rows] == ["True", "False", "x"]
    assert [row["label"] for row in rows] == [True, False, "good"]
    assert [row["tie"] for row in rows] == [None, 1, 0]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", '{"prompt": "\u00e9"}'.encode("latin-1"), "codec can't decode"),
        ("a.csv", "prompt\n\u00e9\n".encode("latin-1"), "codec can't decode"),
        ("a.csv", b"", "No columns"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "Expected 2 fields in line 3, saw 3"),
        ("a.jsonl.gz", b"{}", "Not a gzipped file"),
        ("a.parquet", b"nothing", "smaller than the minimum file footer"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read") as error:
        load_rows(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert reason in str(error.value)
    if not name.endswith("parquet"):
        with pytest.raises(DataError, match="cannot be read"):
            list(load_stream(tmp_path / name))
