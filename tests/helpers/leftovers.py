"""What a test leaves behind: processes of Ray, vLLM, judges and Slurm, and segments of shared memory.

A process counts as ours when it carries this session's mark in its environment, which every child inherits and no
orphan loses. So what others run on this machine never counts, and a daemon that has left our process tree does.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "OPENRLHF_MEDICAL_TEST_SESSION"
GRACE_S = 20.0
"""For what is just ending: a judge's resource tracker, a worker whose Ray has gone."""

_KINDS = re.compile(
    r"ray::|raylet|gcs_server|/ray/|EngineCore|VLLM::|vllm|serve-judge|uvicorn|multiprocessing.spawn|"
    r"slurmctld|slurmd|slurmstepd|munged"
)
_SHM = Path("/dev/shm")

LASTING: set[int] = set()
"""Processes of fixtures that live as long as the session; their descendants may come and go."""


@dataclass(frozen=True)
class Scene:
    """What was there before, of anybody's."""

    pids: frozenset[int]
    segments: frozenset[str]


def mark_session() -> None:
    """Called once in each process that runs tests (pytest-xdist has several), before anything is started."""
    os.environ[MARK] = uuid.uuid4().hex


def scene() -> Scene:
    return Scene(frozenset(psutil.pids()), _segments())


def started_since(before: Scene) -> list[psutil.Process]:
    """Our running processes that were not there ``before`` and belong to nothing that was."""
    found = []
    for pid in set(psutil.pids()) - before.pids - {os.getpid()}:
        try:
            process = psutil.Process(pid)
            if _ours(process) and _KINDS.search(" ".join(process.cmdline())) and not _of_older(process, before):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def left_behind(before: Scene, grace_s: float = GRACE_S, *, shared_memory: bool = False) -> list[str]:
    """What is still there of ``started_since`` after ``grace_s``. It is killed, so that the next test is not blamed."""
    deadline = time.monotonic() + grace_s
    while (left := started_since(before)) and time.monotonic() < deadline:
        time.sleep(0.1)
    described = []
    for process in left:
        try:
            described.append(f"{process.pid}: {' '.join(process.cmdline())[:200]}")
            process.kill()
        except psutil.NoSuchProcess:
            continue
    if shared_memory:
        while (segments := _unused_segments(before)) and time.monotonic() < deadline:
            time.sleep(0.5)
        described += [str(_SHM / name) for name in segments]
    return described


def _ours(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == os.environ[MARK]
    except psutil.AccessDenied:  # another user's; so is init, whose children orphans become
        return False


def _of_older(process: psutil.Process, before: Scene) -> bool:
    """Whether a fixture that was there already started it: a worker of a Ray that several tests share."""
    older = (before.pids | LASTING) - {os.getpid()}
    for parent in [process, *process.parents()]:
        if parent.pid == os.getpid():
            return False
        if parent.pid in older and _ours(parent):
            return True
    return False


def _segments() -> frozenset[str]:
    return frozenset(path.name for path in _SHM.iterdir()) if _SHM.exists() else frozenset()


def _unused_segments(before: Scene) -> set[str]:
    """New segments of this user's that no process on the machine has mapped or open: whoever made them is gone."""
    new = _segments() - before.segments
    mine = {name for name in new if (_SHM / name).exists() and (_SHM / name).stat().st_uid == os.getuid()}
    if mine:
        for process in psutil.process_iter():
            try:
                used = {Path(each.path.removesuffix(" (deleted)")).name for each in process.memory_maps()}
                mine -= used | {Path(each.path).name for each in process.open_files()}
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
    return mine
