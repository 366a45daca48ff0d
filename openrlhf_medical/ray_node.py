"""One node of an allocation becomes a node of a Ray cluster of its own, until it is told to stop.

    python -m openrlhf_medical.ray_node --temp-dir DIR                       the head
    python -m openrlhf_medical.ray_node --temp-dir DIR --address HOST:PORT   any other node
    python -m openrlhf_medical.ray_node --wait NODES --address HOST:PORT     ends when so many nodes are there

Used by launch/slurm.sbatch. Every port is one that is free, and the folder is the caller's, so that the clusters of
two jobs on one machine do not meet. The head writes its address into ``DIR/ray_current_cluster`` when it is up.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from openrlhf_medical import devices
from openrlhf_medical.errors import StuckError

PLACES_WITHOUT_GPU = 16
"""Of a node without GPUs: what Ray is told, so that placement works as it does with GPUs. The processes share cores."""

_POLL_S = 1.0


def start_command(
    temp_dir: Path, address: str | None, environment: Mapping[str, str], *, has_gpu: bool, cores: int, client_port: int
) -> list[str]:
    """Words of ``ray start`` for a node of a Slurm allocation (SLURM_CPUS_ON_NODE), or of none.

    With GPUs Ray counts those that CUDA_VISIBLE_DEVICES leaves, which Slurm sets.
    """
    cpus = int(environment.get("SLURM_CPUS_ON_NODE", cores))
    resources = [f"--num-cpus={cpus}"]
    if not has_gpu:  # each place asks for a CPU as well
        resources = [f"--num-cpus={max(cpus, PLACES_WITHOUT_GPU)}", f"--num-gpus={PLACES_WITHOUT_GPU}"]
    # A head always serves Ray's clients, and gives up where it cannot: the one port that may not be 0.
    head = ["--head", "--port=0", "--include-dashboard=false", f"--ray-client-server-port={client_port}"]
    role = [f"--address={address}"] if address else head
    # 0: whatever is free. The ranges and numbers that Ray has by default are the same for everybody on a machine.
    ports = [f"--{name}=0" for name in ("min-worker-port", "max-worker-port", "dashboard-agent-listen-port")]
    return ["start", "--block", "--disable-usage-stats", f"--temp-dir={temp_dir}", *role, *ports, *resources]


def wait_for_nodes(address: str, nodes: int, timeout_s: float) -> None:
    """Raises StuckError where fewer are alive after ``timeout_s``."""
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        deadline = time.monotonic() + timeout_s
        while (alive := sum(node["Alive"] for node in ray.nodes())) < nodes:
            if time.monotonic() > deadline:
                hosts = ", ".join(node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"])
                raise StuckError(f"{alive} of {nodes} nodes joined Ray within {timeout_s:g} s: {hosts}")
            time.sleep(_POLL_S)
    finally:
        ray.shutdown()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m openrlhf_medical.ray_node", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--temp-dir", type=Path, help="folder for Ray's files; its path has to be short")
    parser.add_argument("--address", help="of the head; without it this node is the head")
    parser.add_argument("--wait", type=int, metavar="NODES", help="wait until so many nodes are there")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="deadline of --wait; 300 by default")
    options = parser.parse_args()
    if options.wait is not None:
        if not options.address:
            parser.error("--wait needs --address")
        try:
            wait_for_nodes(options.address, options.wait, options.timeout_s)
        except StuckError as error:
            sys.exit(f"error: {error}")
        return
    if options.temp_dir is None:
        parser.error("--temp-dir is needed")
    cores = len(os.sched_getaffinity(0))
    words = start_command(
        options.temp_dir,
        options.address,
        os.environ,
        has_gpu=devices.has_gpu(),
        cores=cores,
        client_port=_free_port(),
    )
    # In place of this process: what is told to stop is Ray itself.
    os.execv(sys.executable, [sys.executable, "-m", "ray.scripts.scripts", *words])


if __name__ == "__main__":
    main()
