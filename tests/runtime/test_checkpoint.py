"""Checkpoints: what goes in comes out bit for bit, damage is found, and a crash at any moment leaves a sound one."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from burnish.runtime import checkpoint, tree
from burnish.runtime.checkpoint import (
    CheckpointError,
    atomic_directory,
    checkpoints,
    load_tree,
    newest_sound,
    read_manifest,
    remove_leftovers,
    rotate,
    save_tree,
    verify,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64, torch.uint8]


def no_barrier() -> None:
    """One process needs none."""


def never(path: Path, problems: list[str]) -> None:
    raise AssertionError(f"{path} was skipped: {problems}")


def make_checkpoint(run: Path, step: int, value: float | None = None) -> Path:
    target = run / f"checkpoint-{step}"
    with atomic_directory(target, is_main=True, barrier=no_barrier, manifest={"step": step}) as directory:
        save_tree(directory, "state", {"step": step, "weights": torch.full((64,), value or float(step))})
        (directory / "adapter").mkdir()
        (directory / "adapter" / "config.json").write_text('{"rank": 8}')
    return target


def interrupt_in(directory: Path) -> None:
    (directory / "half").write_text("half")
    raise KeyboardInterrupt


def fill_disk_in(directory: Path) -> None:
    (directory / "half").write_text("0123456789")
    raise OSError(errno.ENOSPC, "No space left on device")


def content(value):
    """A value with its types and bits, comparable by ==."""
    if isinstance(value, torch.Tensor):
        raw = value.detach().resolve_conj().reshape(-1).contiguous().view(torch.uint8)
        return ("tensor", str(value.dtype), tuple(value.shape), bytes(raw.tolist()))
    if isinstance(value, float):
        return ("float", struct.pack(">d", value))
    if isinstance(value, dict):
        return ("dict", [(content(key), content(item)) for key, item in value.items()])
    if isinstance(value, list | tuple):
        return (type(value).__name__, [content(item) for item in value])
    return (type(value).__name__, value)


def round_trip(directory: Path, value):
    save_tree(directory, "t", value)
    return load_tree(directory, "t")


# --- trees


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    count = int(np.prod(shape, dtype=int)) * dtype.itemsize
    raw = torch.tensor(list(draw(st.binary(min_size=count, max_size=count))), dtype=torch.uint8)
    return (raw % 2).bool().reshape(shape) if dtype is torch.bool else raw.view(dtype).reshape(shape)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | tensors()
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(st.characters()) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=TREES)
def test_any_tree_comes_back_bit_for_bit(tmp_path, value):
    assert content(round_trip(tmp_path, value)) == content(value)


def test_special_values_come_back(tmp_path):
    nan_with_payload = struct.unpack(">d", bytes.fromhex("fff8000000000123"))[0]
    value = {
        "floats": [0.1, -0.0, float("inf"), -float("inf"), nan_with_payload, 5e-324],
        "ints": (10**5000, -(1 << 63), True),
        "text": "\ud83d\ude00 lone surrogates stay two",
        7: {"tensor": "a key that the encoding uses itself", "int": "0x1", "tuple": ()},
        "__metadata__": torch.tensor(3.5),
    }
    assert content(round_trip(tmp_path, value)) == content(value)


def test_every_dtype_comes_back(tmp_path):
    dtypes = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    quantized = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}
    raw = torch.arange(2, 34, dtype=torch.uint8)
    value = {str(d): (raw % 2).bool() if d is torch.bool else raw.view(d) for d in dtypes - quantized}
    assert content(round_trip(tmp_path, value)) == content(value)


def test_views_and_shared_memory_come_back_as_values(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    parameter = torch.nn.Parameter(base[0].clone())
    value = [base, base, base[1], base.T, torch.tensor([1 + 2j]).conj(), parameter]
    loaded = round_trip(tmp_path, value)
    assert content(loaded) == content(value)
    assert len({tensor.untyped_storage().data_ptr() for tensor in loaded}) == len(value)
    assert type(loaded[-1]) is torch.Tensor


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [1, {2, 3}]}, r"t\['a'\]\[1\] is a builtins.set"),
        ({"lr": np.float64(0.1)}, r"t\['lr'\] is a numpy.float64"),
        ({"a": OrderedDict()}, r"t\['a'\] is a collections.OrderedDict"),
        ({"a": {1.5: 0}}, r"t\['a'\] has the key 1.5, a float"),
        ({True: 0}, r"t has the key True, a bool"),
        ([torch.eye(2).to_sparse()], r"t\[0\] is a tensor that is torch.sparse_coo"),
        ([torch.empty(2, device="meta")], r"t\[0\] is a tensor that is torch.strided on meta"),
    ],
)
def test_other_types_are_refused_with_their_path(tmp_path, value, where):
    with pytest.raises(TypeError, match=where):
        save_tree(tmp_path, "t", value)


def test_no_file_is_a_pickle_and_damage_is_a_checkpoint_error(tmp_path):
    save_tree(tmp_path, "t", {"a": torch.ones(3)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.json", "t.safetensors"]
    for name, text in (("t.json", "{"), ("t.json", '{"odd": 1}'), ("t.safetensors", "x")):
        save_tree(tmp_path, "t", {"a": torch.ones(3)})
        (tmp_path / name).write_text(text)
        with pytest.raises(CheckpointError, match="Cannot read the state"):
            load_tree(tmp_path, "t")
    with pytest.raises(CheckpointError, match="missing"):
        load_tree(tmp_path, "missing")


def test_files_of_two_saves_do_not_mix(tmp_path):
    save_tree(tmp_path, "a", [torch.ones(3)])
    save_tree(tmp_path, "b", [torch.ones(4)])
    (tmp_path / "a.json").replace(tmp_path / "b.json")
    with pytest.raises(CheckpointError, match=r"\[4\], not"):
        load_tree(tmp_path, "b")


@pytest.mark.parametrize("fused", [False, True])
def test_optimizer_continues_bit_for_bit(tmp_path, fused):
    def make():
        torch.manual_seed(0)
        layer = torch.nn.Linear(33, 17)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, fused=fused)
        return layer, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))

    def step(layer, optimizer, scheduler, seed):
        inputs = torch.randn(5, 33, generator=torch.Generator().manual_seed(seed))
        layer(inputs).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    first = make()
    for seed in range(3):
        step(*first, seed)
    states = {
        "model": dict(first[0].state_dict()),
        "optimizer": first[1].state_dict(),
        "lr": first[2].state_dict(),
    }
    save_tree(tmp_path, "t", states)
    second = make()
    loaded = load_tree(tmp_path, "t")
    assert content(loaded) == content(states)
    second[0].load_state_dict(loaded["model"])
    second[1].load_state_dict(loaded["optimizer"])
    second[2].load_state_dict(loaded["lr"])
    step(*first, 9)
    step(*second, 9)
    assert content(list(second[0].parameters())) == content(list(first[0].parameters()))
    assert content(second[1].state_dict()) == content(first[1].state_dict())


# --- the directory


def test_directory_appears_whole_with_a_manifest(tmp_path):
    target = make_checkpoint(tmp_path, 3)
    manifest = read_manifest(target)
    assert verify(target) == []
    assert manifest["format"] == 1
    assert manifest["step"] == 3
    assert [row["name"] for row in manifest["files"]] == [
        "adapter/config.json",
        "state.json",
        "state.safetensors",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_the_target_does_not_exist_before_the_end_and_an_old_one_stays(tmp_path):
    target = tmp_path / "checkpoint-1"
    with atomic_directory(target, is_main=True, barrier=no_barrier, manifest={}) as directory:
        assert not target.exists()
        assert directory == tmp_path / ".tmp-checkpoint-1"
    with atomic_directory(target, is_main=True, barrier=no_barrier, manifest={"new": True}):
        assert verify(target) == []
    assert read_manifest(target)["new"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_only_the_main_process_touches_the_disk(tmp_path):
    calls = []
    target = tmp_path / "checkpoint-1"
    with atomic_directory(target, is_main=False, barrier=lambda: calls.append(1), manifest={}) as directory:
        assert directory == tmp_path / ".tmp-checkpoint-1"
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []


def save_in_threads(run: Path, *, failing_rank: int | None) -> list[BaseException | None]:
    """Two ranks as threads, each with its own file; returns what each one raised."""
    barrier = threading.Barrier(2)
    raised: list[BaseException | None] = [None, None]

    def wait() -> None:
        barrier.wait(timeout=1)

    def save(rank: int) -> None:
        target = run / "checkpoint-1"
        try:
            with atomic_directory(target, is_main=rank == 0, barrier=wait, manifest={}) as directory:
                if rank == failing_rank:
                    raise RuntimeError("out of memory")
                save_tree(directory, f"rank-{rank}", rank)
        except BaseException as error:
            raised[rank] = error

    threads = [threading.Thread(target=save, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_every_ranks_files_are_sealed(tmp_path):
    assert save_in_threads(tmp_path, failing_rank=None) == [None, None]
    assert verify(tmp_path / "checkpoint-1") == []
    assert len(read_manifest(tmp_path / "checkpoint-1")["files"]) == 4


@pytest.mark.parametrize("failing_rank", [0, 1])
def test_a_failing_rank_leaves_no_checkpoint_and_ends_the_others(tmp_path, failing_rank):
    raised = save_in_threads(tmp_path, failing_rank=failing_rank)
    assert isinstance(raised[failing_rank], RuntimeError)
    # the other one meets the broken barrier, or finds the directory gone under its hands
    assert isinstance(raised[1 - failing_rank], threading.BrokenBarrierError | CheckpointError)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_inside_removes_the_directory_and_goes_on(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        atomic_directory(tmp_path / "checkpoint-1", is_main=True, barrier=no_barrier, manifest={}) as directory,
    ):
        interrupt_in(directory)
    assert list(tmp_path.iterdir()) == []


def test_stale_temporary_directory_is_not_inherited(tmp_path):
    (tmp_path / ".tmp-checkpoint-2").mkdir()
    (tmp_path / ".tmp-checkpoint-2" / "stale").write_text("x")
    assert not (make_checkpoint(tmp_path, 2) / "stale").exists()


def test_a_checkpoint_holds_its_own_bytes(tmp_path):
    with (
        pytest.raises(CheckpointError, match="neither a file nor a directory"),
        atomic_directory(tmp_path / "checkpoint-1", is_main=True, barrier=no_barrier, manifest={}) as directory,
    ):
        (directory / "link").symlink_to("/etc/hostname")
    with (
        pytest.raises(ValueError, match="may not set"),
        atomic_directory(tmp_path / "checkpoint-1", is_main=True, barrier=no_barrier, manifest={"files": []}),
    ):
        pass


def test_disk_full_message_has_path_and_bytes(tmp_path):
    make_checkpoint(tmp_path, 1)
    with (
        pytest.raises(CheckpointError, match=r"checkpoint-2 was not saved: .*No space left") as caught,
        atomic_directory(tmp_path / "checkpoint-2", is_main=True, barrier=no_barrier, manifest={}) as directory,
    ):
        fill_disk_in(directory)
    assert caught.value.errno == errno.ENOSPC
    assert "10 were written" in str(caught.value)
    assert "Free: " in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 12
    assert newest_sound(tmp_path, on_skip=never) == tmp_path / "checkpoint-1"


# --- damage


def damage(directory: Path, rng: random.Random) -> str:
    """One random corruption of one file; returns what was done."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    path = rng.choice(files)
    raw = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "flip", "truncate", "append", "zero", "delete", "entry"])
    if kind == "delete":
        path.unlink()
    elif kind == "entry":
        manifest = read_manifest(directory)
        manifest["files"].append({"name": f"extra-{rng.random()}", "size": 1, "sha256": "0"})
        (directory / "MANIFEST.json").write_bytes(checkpoint._manifest_bytes(manifest))
    elif kind == "truncate":
        path.write_bytes(raw[: rng.randrange(len(raw))])
    elif kind == "append":
        path.write_bytes(raw + b"\0")
    elif kind == "zero":
        path.write_bytes(bytes(len(raw)))
    else:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
    return f"{kind} {path.name}"


