"""Segments in /dev/shm that outlive their processes: vLLM's message queues, 160 to 240 MiB each.

Python's resource tracker would remove them, but Ray kills it together with the engine's actor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import psutil

FOLDER = Path("/dev/shm")
PREFIX = "psm_"
"""Of Python's ``shared_memory``. Ray's own object store has other names."""


def segments_of(processes: Iterable[psutil.Process]) -> set[Path]:
    """Segments that any of the processes has mapped, as far as they still run and are ours to read, and the
    semaphores that loky (of joblib, which importing vLLM imports) made for them: those carry the process id."""
    found: set[Path] = set()
    for process in processes:
        found |= set(FOLDER.glob(f"sem.loky-{process.pid}-*"))
        with contextlib.suppress(psutil.Error, OSError):
            mapped = {Path(each.path) for each in process.memory_maps()}
            found |= {path for path in mapped if path.parent == FOLDER and path.name.startswith(PREFIX)}
    return {path for path in found if path.exists()}


def remove(segments: Iterable[Path]) -> None:
    for segment in segments:
        segment.unlink(missing_ok=True)
