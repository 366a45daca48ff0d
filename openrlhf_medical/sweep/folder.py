"""What a sweep leaves behind, and what is known of each run: files that a killed sweep finds again.

``<dir>/<name>/``
  ``<run>/``           the run's own folder
  ``jobs/<run>.yaml``  its resolved configuration
  ``jobs/<run>.log``   what it said
  ``jobs/<run>.json``  its state, the job that it is, how often it was tried
  ``jobs/token``       part of the names of its jobs
  ``jobs/<run>.exit.json``  how it ended, written by ``sweep.job`` beside it
  ``data/``            the shared data set; ``judge.log``, ``judge.json`` the shared judge
  ``sweep.json``, ``summary.csv``, ``summary.html``
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from openrlhf_medical.errors import UserError

_LOG_TAIL_BYTES = 4000
_LOCK_TRIES, _LOCK_PAUSE_S = 5, 0.1


class State(StrEnum):
    PENDING = "pending"
    INVALID = "invalid"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one run. Times are seconds since the epoch; ``attempt`` counts starts."""

    state: State = State.PENDING
    submitter: str | None = None
    job_id: str | None = None
    attempt: int = 0
    started: float | None = None
    ended: float | None = None
    reason: str | None = None


class SweepFolder:
    """Paths and records of a sweep. Every file is written beside its place and moved there."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.jobs = self.path / "jobs"

    def run_folder(self, run: str) -> Path:
        return self.path / run

    def config_file(self, run: str) -> Path:
        return self.jobs / f"{run}.yaml"

    def log_file(self, run: str) -> Path:
        return self.jobs / f"{run}.log"

    def exit_file(self, run: str) -> Path:
        return self.jobs / f"{run}.exit.json"

    def token(self) -> str:
        """Six letters that tell this sweep's jobs from those of another folder with a sweep of the same name."""
        file = self.jobs / "token"
        if not file.exists():
            write_text(file, secrets.token_hex(3) + "\n")
        return file.read_text(encoding="utf-8").strip()

    def record(self, run: str) -> Record:
        found = read_json(self.jobs / f"{run}.json")
        return Record(**(found | {"state": State(found["state"])})) if found else Record()

    def save(self, run: str, record: Record) -> None:
        write_text(self.jobs / f"{run}.json", json.dumps(asdict(record), indent=2) + "\n")

    def status(self, run: str) -> dict[str, Any]:
        """``status.json`` of the run's own folder, empty where it wrote none."""
        return read_json(self.run_folder(run) / "status.json") or {}

    def last_words(self, run: str) -> str:
        """The last line of its log that says anything."""
        try:
            with self.log_file(run).open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL_BYTES))
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One sweep at a time works on a folder; the kernel ends the lock with the process that holds it.

        Raises UserError that names the other one.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "sweep.lock").open("a+", encoding="utf-8") as file:
            for left in reversed(range(_LOCK_TRIES)):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if not left:
                        holder = self.holder() or {}
                        raise UserError(
                            f"{self.path} is being worked on by another sweep (process {holder.get('pid', '?')} on "
                            f"{holder.get('host', '?')}): wait for it, or end it with openrlhf-medical sweep stop "
                            f"{self.path}"
                        ) from None
                    time.sleep(_LOCK_PAUSE_S)  # ``holder`` holds it for an instant
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
            file.flush()
            yield

    def holder(self) -> dict[str, Any] | None:
        """{"pid", "host"} of the sweep that works on this folder now, or None."""
        try:
            with (self.path / "sweep.lock").open("r", encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    return dict(json.loads(file.read() or "{}"))
                return None
        except FileNotFoundError:
            return None


def read_json(path: Path) -> dict[str, Any] | None:
    """None where the file is not there, or not whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