def test_every_single_corruption_is_found(tmp_path):
    make_checkpoint(tmp_path, 1)
    pristine = make_checkpoint(tmp_path, 2)
    shutil.copytree(pristine, tmp_path / "copy")
    rng = random.Random(0)
    for _ in range(400):
        done = damage(pristine, rng)
        skipped = []
        found = newest_sound(tmp_path, on_skip=lambda path, problems, log=skipped: log.append((path.name, problems)))
        assert found == tmp_path / "checkpoint-1", done
        assert [name for name, _ in skipped] == ["checkpoint-2"]
        assert skipped[0][1], done
        shutil.rmtree(pristine)
        shutil.copytree(tmp_path / "copy", pristine)
    assert newest_sound(tmp_path, on_skip=never) == pristine


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "adapter/../../outside", "link"])
def test_a_manifest_cannot_point_outside(tmp_path, name):
    target = make_checkpoint(tmp_path, 1)
    (tmp_path / "outside").write_text("x")
    (target / "link").symlink_to(tmp_path / "outside")
    manifest = read_manifest(target)
    manifest["files"][0]["name"] = name
    (target / "MANIFEST.json").write_bytes(checkpoint._manifest_bytes(manifest))
    assert verify(target) == [f"{name} lies outside the checkpoint"]


