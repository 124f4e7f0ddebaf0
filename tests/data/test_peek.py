from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from burnish.data.peek import local_file, peek
from burnish.data.sources import load_rows
from conftest import make_rows


def write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.parquet"])
def test_first_rows_are_those_that_are_loaded(tmp_path, name):
    rows, path = make_rows(6), tmp_path / name
    rows[2]["weight"] = 2.0  # a key that other rows lack
    text = json.dumps(rows) if name == "rows.json" else "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif name.endswith(".parquet"):
        parquet.write_table(pa.Table.from_pylist([{**row, "weight": row.get("weight")} for row in rows]), path)
    else:
        path.write_text(text)
    found, loaded = peek(path), load_rows(path)
    assert found.faults == ()
    assert (found.num_rows, found.indices) == (6, tuple(range(6)))
    assert found.rows.features == loaded.features
    assert list(found.rows) == list(loaded)
    few = peek(path, limit=4)
    assert few.indices == (0, 1, 2, 3)
    assert few.num_rows == (6 if name in ("rows.jsonl", "rows.parquet") else None)


def test_csv_is_text_but_for_numbers(tmp_path):
    path = write(tmp_path / "rows.csv", ["prompt,chosen,rejected,weight", "q,42,None,2", "q,,b,1"])
    assert list(peek(path).rows) == list(load_rows(path))


def test_every_fault_of_a_file_is_named_and_the_rest_is_read(tmp_path):
    """A value of another type than those before it is no fault of the file: its row is read, and is a bad row."""
    good = '{"prompt": "q", "chosen": "a", "rejected": "b"}'
    odd = ['{"prompt": 3, "chosen": {"x": 1}}', '{"prompt": "\\ud800"}']
    path = write(tmp_path / "rows.jsonl", [good, "{broken", "", "[1]", *odd, good])
    found = peek(path)
    assert found.indices == (0, 3, 5)
    assert found.rows["prompt"][:] == ["q", 3, "q"]
    assert found.num_rows == 6
    assert [fault.split(": ")[0].removeprefix(str(path)) for fault in found.faults] == [
        f"'{path}', line 2 (row 1), is no JSON",
        ", row 2",
        ", row 4, column 'prompt'",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "has no rows"),
        ("a.jsonl", b"\xff\xfe\x00", "UnicodeDecodeError"),
        ("a.jsonl.gz", b"no gzip", "BadGzipFile"),
        ("a.json", b"[{,]", "is no JSON"),
        ("a.parquet", b"PAR1", "ArrowInvalid"),
        ("a.csv", b"", "EmptyDataError"),
        ("gone.jsonl", None, "FileNotFoundError"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    found = peek(tmp_path / name)
    assert found.rows is None
    (fault,) = found.faults
    assert message in fault
    assert "\n" not in fault


def test_sources_that_are_files():
    assert local_file("recipe:spoken-train").name == "spoken-train.jsonl"
    assert local_file("a/b.csv.gz").name == "b.csv.gz"
    assert local_file("owner/name") is None
