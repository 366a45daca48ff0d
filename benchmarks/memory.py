"""Peak memory of a command: the summed PSS of all its processes, so that shared pages count once.

    python benchmarks/memory.py .venv/bin/openrlhf-medical train --config configs/quickstart.yaml …

PSS is what each process would give back if it ended; RSS would count shared libraries once for each process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

INTERVAL_S = 1.0


def descendants(root: int) -> set[int]:
    """``root``, its children, their children …; and what Ray started for it in a session of its own."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            parents[int(entry.name)] = int(fields[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def peak_of(command: list[str]) -> tuple[int, float]:
    """(exit code, GiB) of a command that is run to its end."""
    peak = 0
    with subprocess.Popen(command, env=os.environ) as process:
        while process.poll() is None:
            peak = max(peak, sum(pss_bytes(pid) for pid in descendants(process.pid)))
            time.sleep(INTERVAL_S)
    return process.returncode, peak / 2**30


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    code, gib = peak_of(sys.argv[1:])
    print(f"peak of summed PSS: {gib:.2f} GiB")
    sys.exit(code)


if __name__ == "__main__":
    main()
