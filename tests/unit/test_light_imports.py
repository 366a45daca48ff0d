"""The light rooms import in under a second and without what only a trainer needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "vllm", "openrlhf", "deepspeed", "transformers")
ROOMS = (
    *(
        "game.manager",
        "data.prepare",
        "data.stream",
        "data.sft",
        "config",
        "judge.schema",
        "judge.client",
        "judge.audit.gold_watch",
        "cli",
    ),
    *("health", "rollout.pool", "plan.command_line", "sweep.plan"),
    *("health", "rollout.pool", "report.write"),
)


@pytest.mark.parametrize("room", ROOMS)
def test_import_is_light(room):
    program = (
        "import sys, time; start = time.perf_counter()\n"
        f"import openrlhf_medical.{room}\n"
        "print(time.perf_counter() - start)\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    seconds, heavy = min(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split("\n")[
            :2
        ]
        for _ in range(2)
    )
    assert not heavy.strip(), f"{room} imports {heavy}"
    assert float(seconds) < 1.0
