"""Whoever computes on a machine's cores leaves its share to the others when it is done.

Policies learn side by side, but one has fewer samples than the other: without this half of the cores of a machine with
no GPU would wait for the longer one. Who computes is told by a file named by the process, in a folder of this machine's
that all runs of a user share; what a killed process leaves there does not count.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

FOLDER = Path(tempfile.gettempdir()) / f"openrlhf_medical-computing-{os.getuid()}"


class SharedCores:
    """``cores`` None: the number of threads stays as it is, as on a GPU, or where sums must have the same bits twice.

    ``computing`` may be entered again inside itself."""

    def __init__(self, cores: int | None, folder: Path = FOLDER) -> None:
        self._cores, self._folder, self._depth = cores, folder, 0

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """This process computes inside; others that do take fewer threads from their next ``take`` on."""
        if self._cores is None:
            yield
            return
        own = self._folder / str(os.getpid())
        self._depth += 1
        if self._depth == 1:
            self._folder.mkdir(exist_ok=True)
            own.touch()
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                own.unlink(missing_ok=True)

    def take(self) -> None:
        """Set torch's threads to this process's share of the cores now. Cheap: call it for every batch."""
        if self._cores is not None:
            torch.set_num_threads(self.share())

    def share(self) -> int:
        assert self._cores is not None
        pids = [int(entry.name) for entry in self._folder.iterdir()] if self._folder.exists() else []
        others = sum(pid != os.getpid() and psutil.pid_exists(pid) for pid in pids)
        return max(1, self._cores // (1 + others))


class OnSharedCores:
    """For workers of upstream's, before their own class: forward passes on whatever cores are free."""

    _cores = SharedCores(None)
    """Its own once it knows its machine."""

    def execute_batch(self, *args: Any, **kwargs: Any) -> Any:
        with self._cores.computing():
            return super().execute_batch(*args, **kwargs)  # type: ignore[misc]  # upstream's BaseModelActor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._cores.take()
        return super().forward(*args, **kwargs)  # type: ignore[misc]


def on_shared_cores(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of such a worker that computes all the time; ``take`` is its own business."""

    @functools.wraps(method)
    def computing(worker: Any, *args: Any, **kwargs: Any) -> Any:
        with worker._cores.computing():
            return method(worker, *args, **kwargs)

    return computing