def test_a_newer_format_is_named(tmp_path):
    target = make_checkpoint(tmp_path, 1)
    raw = checkpoint._manifest_bytes({**read_manifest(target), "format": 99})
    (target / "MANIFEST.json").write_bytes(raw)
    assert verify(target) == ["MANIFEST.json has format 99; this version reads up to 1"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "x"}', '{"format": 1, "files": [3]}', "\xff"])
def test_an_unreadable_manifest_is_a_problem_and_no_exception(tmp_path, text):
    target = make_checkpoint(tmp_path, 1)
    (target / "MANIFEST.json").write_bytes(text.encode("latin-1"))
    assert len(verify(target)) == 1


# --- selection and rotation


def test_checkpoints_are_ordered_by_number_and_only_directories(tmp_path):
    for name in (
        "checkpoint-9",
        "checkpoint-10",
        "checkpoint-x",
        "checkpoint-",
        "checkpoint-07",
        ".tmp-checkpoint-99",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-50").write_text("a file")
    (tmp_path / "checkpoint-60").symlink_to(tmp_path / "checkpoint-9")
    os.utime(tmp_path / "checkpoint-9", (4e9, 4e9))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-9"]
    assert checkpoints(tmp_path / "absent") == []
    assert newest_sound(tmp_path / "absent", on_skip=never) is None


@pytest.mark.parametrize(
    ("steps", "keep", "protected", "broken", "left"),
    [
        ([1, 2, 3], None, [], [], [1, 2, 3]),
        ([1, 2, 3], 5, [], [], [1, 2, 3]),
        ([1, 2, 3], 3, [], [], [1, 2, 3]),
        ([1, 2, 3], 2, [], [], [2, 3]),
        ([1, 2, 3], 1, [], [], [3]),
        ([9, 10, 100], 1, [], [], [100]),
        ([1, 2, 3, 4], 2, [1], [], [1, 4]),
        ([1, 2, 3, 4], 1, [1], [], [1, 4]),
        ([1, 2, 3, 4], 1, [1, 2], [], [1, 2, 4]),
        ([1, 2, 3], 1, [3], [], [3]),
        ([1, 2, 3], 1, [], [3], [2, 3]),
        ([1, 2, 3], 1, [], [2, 3], [1, 3]),
        ([5], 1, [], [5], [5]),
        ([], 1, [], [], []),
    ],
)
def test_rotation_table(tmp_path, steps, keep, protected, broken, left):
    for step in steps:
        make_checkpoint(tmp_path, step)
    for step in broken:
        (tmp_path / f"checkpoint-{step}" / "state.safetensors").unlink()
    doomed = rotate(tmp_path, keep=keep, protected=[tmp_path / f"checkpoint-{step}" for step in protected])
    assert sorted(int(path.name.split("-")[1]) for path in checkpoints(tmp_path)) == left
    assert {path.name for path in doomed} == {f"checkpoint-{step}" for step in set(steps) - set(left)}
    assert not list(tmp_path.glob(".*"))


def test_rotation_touches_nothing_else(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    for step in (1, 2, 3):
        make_checkpoint(run, step)
    outside = make_checkpoint(other, 1)
    (run / "checkpoint-0").symlink_to(outside)
    (run / "checkpoint-best").mkdir()
    (run / "notes.txt").write_text("mine")
    rotate(run, keep=1, protected=[])
    assert verify(outside) == []
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoint-0",
        "checkpoint-3",
        "checkpoint-best",
        "notes.txt",
    ]
    with pytest.raises(ValueError, match="save_total_limit=0"):
        rotate(run, keep=0, protected=[])


def test_leftovers_are_removed_and_an_interrupted_replacement_is_put_back(tmp_path):
    make_checkpoint(tmp_path, 1)
    make_checkpoint(tmp_path, 2).rename(tmp_path / ".old-checkpoint-2")
    shutil.copytree(tmp_path / "checkpoint-1", tmp_path / ".old-checkpoint-1")
    (tmp_path / ".tmp-checkpoint-3").mkdir()
    (tmp_path / ".tmp-other").mkdir()
    assert [path.name for path in remove_leftovers(tmp_path)] == [".old-checkpoint-1", ".tmp-checkpoint-3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-other", "checkpoint-1", "checkpoint-2"]


# --- crashes and failing disks

OPERATIONS = [(os, "rename"), (os, "replace"), (os, "fsync"), (os, "mkdir"), (os, "rmdir"), (os, "unlink"),
              (os, "open"), (io, "open"), (tree, "save_file")]  # fmt: skip


def count_operations(patch: pytest.MonkeyPatch, failing: int) -> list[int]:
    """Count file operations from now on; the one numbered `failing` raises ENOSPC."""
    count = [0]

    def wrap(original):
        def operation(*args, **kwargs):
            count[0] += 1
            if count[0] == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*args, **kwargs)

        return operation

    for module, name in OPERATIONS:
        patch.setattr(module, name, wrap(vars(module)[name]))
    return count


