"""CPU settings: measured without side effects, applied as reported, replayed from a checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from burnish.runtime import cpu
from burnish.runtime.cpu import CpuSettings, apply, probe


@pytest.fixture
def untouched():
    """Puts threads and precision back."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


def test_probe_leaves_everything_as_it_was(untouched):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    settings = probe()
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.equal(torch.get_rng_state(), state)
    assert settings.num_threads == torch.get_num_threads()
    assert settings.matmul_precision in ("highest", "medium")


def test_the_precision_is_measured_once_a_process(untouched):
    """Two runs of one process cannot come to two answers."""
    settings = probe()
    measured = cpu._medium_pays_with.cache_info().misses
    assert probe() == settings
    assert cpu._medium_pays_with.cache_info().misses == measured


def test_the_users_own_precision_is_kept(untouched):
    torch.set_float32_matmul_precision("high")
    assert probe().matmul_precision == "high"


def make_multiply(*, seconds: dict[str, float], rounded: bool):
    """A processor with given times, whose medium precision computes in float32 or in bfloat16."""

    def multiply(left, right):
        precision = torch.get_float32_matmul_precision()
        time.sleep(seconds[precision])
        if rounded and precision == "medium":
            return (left.bfloat16() @ right.bfloat16()).float()
        return (left.double() @ right.double()).float()

    return multiply


@pytest.mark.parametrize(
    ("seconds", "rounded", "pays"),
    [
        ({"highest": 0.1, "medium": 0.0}, False, True),
        ({"highest": 0.1, "medium": 0.0}, True, False),
        ({"highest": 0.1, "medium": 0.1}, False, False),
        ({"highest": 0.0, "medium": 0.1}, False, False),
    ],
)
def test_medium_needs_speed_and_accuracy(untouched, monkeypatch, seconds, rounded, pays):
    monkeypatch.setattr(cpu, "_REPEATS", 3)
    monkeypatch.setattr(cpu, "_SHAPE", (32, 64, 32))
    assert cpu._medium_pays(make_multiply(seconds=seconds, rounded=rounded)) is pays
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_apply_returns_what_is_in_force(untouched, precision):
    wanted = CpuSettings(num_threads=1, matmul_precision=precision, malloc_tuned=False)
    assert apply(wanted) == wanted
    assert torch.get_num_threads() == 1
    assert torch.get_float32_matmul_precision() == precision


def test_settings_come_back_from_a_checkpoint():
    settings = CpuSettings(num_threads=3, matmul_precision="medium", malloc_tuned=True)
    assert CpuSettings.from_dict(settings.as_dict()) == settings
    lines = settings.lines()
    assert len(lines) == 3
    assert "3 CPU threads" in lines[0]
    assert "'medium'" in lines[1]
    assert "malloc thresholds raised" in lines[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_threads": 0}, "num_threads=0; allowed: an integer of 1 or more"),
        ({"num_threads": True}, "num_threads=True"),
        ({"matmul_precision": "low"}, "matmul_precision='low'; allowed: highest, high, medium"),
        ({"malloc_tuned": 1}, "malloc_tuned=1; allowed: True or False"),
        ({"other": 1}, "they need exactly"),
    ],
)
def test_a_wrong_saved_setting_is_refused(change, message):
    good = CpuSettings(num_threads=1, matmul_precision="highest", malloc_tuned=False).as_dict()
    with pytest.raises(ValueError, match=message):
        CpuSettings.from_dict({**good, **change})


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_malloc_set_by_the_user_is_left_alone(untouched, monkeypatch, name):
    monkeypatch.setenv(name, "131072")
    assert probe().malloc_tuned is False
    tuned = CpuSettings(num_threads=torch.get_num_threads(), matmul_precision="highest", malloc_tuned=True)
    assert apply(tuned).malloc_tuned is False


MEASURED = """
import ctypes, json, resource, torch
from pathlib import Path
from burnish.runtime.cpu import CpuSettings, apply

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(12 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
malloc.argtypes, malloc.restype, free.argtypes, free.restype = [ctypes.c_size_t], ctypes.c_void_p, [ctypes.c_void_p], None

def pages():
    return int(Path("/proc/self/statm").read_text().split()[0])

before = faults()
applied = apply(CpuSettings(num_threads=1, matmul_precision="highest", malloc_tuned=True))
faults()
found = {"tuned": applied.malloc_tuned, "before": before, "after": faults()}
empty = pages()
blocks = [malloc(900 << 20) for _ in range(3)]
for block in blocks:
    free(block)
print(json.dumps({**found, "kept": pages() - empty}))
"""


@pytest.fixture(scope="module")
def measured() -> dict[str, int]:
    """What a process of its own found, since an allocator is not put back."""
    if not sys.platform.startswith("linux") or not cpu._may_tune_malloc():
        pytest.skip("needs glibc's malloc")
    environment = {**os.environ, "PYTHONPATH": str(Path(cpu.__file__).parents[2])}
    command = [sys.executable, "-c", MEASURED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=True)
    return json.loads(done.stdout)


def test_tuned_malloc_stops_page_faults(measured):
    """Twenty tensors of 48 MB: each is mapped anew before, none after."""
    assert measured["tuned"]
    assert measured["after"] < measured["before"] / 10


def test_tuned_malloc_keeps_any_amount(measured):
    """Three blocks of 900 MB, as much as gradients and activations of policy and critic: nothing is given back."""
    assert measured["kept"] > (2 << 30) // os.sysconf("SC_PAGE_SIZE")


def test_bfloat16_speedup_is_a_ratio_and_changes_no_setting():
    before = torch.get_float32_matmul_precision()
    assert 0.01 < cpu.bfloat16_speedup() < 100
    assert torch.get_float32_matmul_precision() == before
