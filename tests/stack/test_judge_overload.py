"""At several times its capacity the judge keeps its throughput, refuses the rest at once, and recovers."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # as `python benchmarks/judge_load.py` has it

import judge_load

BATCH_S = 0.03  # of 64 queries: 2,133 a second, whatever else the machine does


def test_at_four_times_its_capacity(tmp_path: Path) -> None:
    with judge_load.start("sleep", BATCH_S, 256, tmp_path / "judge.log") as judge:
        result = asyncio.run(judge_load.measure(judge.url, queries=16, seconds=1.0))
    print(result.render())
    assert result.overload >= 0.9 * result.peak
    assert result.peak_again >= 0.9 * result.peak
    # Most of it, for the clients of this test may themselves be late on a busy machine.
    median, most, *_ = result.refused_s
    assert result.refused > 0 and median < 0.05 and most < 0.1
    assert result.recovery_s < 1.0
    assert not result.others
