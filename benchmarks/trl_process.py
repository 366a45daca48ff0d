"""TRL's environment, and its process: told by a line to take a step, it answers with a line.

python = interpreter(None)                 # .venv-trl, made from trl.txt where it is missing or other than that
with started([python, "trl_side.py", job], log) as side:
    side.answer(START_S)                   # {"ready": true}
    side.step()                            # {"step": 1, "samples": 16, "tokens": 1502}
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
PINS = HERE / "trl.txt"
START_S, STEP_S = 300.0, 600.0
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def interpreter(chosen: Path | None, home: Path = HERE.parent / ".venv-trl", pins: Path = PINS) -> Path:
    """``chosen``, or the interpreter in ``home``, which is made (again) where it is not what ``pins`` says.

    Raises:
        SystemExit: it is not, and cannot be made so.
    """
    python = chosen or home / "bin" / "python"
    wrong = what_is_wrong(python, pins)
    if wrong and chosen is None:
        print(f"  making {home} (some minutes): {wrong}", file=sys.stderr, flush=True)
        make(home, pins)
        wrong = what_is_wrong(python, pins)
    if wrong:
        sys.exit(f"TRL cannot be measured: {wrong}")
    return python


def pinned(pins: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in pins.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def what_is_wrong(python: Path, pins: Path) -> str:
    """In words; empty if every package of ``pins`` is there in that version."""
    if not python.exists():
        return f"there is no {python}"
    ask = "import importlib.metadata as m, sys\nfor name in sys.argv[1:]: print(name + '==' + m.version(name))"
    names = [pin.partition("==")[0] for pin in pinned(pins)]
    found = subprocess.run([str(python), "-c", ask, *names], capture_output=True, text=True, check=False)
    if found.returncode:
        return f"{python}: {(found.stderr.strip().splitlines() or ['it does not run'])[-1]}"
    has = [line.partition("+")[0] for line in found.stdout.splitlines()]
    differ = [f"{is_} instead of {pin}" for is_, pin in zip(has, pinned(pins), strict=True) if is_ != pin]
    return f"{python} has {', '.join(differ)}" if differ else ""


def make(home: Path, pins: Path) -> None:
    """Where there is no GPU never a CUDA build of torch, as in launch/setup.sh.

    Raises:
        SystemExit: it failed.
    """
    pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    ways: list[list[list[str]]] = [[[sys.executable, "-m", "venv", str(home)]]]
    for torch in (pin for pin in pinned(pins) if pin.startswith("torch==")):
        # "+cpu" can never be a CUDA build. Whoever has such a wheel at hand needs no other index.
        cpu = [*pip, "--no-deps", f"{torch}+cpu"]
        ways.append([cpu, [*cpu, "--index-url", TORCH_CPU_INDEX]])
    ways.append([[*pip, "-r", str(pins)]])
    for commands in ways:
        if all(subprocess.call(command, stdout=sys.stderr) for command in commands):
            sys.exit(f"the environment for TRL could not be made: {' '.join(commands[-1])} failed")


@dataclass(slots=True)
class Side:
    """A started process that waits for its next step."""

    process: subprocess.Popen[str]
    log: Path

    def step(self) -> dict[str, Any]:
        """Raises RuntimeError: the process ended, or did not answer within STEP_S."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: `answer` says so
            os.write(self.process.stdin.fileno(), b"go\n")
        return self.answer(STEP_S)

    def answer(self, within_s: float) -> dict[str, Any]:
        """Raises RuntimeError: the process ended, or did not answer in time."""
        assert self.process.stdout is not None
        too_late = threading.Timer(within_s, self.process.kill)
        too_late.start()
        line = self.process.stdout.readline()
        too_late.cancel()
        if not line:
            code = self.process.wait()
            tail = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"{tail}\nTRL's process ended with code {code} (it had {within_s:.0f} s to answer)")
        return json.loads(line)

    def cpu_s(self) -> float:
        """CPU seconds that it has used so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system


@contextlib.contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[Side]:
    """Without what the project's own environment sets for Python and OpenMP; killed at the end."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    with log.open("w") as file, subprocess.Popen(
        list(command), env=env, text=True, stderr=file, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:  # fmt: skip
        try:
            yield Side(process, log)
        finally:
            process.kill()
