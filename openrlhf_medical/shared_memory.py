"""Segments in /dev/shm that outlive their processes: vLLM's message queues, 160 to 240 MiB each.

Python's resource tracker would remove them, but Ray kills it together with the engine's actor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import psutil

FOLDER = Path("/dev/shm")
NAMES = ("psm_", "sem.")
"""Of Python's ``shared_memory`` and of semaphores; Ray's own object store has other names."""


def mapped_by(processes: Iterable[psutil.Process]) -> set[Path]:
    """Segments of these names that any of the processes has mapped, as far as they still run and are ours to read."""
    found: set[Path] = set()
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            found |= {path for each in process.memory_maps() if (path := Path(each.path)).parent == FOLDER}
    return {path for path in found if path.name.startswith(NAMES) and path.exists()}


def remove(segments: Iterable[Path]) -> None:
    for segment in segments:
        segment.unlink(missing_ok=True)
