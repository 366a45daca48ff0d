"""What ``train`` does with a plan: make it in the first second, show it, stop where it does not fit."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from openrlhf_medical.errors import UserError
from openrlhf_medical.layout import bundles_needed
from openrlhf_medical.plan import hardware, render
from openrlhf_medical.plan.planning import make_plan
from openrlhf_medical.ray_address import address_of, answers

if TYPE_CHECKING:
    from openrlhf_medical.config import RunConfig
    from openrlhf_medical.plan.planning import Plan


def plan_of(config: RunConfig, on: str | None, judge_gpus: int = 0) -> Plan:
    """The plan on the hardware that ``on`` writes, on the cluster that RAY_ADDRESS names, or on this machine.

    Imports Ray for a cluster only.

    Raises:
        UserError: no such hardware, or no such cluster.
    """
    if on is not None:
        return make_plan(config, hardware.written(on, judge_gpus))
    if judge_gpus:
        raise UserError("--judge-gpus goes with --on: of real hardware Ray and CUDA_VISIBLE_DEVICES say what is left")
    if named := os.environ.get("RAY_ADDRESS"):
        if not answers(address_of()):  # Ray itself would try for a minute
            raise UserError(
                f"RAY_ADDRESS is {named}, where nothing answers: start the cluster (ray start --head), correct the "
                "address (HOST:PORT of its head), or unset it to run on this machine"
            )
        from openrlhf_medical.plan.ray_hardware import cluster_hardware

        return make_plan(config, cluster_hardware())
    return make_plan(config, hardware.this_machine(bundles_needed(config)))


def tell(plan: Plan, *, whole: bool) -> list[str]:
    """Print the plan on stderr: with ``whole`` or where it does not fit all of it, a line where something is tight,
    else nothing. Returns what is short."""
    if whole or plan.shortfalls:
        render.show(plan, sys.stderr)
    elif plan.is_tight:
        print(render.line(plan), file=sys.stderr)
    return plan.problems()
