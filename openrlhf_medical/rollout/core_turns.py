"""Engines that compute on the same cores do so in turn: usually a step of one, then a step of another.

Two that compute at once wait for each other's threads at every layer, and take twice as long (SmolLM2-135M, 2 cores: a
step's games 10.4 s for 4.4 s of work). On GPUs every engine has its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path(tempfile.gettempdir())
WAIT_S = 60.0
"""Longest wait for one turn; turns only save time, and who holds one may have been stopped."""
POLL_S = 0.0005

logger = logging.getLogger(__name__)


def lock_path() -> Path:
    """One for each user and set of cores of this machine. The kernel lets go of it for a process that dies."""
    cores = hashlib.blake2b(repr(sorted(os.sched_getaffinity(0))).encode(), digest_size=4).hexdigest()
    return FOLDER / f"openrlhf_medical-engine-step-{os.getuid()}-{cores}"


def take_turns(worker: Any) -> None:
    """``worker``: vLLM's, the only one of its engine; called once. From now on a step of it, forward pass and sampling,
    waits until no other engine's is under way. After ``WAIT_S`` in vain, or where the lock is not ours to take, it
    computes when it likes."""
    lock = _open(lock_path())
    if lock is None:
        logger.warning("engines take no turns: %s cannot be opened, or belongs to somebody else", lock_path())
        return
    forward, sample = worker.execute_model, worker.sample_tokens
    takes_turns = True

    def execute_model(*args: Any, **kwargs: Any) -> Any:
        nonlocal takes_turns
        if takes_turns and not _locked(lock):
            takes_turns = False
            logger.warning("engines take no turns any more: who holds %s did not let go for %g s", lock_path(), WAIT_S)
        output = "failed"
        try:
            output = forward(*args, **kwargs)
            return output
        finally:
            if output is not None:  # None: sample_tokens follows, and is a part of the same step
                fcntl.flock(lock, fcntl.LOCK_UN)

    def sample_tokens(*args: Any, **kwargs: Any) -> Any:
        try:
            return sample(*args, **kwargs)
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)

    worker.execute_model, worker.sample_tokens = execute_model, sample_tokens


def _open(path: Path) -> int | None:
    """Of everybody's folder for temporary files: what another user put there under this name is left alone."""
    with contextlib.suppress(OSError):
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if os.fstat(lock).st_uid == os.getuid():
            return lock
        os.close(lock)
    return None


def _locked(lock: int) -> bool:
    """Whether it is ours, within ``WAIT_S``."""
    deadline = time.monotonic() + WAIT_S
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
