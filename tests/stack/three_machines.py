"""A program for test_plan: a Ray cluster of three machines on this one, and what it does with placement groups.

Prints one JSON object. In a process of its own, because a test session has a Ray already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

GPUS, MACHINES = 4, 3
GROUPS = ((8, 4), (2, 2, 4), (5, 3), (1, 6, 3), (3, 3, 3, 3))
CONFIG = Path(__file__).resolve().parents[2] / "configs" / "selfplay_8b_multinode.yaml"


def taken(groups: tuple[int, ...]) -> list[list[int]]:
    """Bundles on each machine, most first, of groups that are reserved one after the other."""
    from ray.util import placement_group_table, remove_placement_group

    from openrlhf_medical.cluster import reserve

    held = [reserve(bundles, 30, f"group {i}") for i, bundles in enumerate(groups)]
    tables = [placement_group_table(group)["bundles_to_node_id"] for group in held]
    for group in held:
        remove_placement_group(group)
    return [sorted(Counter(table.values()).values(), reverse=True) for table in tables]


def refused_when_full(timeout_s: float) -> dict[str, Any]:
    """Everything is taken by somebody else: what ``reserve`` says, and when."""
    from openrlhf_medical.cluster import reserve
    from openrlhf_medical.errors import UserError

    reserve(GPUS * MACHINES, 30, "somebody else")
    start = time.monotonic()
    try:
        reserve(2, timeout_s, "us")
    except UserError as error:
        return {"said": str(error), "seconds": time.monotonic() - start}
    return {"said": "", "seconds": time.monotonic() - start}


def train_that_does_not_fit(folder: Path) -> dict[str, Any]:
    """The program itself in this cluster, with a model folder and data that it is content with."""
    words = ["--actor.model_name_or_path", "Qwen/Qwen3-4B", "--data.train", str(folder / "train.jsonl"),
             "--run.eval_games", "0", "--run.dir", str(folder), "--ds.packing_samples", "false"]  # fmt: skip
    program = [sys.executable, "-m", "openrlhf_medical", "train", "--config", str(CONFIG), *words]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    return {"code": done.returncode, "said": done.stderr}


def main(folder: Path) -> None:
    os.environ.update({"RAY_prestart_worker_first_driver": "0"})
    from ray.cluster_utils import Cluster

    machine = {"num_cpus": GPUS, "num_gpus": GPUS, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=machine)
    try:
        for _ in range(MACHINES - 1):
            cluster.add_node(**machine)
        cluster.wait_for_nodes()
        os.environ["RAY_ADDRESS"] = cluster.address
        from openrlhf_medical.plan.ray_hardware import cluster_hardware

        found = cluster_hardware()
        answer = {
            "nodes": [[len(node.gpus), node.cpus, node.host_bytes] for node in found.nodes],
            "has_gpus": found.has_gpus,
            "title": found.title,
            "taken": [taken(groups) for groups in GROUPS],
            "full": refused_when_full(2.0),
            "train": train_that_does_not_fit(folder),
        }
    finally:
        import ray

        ray.shutdown()
        cluster.shutdown()
    print(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
