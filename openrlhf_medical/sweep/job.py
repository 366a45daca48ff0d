"""Beside one run: starts it, tells it to stop, and writes down how it ended.

``python -m openrlhf_medical.sweep.job --exit-file FILE [--parent PID] [--grace S] -- WORDS``

The run is a session of its own. When this process is told to end, or its parent (the sweep) is gone, the run gets
SIGTERM, time to save its state, and then SIGKILL for all that is left of it. A sweep that was killed therefore leaves
nothing behind, and one on another machine learns how a job ended from the shared file system.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_POLL_S = 0.2
NOT_STARTED = 127


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--exit-file", type=Path, required=True)
    parser.add_argument("--parent", type=int)
    parser.add_argument("--grace", type=float, default=120.0)
    parser.add_argument("words", nargs="+")
    given = parser.parse_args(arguments)
    told: list[int] = []
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda number, frame: told.append(number))
    try:
        child = subprocess.Popen(given.words, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{given.words[0]} cannot be started: {error.strerror}", file=sys.stderr)
        _write(given.exit_file, NOT_STARTED, stopped=False)
        return NOT_STARTED
    stopped = _wait(child, told, given.parent, given.grace)
    code = child.returncode if child.returncode >= 0 else 128 - child.returncode  # as shells have it
    _write(given.exit_file, code, stopped=stopped and code != 0)
    return code


def _wait(child: subprocess.Popen[Any], told: list[int], parent: int | None, grace_s: float) -> bool:
    """Until it has ended. Returns whether it was told to."""
    deadline: float | None = None
    while True:
        try:
            child.wait(_POLL_S)
            break
        except subprocess.TimeoutExpired:
            pass
        if deadline is None and (told or (parent is not None and os.getppid() != parent)):
            deadline = time.monotonic() + grace_s
            child.send_signal(signal.SIGTERM)  # to the run alone: its workers are still needed to save its state
        if deadline is not None and (time.monotonic() > deadline or len(told) > 1):
            _kill_group(child.pid)
    _kill_group(child.pid)  # what a dying run may have left in its session
    return deadline is not None


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _write(path: Path, code: int, *, stopped: bool) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({"code": code, "stopped": stopped, "time": time.time()}) + "\n", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
