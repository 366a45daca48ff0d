"""What a running Ray cluster has. The only part of the plan that imports Ray."""

from __future__ import annotations

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from openrlhf_medical import cluster
from openrlhf_medical.errors import StuckError, UserError
from openrlhf_medical.plan.hardware import Gpu, Hardware, Node, host_memory, read_gpus

ASK_TIMEOUT_S = 60.0


def _look() -> tuple[list[Gpu], int | None]:
    """On a machine of the cluster: its GPUs, and its host memory."""
    return [gpu for _, _, gpu in read_gpus()], host_memory()


def cluster_hardware() -> Hardware:
    """Joins the cluster that RAY_ADDRESS names, and stays in it: ``cluster.session`` finds it joined.

    GPUs and CPUs are those that Ray counts; sizes of GPUs are asked of each machine. A machine that does not answer
    within a minute counts with unknown memory.

    Raises:
        UserError: the cluster cannot be reached.
    """
    try:
        cluster.connect(0)
    except (ConnectionError, RuntimeError) as error:
        raise UserError(f"the Ray cluster that RAY_ADDRESS names cannot be reached: {error}") from None
    alive = [node for node in ray.nodes() if node["Alive"]]
    look = ray.remote(num_cpus=0)(_look)
    asked = {
        node["NodeID"]: look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        ).remote()
        for node in alive
    }
    try:
        answers = cluster.gather(asked, ASK_TIMEOUT_S, "asking each machine for its GPUs")
    except (StuckError, ray.exceptions.RayError):
        answers = {}
    nodes = []
    for node in sorted(alive, key=lambda node: str(node["NodeManagerAddress"])):
        gpus, memory = answers.get(node["NodeID"], ([], None))
        counted = int(node["Resources"].get("GPU", 0))
        # Where Ray was told to use fewer than there are, the smallest stands for all.
        known = all(gpu.total is not None for gpu in gpus) and gpus
        of_each = min(gpus, key=lambda gpu: (gpu.total or 0) - gpu.used) if known else Gpu(None)
        own = tuple(gpus) if len(gpus) == counted else (of_each,) * counted
        nodes.append(Node(node["NodeManagerAddress"], own, node["Resources"].get("CPU", 0.0), memory))
    has_gpus = any(gpu.total is not None for node in nodes for gpu in node.gpus)
    title = f"the Ray cluster: {len(nodes)} machines, {sum(len(node.gpus) for node in nodes)} GPUs"
    return Hardware(tuple(nodes), title if has_gpus else f"{title} (logical: no GPU is there)", has_gpus)
