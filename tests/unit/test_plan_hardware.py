"""What a machine says of itself, and that nothing of ours waits for a place without a deadline."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openrlhf_medical import devices
from openrlhf_medical.plan import hardware
from openrlhf_medical.plan.hardware import Gpu, host_memory, parse_nvidia_smi, this_machine, visible
from openrlhf_medical.plan.memory import GIB
from openrlhf_medical.plan.placement import Free, pack

PACKAGE = Path(hardware.__file__).parents[1]
SMI = "0, GPU-aaa, 81559, 512\n1, GPU-bbb, 81559, 0\n2, GPU-abc, [N/A], [N/A]\n\n"


def test_nvidia_smi_is_read() -> None:
    gpus = parse_nvidia_smi(SMI)
    assert [(index, uuid) for index, uuid, _ in gpus] == [("0", "GPU-aaa"), ("1", "GPU-bbb"), ("2", "GPU-abc")]
    assert [gpu for _, _, gpu in gpus] == [Gpu(81559 << 20, 512 << 20), Gpu(81559 << 20, 0), Gpu(None)]


@pytest.mark.parametrize(
    ("environment", "indices"),
    [(None, [0, 1, 2]), ("", []), ("1,0", [1, 0]), ("GPU-b", [1]), ("0,9,1", [0]), ("NoDevFiles", [])],
)
def test_cuda_visible_devices_decides(environment: str | None, indices: list[int]) -> None:
    gpus = parse_nvidia_smi(SMI)
    assert visible(gpus, environment) == tuple(gpus[i][2] for i in indices)


def test_without_a_gpu_places_are_logical(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_gpu", lambda: False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    found = this_machine(6)
    assert not found.has_gpus and (found.gpus, found.cpus) == (6, 6)
    assert this_machine(1).cpus == 2


def test_gpus_that_nvidia_smi_does_not_tell_of_are_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    monkeypatch.setattr(hardware, "_NVIDIA_SMI", ("no-such-program",))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = this_machine(4)
    assert found.gpus == 4 and "does not tell" in found.title
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert this_machine(4).gpus == 0


def test_host_memory_is_the_containers_where_that_is_less(tmp_path: Path) -> None:
    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text("MemTotal:       16777216 kB\nMemAvailable: 1 kB\n")
    assert host_memory(meminfo, limit) == 16 * GIB
    limit.write_text("max\n")
    assert host_memory(meminfo, limit) == 16 * GIB
    limit.write_text(f"{4 * GIB}\n")
    assert host_memory(meminfo, limit) == 4 * GIB
    assert host_memory(tmp_path / "none", limit) is None


def gpus(*counts: float) -> list[Free]:
    return [Free(int(count), float("inf")) for count in counts]


@pytest.mark.parametrize(
    ("free", "groups", "places"),
    [
        (gpus(8, 8, 8), [16, 8], [[8, 8, 0], [0, 0, 8]]),
        (gpus(8, 8), [4, 4], [[4, 0], [0, 4]]),  # the emptiest machine comes first
        (gpus(4, 8), [6], [[0, 6]]),
        (gpus(4, 8), [10], [[2, 8]]),
        (gpus(8), [9, 8], [None, [8]]),
        ([Free(8, 2), Free(4, 32)], [3], [[0, 3]]),
        ([Free(8, 1), Free(0, 32)], [2], [None]),
    ],
)
def test_packing(free: list[Free], groups: list[int], places: list[Any]) -> None:
    assert [pack(bundles, free) for bundles in groups] == places


def calls() -> Iterator[tuple[str, str]]:
    """(place in the source, what is called) of every call in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for scope in ast.walk(ast.parse(path.read_text())):
            if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                for node in ast.walk(scope):
                    if isinstance(node, ast.Call):
                        yield f"{path.relative_to(PACKAGE)}:{scope.name}", ast.unparse(node.func)


def test_places_are_asked_for_in_one_function_and_awaited_nowhere_else() -> None:
    """``reserve`` gives up after run.placement_timeout_s; groups of workers are made under a deadline."""
    found = list(calls())
    assert {where for where, what in found if what.split(".")[-1] == "placement_group"} == {"cluster.py:reserve"}
    assert not [where for where, what in found if what.endswith(".ready")]
    assert {where.split(":")[1] for where, what in found if what == "RayActorGroup"} == {"_workers"}
    assert ("assembly.py:_workers", "within") in found
