"""What there is to run on: this machine, or one that somebody names. Nothing here imports torch or Ray."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openrlhf_medical import devices
from openrlhf_medical.errors import UserError
from openrlhf_medical.plan.memory import GIB

_WRITTEN = re.compile(r"(?:(\d+)x)?(\d+)x(\d+(?:\.\d+)?)(GB|GiB)", re.IGNORECASE)
_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=index,uuid,memory.total,memory.used", "--format=csv,noheader,nounits")
NVIDIA_SMI_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """Bytes of one GPU, and those that others have taken. None: not known."""

    total: int | None
    used: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """A machine. ``cpus`` and ``host_bytes`` None: not known, so not compared."""

    name: str
    gpus: tuple[Gpu, ...]
    cpus: float | None = None
    host_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Hardware:
    """All machines of a run. ``has_gpus`` False: places are logical, and everything is in host memory."""

    nodes: tuple[Node, ...]
    title: str
    has_gpus: bool = True

    @property
    def gpus(self) -> int:
        return sum(len(node.gpus) for node in self.nodes)

    @property
    def cpus(self) -> float | None:
        known = [node.cpus for node in self.nodes if node.cpus is not None]
        return sum(known) if len(known) == len(self.nodes) else None


def written(text: str, judge_gpus: int = 0) -> Hardware:
    """``8x80GB``: one machine of 8 GPUs; ``4x8x80GB``: four of them. A GB is 10^9 bytes: cards sold as 48 and 80 GB
    have at least that. ``judge_gpus`` of the last machine are the judge's, outside Ray.

    Raises:
        UserError: something else, or nothing left.
    """
    match = _WRITTEN.fullmatch(text.strip())
    if match is None or not int(match[2]) or not float(match[3]) or (match[1] and not int(match[1])):
        raise UserError(
            f"--on {text}: write [MACHINES x] GPUS x MEMORY, as in 8x80GB, 4x8x80GB or 1x48GB (GB or GiB of each GPU)"
        )
    nodes, gpus, unit = int(match[1] or 1), int(match[2]), GIB if match[4].lower() == "gib" else 10**9
    if judge_gpus >= gpus:
        raise UserError(f"--judge-gpus {judge_gpus} leaves nothing of the last machine of --on {text}")
    gpu = Gpu(int(float(match[3]) * unit))
    counts = [gpus] * (nodes - 1) + [gpus - judge_gpus]
    title = f"{f'{nodes} machines of ' if nodes > 1 else ''}{gpus} x {match[3]} {match[4]}"
    if judge_gpus:
        title += f", {judge_gpus} of them the judge's"
    return Hardware(tuple(Node(f"node {i + 1}", (gpu,) * n) for i, n in enumerate(counts)), f"{title} (--on)")


def this_machine(gpus_needed: int) -> Hardware:
    """Here. Without a GPU as many logical places as are needed, as ``cluster.connect`` has them."""
    cores, memory = len(os.sched_getaffinity(0)), host_memory()
    if not devices.has_gpu():
        node = Node("this machine", (Gpu(None),) * gpus_needed, cpus=max(gpus_needed, cores), host_bytes=memory)
        return Hardware((node,), f"this machine: no GPU, {cores} cores", has_gpus=False)
    gpus = visible(read_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if not gpus and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        node = Node("this machine", (Gpu(None),) * gpus_needed, cpus=os.cpu_count(), host_bytes=memory)
        return Hardware((node,), "this machine, of whose GPUs nvidia-smi does not tell")
    node = Node("this machine", gpus, cpus=os.cpu_count(), host_bytes=memory)
    return Hardware((node,), f"this machine: {len(gpus)} GPUs, {cores} cores")


def read_gpus() -> list[tuple[str, str, Gpu]]:
    """(index, UUID, memory) of each GPU as nvidia-smi tells it; none where it cannot be asked."""
    try:
        done = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_nvidia_smi(done.stdout)


def parse_nvidia_smi(text: str) -> list[tuple[str, str, Gpu]]:
    """Lines of ``index, uuid, MiB in all, MiB in use``; a figure that the driver does not give is unknown."""
    gpus = []
    for line in filter(str.strip, text.splitlines()):
        index, uuid, total, used = (part.strip() for part in line.split(","))
        known = total.isdigit() and used.isdigit()
        gpus.append((index, uuid, Gpu(int(total) << 20, int(used) << 20) if known else Gpu(None)))
    return gpus


def visible(gpus: Sequence[tuple[str, str, Gpu]], environment: str | None) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves: by index or by the beginning of a UUID; all where it is not set."""
    if environment is None:
        return tuple(gpu for _, _, gpu in gpus)
    chosen: list[Gpu] = []
    for word in filter(None, map(str.strip, environment.split(","))):
        found = [gpu for index, uuid, gpu in gpus if index == word or (not word.isdigit() and uuid.startswith(word))]
        if not found:  # as CUDA has it: what follows a name that is not there is not seen
            break
        chosen.append(found[0])
    return tuple(chosen)


def host_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> int | None:
    """Bytes of memory of this machine, or of the container where that is less."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", meminfo.read_text(), re.M) if meminfo.exists() else None
    if match is None:
        return None
    total, limit = int(match[1]) << 10, cgroup.read_text().strip() if cgroup.exists() else "max"
    return min(total, int(limit)) if limit.isdigit() else total


def cpu_has_fast_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """As ``bf16_linear.has_fast_bf16`` has it of torch, without importing it: AVX-512 with its usual extensions."""
    return cpuinfo.exists() and {"avx512bw", "avx512vl", "avx512dq"} <= set(cpuinfo.read_text().split())
