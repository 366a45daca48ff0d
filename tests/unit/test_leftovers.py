"""The check that every test ends with: it sees what is ours, orphans too, and nothing of anybody else."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from leftovers import LASTING, MARK, left_behind, scene, started_since

SLEEP = "import time; time.sleep(60)"


def start(*words: str, code: str = SLEEP, **environment: str) -> subprocess.Popen:
    """A process that looks like a judge."""
    return subprocess.Popen([sys.executable, "-c", code, "serve-judge", *words], env=os.environ | environment,
                            stdout=subprocess.PIPE, text=True)  # fmt: skip


@pytest.fixture
def before():
    return scene()


def test_what_is_left_is_named_and_ended(before):
    process = start("--port", "1")
    [found] = left_behind(before, grace_s=0)
    assert found.startswith(f"{process.pid}: ") and "serve-judge --port 1" in found
    assert process.wait(10) == -9 and not left_behind(before)


def test_an_orphan_of_its_own_session_is_found(before):
    nested = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}, 'raylet'], " \
             "start_new_session=True, stdout=subprocess.DEVNULL).pid)"  # fmt: skip
    parent = start(code=nested)
    orphan = int(parent.communicate(timeout=30)[0])
    assert psutil.Process(orphan).ppid() != os.getpid()
    assert [process.pid for process in started_since(before)] == [orphan]
    assert len(left_behind(before, grace_s=0)) == 1


def test_others_and_what_was_there_do_not_count(before):
    other, ours = start(**{MARK: "another session"}), start()
    try:
        assert [process.pid for process in started_since(before)] == [ours.pid]
        assert not started_since(scene())
        LASTING.add(ours.pid)
        assert not started_since(before)
    finally:
        LASTING.discard(ours.pid)
        for process in (other, ours):
            process.kill()
            process.wait()


def test_what_is_just_ending_has_time(before):
    process = start(code="import time; time.sleep(1)")
    began = time.monotonic()
    assert not left_behind(before, grace_s=30) and time.monotonic() - began < 25
    process.wait()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no shared memory as files here")
def test_a_segment_that_nobody_uses_is_found(before):
    segment = Path("/dev/shm") / f"leftovers-{os.getpid()}"
    segment.write_bytes(b"x" * 4096)
    try:
        with segment.open("r+b") as file, mmap.mmap(file.fileno(), 0):
            assert str(segment) not in left_behind(before, grace_s=0, shared_memory=True)
        assert str(segment) in left_behind(before, grace_s=0, shared_memory=True)
    finally:
        segment.unlink()