def test_the_kth_failing_operation_is_a_checkpoint_error(tmp_path, monkeypatch):
    """Replace checkpoint-2 while the k-th file operation fails, for every k."""
    make_checkpoint(tmp_path / "counted", 2)
    with monkeypatch.context() as patch:
        count = count_operations(patch, failing=0)
        make_checkpoint(tmp_path / "counted", 2)
    total = count[0]
    assert total > 20
    for failing in range(1, total + 1):
        run = tmp_path / str(failing)
        make_checkpoint(run, 1)
        make_checkpoint(run, 2)
        with monkeypatch.context() as patch:
            count_operations(patch, failing)
            with pytest.raises(CheckpointError, match="checkpoint-2 was not saved") as caught:
                make_checkpoint(run, 2, value=77.0)
        assert caught.value.errno == errno.ENOSPC
        assert verify(run / "checkpoint-1") == []
        assert verify(run / "checkpoint-2") == []
        assert not list(run.glob(".tmp-*"))
        assert newest_sound(run, on_skip=never) == run / "checkpoint-2"
        assert load_tree(run / "checkpoint-2", "state")["weights"][0].item() in (2.0, 77.0)


CRASH = """
import io, json, os, shutil, signal, sys
from pathlib import Path
import torch
from burnish.runtime import tree
from burnish.runtime.checkpoint import *

torch.set_num_threads(1)
root, torn = Path(sys.argv[1]), sys.argv[2] == "torn"

def save(run, step, value):
    with atomic_directory(run / f"checkpoint-{step}", is_main=True, barrier=lambda: None, manifest={}) as directory:
        save_tree(directory, "state", {"value": value, "weights": torch.full((64,), float(value))})
        (directory / "adapter").mkdir()
        (directory / "adapter" / "config.json").write_text("{}")
    rotate(run, keep=2, protected=[])

synced = set()

def lose_unsynced(run):
    for path in run.rglob("*"):
        if path.is_file() and path.stat().st_ino not in synced:
            os.truncate(path, path.stat().st_size // 2)

def arm(kth, run):
    count = 0
    synced.update(path.stat().st_ino for path in run.rglob("*"))
    def wrap(module, name):
        original = getattr(module, name)
        def operation(*args, **kwargs):
            nonlocal count
            count += 1
            if count == kth:
                if torn:
                    if name == "save_file":
                        original(*args, **kwargs)
                    lose_unsynced(run)
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "fsync":
                synced.add(os.fstat(args[0]).st_ino)
            result = original(*args, **kwargs)
            if name == "save_file":
                synced.discard(os.stat(args[1]).st_ino)
            if module is io and "w" in args[1]:
                synced.discard(os.fstat(result.fileno()).st_ino)
            return result
        setattr(module, name, operation)
    for module, name in [(os, "rename"), (os, "replace"), (os, "fsync"), (os, "mkdir"), (os, "rmdir"),
                         (os, "unlink"), (os, "open"), (io, "open"), (tree, "save_file")]:
        wrap(module, name)

def never(path, problems):
    raise AssertionError(f"{path} was left damaged: {problems}")

killed = {}
for scenario, old, step in (("new", (1, 2), 3), ("replaced", (2,), 2)):
    for kth in range(1, 1000):
        run = root / scenario
        shutil.rmtree(run, ignore_errors=True)
        for number in old:
            save(run, number, number)
        child = os.fork()
        if child == 0:
            arm(kth, run)
            save(run, step, 77)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
        assert not any(verify(path) for path in checkpoints(run)), (scenario, kth)
        found = newest_sound(run, on_skip=never)
        state = load_tree(found, "state")
        assert state["value"] in (old[-1], 77), (scenario, kth, state)
        assert torch.equal(state["weights"], torch.full((64,), float(state["value"])))
        remove_leftovers(run)
        assert newest_sound(run, on_skip=never) == found
        save(run, step, 88)
        assert load_tree(newest_sound(run, on_skip=never), "state")["value"] == 88
        assert not list(run.glob(".*")), list(run.iterdir())
    killed[scenario] = kth - 1
print(json.dumps(killed))
"""

LIMIT = """
import resource, signal, sys
from pathlib import Path
import torch
from burnish.runtime.checkpoint import *

run = Path(sys.argv[1])
def save(step, size):
    with atomic_directory(run / f"checkpoint-{step}", is_main=True, barrier=lambda: None, manifest={}) as directory:
        save_tree(directory, "state", torch.zeros(size))
save(1, 10)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
try:
    save(2, 100000)
except CheckpointError as error:
    print(error.errno, error)
"""


def run_script(script: str, *arguments: str) -> str:
    source = Path(checkpoint.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["killed", "torn"])
def test_kill_at_every_file_operation_leaves_a_sound_checkpoint(tmp_path, mode):
    """SIGKILL before the k-th operation; torn: and files that were not synced yet lose their second half."""
    killed = json.loads(run_script(CRASH, str(tmp_path), mode))
    assert min(killed.values()) > 15, killed


def test_a_file_the_system_refuses_to_write_is_a_checkpoint_error(tmp_path):
    printed = run_script(LIMIT, str(tmp_path))
    assert printed.startswith(f"{errno.EFBIG} The checkpoint {tmp_path / 'checkpoint-2'} was not saved")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert newest_sound(tmp_path, on_skip=never) == tmp_path / "checkpoint-1"
