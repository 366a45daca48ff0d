"""Where jobs go: what a sweep asks of such a place, and this machine as one. Ray and Slurm are in ``remote``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from openrlhf_medical.config import RunConfig


class JobState(StrEnum):
    """``GONE``: the place knows it no more, or does not say how it ended."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a place says of a job. ``code``: its exit code, where the place knows it."""

    state: JobState
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One try of one run.

    ``name`` is unique to sweep, run and attempt. ``words`` is what to call; where that is our own train, ``config``
    is what its file holds. Paths are absolute.
    """

    name: str
    words: Sequence[str]
    config: RunConfig | None
    config_file: Path
    log_file: Path
    exit_file: Path
    grace_s: float

    def watched(self, *options: str) -> list[str]:
        """The words with ``sweep.job`` beside them."""
        program = [sys.executable, "-m", "openrlhf_medical.sweep.job"]
        return [*program, "--exit-file", str(self.exit_file), "--grace", str(self.grace_s), *options, "--",
                *self.words]  # fmt: skip


class Submitter(Protocol):
    """A place that runs jobs."""

    kind: str
    outlives: bool
    """Whether jobs go on when the sweep ends."""

    def submit(self, job: Job) -> str:
        """Start it and return its id. A job of the same name that is still there is taken, not doubled.

        Raises RunError where the place refuses it.
        """

    def poll(self, job_ids: Sequence[str]) -> Mapping[str, Seen]:
        """All of them. Raises RunError where the place does not answer."""

    def stop(self, job_id: str) -> None:
        """Ask it to save its state and end; one that has ended is no error."""


class LocalSubmitter:
    """Processes of this machine, which end with the sweep. An id is ``pid:start time``, so that no later process
    with the same pid is taken for it."""

    kind = "local"
    outlives = False

    def __init__(self) -> None:
        self._own: dict[str, subprocess.Popen[bytes]] = {}

    def submit(self, job: Job) -> str:
        job.log_file.parent.mkdir(parents=True, exist_ok=True)
        with job.log_file.open("ab") as log:
            process = subprocess.Popen(
                job.watched("--parent", str(os.getpid())), stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        job_id = f"{process.pid}:{_start_of(process.pid)}"
        self._own[job_id] = process
        return job_id

    def poll(self, job_ids: Sequence[str]) -> Mapping[str, Seen]:
        return {job_id: self._see(job_id) for job_id in job_ids}

    def _see(self, job_id: str) -> Seen:
        if (process := self._own.get(job_id)) is not None:
            code = process.poll()
            return Seen(JobState.RUNNING) if code is None else Seen(JobState.ENDED, code)
        pid, _, start = job_id.partition(":")
        return Seen(JobState.RUNNING if _start_of(int(pid)) == start else JobState.GONE)

    def stop(self, job_id: str) -> None:
        if self._see(job_id).state is JobState.RUNNING:
            os.kill(int(job_id.partition(":")[0]), signal.SIGTERM)


def _start_of(pid: int) -> str:
    """When a process began, in the kernel's ticks; "" for one that is not there or has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
