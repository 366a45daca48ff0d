"""What benchmarks read of processes: memory and CPU seconds of a whole family, children that ended included."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # as `python benchmarks/start.py` has it

import memory
import start

BUSY = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True); input()"


def child(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_memory_counts_children_and_names_them() -> None:
    before = sum(size for _, size in memory.usage(os.getpid()))
    with child("held = bytearray(b'x') * (64 << 20); print(flush=True); input()") as process:
        process.stdout.readline()
        found = memory.usage(os.getpid())
        process.communicate(b"\n")
    assert sum(size for _, size in found) - before > 60 << 20
    assert found == sorted(found, key=lambda each: -each[1])


def test_a_title_is_the_process_s_own_or_its_program() -> None:
    with child("print(flush=True); input()") as process:
        process.stdout.readline()
        assert memory.title(process.pid)
        process.communicate(b"\n")
    assert memory.title(2**22 + 1) == "?"  # it ended meanwhile


def test_cpu_seconds_of_a_child_that_ended_still_count() -> None:
    cpu = start.CpuSeconds(os.getpid())
    before = cpu.total()
    with child(BUSY) as process:
        process.stdout.readline()
        while_it_lives = cpu.total()
        process.communicate(b"\n")
    time.sleep(0.05)
    assert while_it_lives - before >= 0.45
    assert cpu.total() - before >= 0.45
