"""From ``train``'s first instruction to its first game, on a machine whose files are in memory already.

    python benchmarks/start.py             # configs/quickstart.yaml with SmolLM2-135M
    python benchmarks/start.py --quick     # models/tiny, one start

Compared with the least that those starts could take: the larger of

    the slowest single worker's start, alone on the machine (an engine, or a policy's worker)
    the CPU seconds that all processes had used by then ÷ cores

CPU seconds are those of the very start that is timed, of every process under it that lived half a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from measure import Result, Row, compare, parser
from memory import descendants

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RUNS = 5
"""Starts; each takes most of a minute, and what is compared comes from one and the same."""
SAMPLE_S = 0.5
DEADLINE_S = 300.0


@dataclass
class Start:
    """Seconds from the process's start to its first game, CPU seconds until then, and when what was said."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    marks: dict[str, float] = field(default_factory=dict)
    busy: list[tuple[float, float]] = field(default_factory=list)
    """(second, cores in use) from sample to sample."""
    by_process: dict[str, float] = field(default_factory=dict)


class CpuSeconds:
    """Of a process and all its descendants, those that have ended meanwhile included."""

    def __init__(self, root: int) -> None:
        self._root, self._seen = root, {}  # type: ignore[var-annotated]

    def total(self) -> float:
        for pid in descendants(self._root):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                times = process.cpu_times()
                self._seen[pid] = (times.user + times.system, _title(process))
        return sum(seconds for seconds, _ in self._seen.values())

    def by_process(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for seconds, title in self._seen.values():
            found[title] = found.get(title, 0.0) + seconds
        return {title: round(seconds, 1) for title, seconds in sorted(found.items(), key=lambda kv: -kv[1])}


def _title(process: psutil.Process) -> str:
    words = process.cmdline() or [process.name()]
    if words[0].startswith(("ray::", "VLLM::")):
        return words[0].split("(")[0]
    named = [word for word in words[:6] if "python" not in word and not word.startswith("-")]
    return Path(named[0] if named else words[0]).name[:40]


def start(config_words: list[str], folder: Path, number: int, first_game: str) -> Start:
    """One ``train`` up to the line on its standard error that begins with ``first_game``, then ended."""
    command = [sys.executable, "-m", "openrlhf_medical", "train", "--config", str(ROOT / "configs/quickstart.yaml"),
               "--run.name", f"start-{number}", "--run.dir", str(folder), *config_words]  # fmt: skip
    found = Start()
    log = folder / f"start-{number}.stderr"
    began = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
    cpu, last = CpuSeconds(process.pid), (0.0, 0.0)
    try:
        while first_game not in found.marks:
            time.sleep(SAMPLE_S)
            now, used = time.perf_counter() - began, cpu.total()
            found.busy.append((round(now, 2), round((used - last[1]) / (now - last[0]), 2)))
            last = (now, used)
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
                found.marks.setdefault(first_game if line.startswith(first_game) else line[:60], now)
            if process.poll() is not None or now > DEADLINE_S:
                raise RuntimeError(f"no game began: {log.read_text(encoding='utf-8')[-2000:]}")
        found.wall_s, found.cpu_s = last
        found.by_process = cpu.by_process()
        print({what: round(when, 1) for what, when in found.marks.items()}, "CPU s:", found.by_process)
        print("cores in use:", *(f"{now:.0f}s:{cores:.1f}" for now, cores in found.busy[::2]), flush=True)
    finally:
        _end(process)
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """As a user would, once and then again."""
    for patience_s in (60, 10):
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience_s)
    if process.poll() is None:
        process.kill()
        process.wait()


def workers_alone() -> None:
    """In a process of its own: seconds of one engine's start, then of one policy's worker, as JSON on stdout."""
    from openrlhf_medical import assembly, casting, cluster, layout
    from openrlhf_medical.config import load_config
    from openrlhf_medical.game.players import Role

    config = load_config(ROOT / "configs/quickstart.yaml", sys.argv[2:])
    found: dict[str, float] = {}

    def timed(name: str, work: Callable[[], None]) -> None:
        began = time.perf_counter()
        work()
        found[name] = time.perf_counter() - began

    def engine() -> None:
        casting.wait_for_engines(config, {"one": casting.start_engine_pool(config, layout.model_of(config), "one")})

    with cluster.session(4):
        timed("engine", engine)
        timed("policy", lambda: assembly.start_pupils(config, [Role.ASSESSOR], 0) and None)
    print(json.dumps(found))


def main() -> None:
    if sys.argv[1:2] == ["workers"]:
        return workers_alone()
    words = parser(__doc__)
    words.set_defaults(runs=RUNS)
    options = words.parse_args()
    from openrlhf_medical.data.prepare import prepare_data

    with tempfile.TemporaryDirectory(prefix="start-") as name:
        folder = Path(name)
        prepare_data("synthetic", folder / "data", None, 0.9, 0)
        config = ["--run.eval_games", "2", "--data.train", str(folder / "data/train.jsonl"),
                  "--data.val", str(folder / "data/val.jsonl"), "--actor.model_name_or_path",
                  str(ROOT / "models" / ("tiny" if options.quick else "smollm2-135m"))]  # fmt: skip
        starts = [start(config, folder, i, "held-out games") for i in range(1 if options.quick else options.runs)]
        alone = json.loads(
            subprocess.run(
                [sys.executable, __file__, "workers", *config], cwd=ROOT, stdout=subprocess.PIPE, check=True,
                timeout=DEADLINE_S,
            ).stdout.splitlines()[-1]
        )  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    limits = [max(one.cpu_s / cores, *alone.values()) for one in starts]
    note = f"{starts[0].wall_s:.0f} s; CPU seconds ÷ cores {starts[0].cpu_s / cores:.0f} s; " + ", ".join(
        f"{kind} alone {seconds:.0f} s" for kind, seconds in alone.items()
    )
    rows: list[Row] = [
        compare("start to first game, warm machine", [one.wall_s for one in starts], limits, 1.3, "lower", note)
    ]
    result = Result("start", rows, {"starts": [vars(one) for one in starts], "alone": alone})
    result.report(None) if options.quick else result.report()


if __name__ == "__main__":
    main()
