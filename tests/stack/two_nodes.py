"""A program: trains on a cluster of two raylets and prints, as its last line, which node each actor was on.

It is a process of its own, because the tests beside it have a Ray of theirs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import ray
from ray.cluster_utils import Cluster


def main(data: str, runs: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=4, num_gpus=2)
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        # A process of its own: a run ends every process of Ray that its own process started.
        words = ["train", "--config", "configs/tiny.yaml", "--run.name", "two-nodes", "--run.dir", runs, "--run.steps",
                 "1", "--roles.policy", "shared", "--data.train", f"{data}/train.jsonl",
                 "--data.val", f"{data}/val.jsonl"]  # fmt: skip
        subprocess.run([sys.executable, "-m", "openrlhf_medical", *words], check=True)
        ray.init(address=cluster.address, log_to_driver=False)
        actors = ray._private.state.actors()
        print(json.dumps({f"{a['ActorClassName']}-{key[:6]}": a["Address"]["NodeID"] for key, a in actors.items()}))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
