"""Compiling DeepSpeed's optimizer at first use, in a way that a killed process does not spoil for the next ones.

torch lets one process compile an extension while the others wait, by a file named ``lock`` beside the
build. A process that is killed at that moment leaves the file, and from then on every worker on the
machine waits for ever. The kernel's own file locks end with the process that holds them.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from torch.utils import cpp_extension


class HeldLock:
    """torch's ``FileBaton`` (torch.utils.file_baton) on a lock that the kernel gives back."""

    def __init__(self, lock_file_path: str, wait_seconds: float = 0.1, warn_after_seconds: float | None = None) -> None:
        """The waiting arguments are ``FileBaton``'s; the kernel wakes us, so they have no use here."""
        self.path = Path(lock_file_path + ".held")  # never "lock" itself: that one may be a dead process's
        self._descriptor: int | None = None

    def try_acquire(self) -> bool:
        return self._take(fcntl.LOCK_EX | fcntl.LOCK_NB)

    def wait(self) -> None:
        """Return when the process that compiles has finished or is gone."""
        self._take(fcntl.LOCK_EX)
        self.release()

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _take(self, operation: int) -> bool:
        descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True


def outlive_killed_compilers() -> None:
    """Have torch use the lock above in this process."""
    setattr(cpp_extension, "FileBaton", HeldLock)  # noqa: B010 (a plain assignment is a type error)
