"""Segments that outlive their processes are found by who has them mapped, and by nothing else."""

from __future__ import annotations

import subprocess
import sys

import psutil

from openrlhf_medical import shared_memory

HOLDS = """
from multiprocessing import resource_tracker, shared_memory
segment = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(segment._name, "shared_memory")
print(segment.name, flush=True)
input()
"""


def test_segments_of_a_process_are_found_and_removed() -> None:
    holders = [subprocess.Popen([sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
               for _ in range(2)]  # fmt: skip
    mine, others = (shared_memory.FOLDER / holder.stdout.readline().strip() for holder in holders)
    try:
        found = shared_memory.segments_of([psutil.Process(holders[0].pid)])
        assert found == {mine}
        holders[0].kill()
        holders[0].wait()
        assert mine.exists() and shared_memory.segments_of([]) == set()
        shared_memory.remove(found)
        shared_memory.remove(found)
        assert not mine.exists() and others.exists()
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
        shared_memory.remove([mine, others])


def test_a_process_that_is_gone_has_none() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    process = psutil.Process(gone.pid)
    gone.wait()
    assert shared_memory.segments_of([process]) == set()


def test_semaphores_go_by_the_process_id() -> None:
    of = psutil.Process()
    file = shared_memory.FOLDER / f"sem.loky-{of.pid}-test"
    file.touch()
    try:
        assert shared_memory.segments_of([of]) == {file}
    finally:
        file.unlink()
