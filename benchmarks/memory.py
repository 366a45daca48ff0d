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


def title(pid: int) -> str:
    """What a process is, in a word or two: its own title, or its program's name."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    except OSError:
        return "?"
    if words[0].startswith(("ray::", "VLLM::")):
        return words[0].split(".")[0].split("(")[0].split()[0]
    named = [word for word in words[:7] if word and "python" not in word and not word.startswith("-")]
    return " ".join(Path(word).name for word in named[:2])[:40] or Path(words[0]).name


def usage(root: int) -> list[tuple[str, int]]:
    """(title, PSS in bytes) of a process and all its descendants, largest first."""
    found = [(title(pid), pss_bytes(pid)) for pid in descendants(root)]
    return sorted(found, key=lambda each: -each[1])


def peak_of(command: list[str]) -> tuple[int, float, list[tuple[str, int]]]:
    """(exit code, GiB, ``usage`` at the peak) of a command that is run to its end."""
    peak: list[tuple[str, int]] = []
    with subprocess.Popen(command, env=os.environ) as process:
        while process.poll() is None:
            now = usage(process.pid)
            peak = max(peak, now, key=lambda own: sum(size for _, size in own))
            time.sleep(INTERVAL_S)
    return process.returncode, sum(size for _, size in peak) / 2**30, peak


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    code, gib, peak = peak_of(sys.argv[1:])
    for name, size in peak:
        print(f"{size / 2**20:8.0f} MiB  {name}")
    print(f"peak of summed PSS: {gib:.2f} GiB")
    sys.exit(code)


if __name__ == "__main__":
    main()
