"""Engines of one machine compute in turn where they share its cores: a step of one, then a step of another.

Two that compute at once wait for each other's threads at every layer, and take twice as long (SmolLM2-135M, 2 cores: a
step's games 10.4 s for 4.4 s of work). On GPUs every engine has its own.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import Any

LOCK = Path(tempfile.gettempdir()) / f"openrlhf_medical-engine-step-{os.getuid()}"
"""All engines of a user on this machine share it. The kernel lets go of it for a process that dies."""


def take_turns(worker: Any) -> None:
    """``worker``: vLLM's, the only one of its engine. From now on a step of it, forward pass and sampling, waits until
    no other engine's is under way."""
    lock = LOCK.open("w")
    forward, sample = worker.execute_model, worker.sample_tokens

    def execute_model(*args: Any, **kwargs: Any) -> Any:
        fcntl.flock(lock, fcntl.LOCK_EX)
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
