"""Memory, disks, limits and other settings of this machine."""

from __future__ import annotations

import os
import re
import resource
import shutil
from pathlib import Path

from openrlhf_medical.doctor.findings import Finding, Status
from openrlhf_medical.errors import UserError
from openrlhf_medical.models import check_model_folder
from openrlhf_medical.plan.memory import GIB

OPEN_FILES = 8192
"""Ray's own recommendation; below it, a larger cluster loses connections."""
PROCESSES = 8192
"""Threads count too: each of a run's processes has dozens."""


def shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Ray keeps objects there and falls back to slow disk; a container has 64 MB unless told otherwise."""
    if not folder.exists():
        return Finding("shared memory", Status.WARN, f"no {folder}", "Ray will keep objects on disk, slowly")
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free in {folder}"
    if usage.free >= GIB:
        return Finding("shared memory", Status.OK, found)
    return Finding("shared memory", Status.WARN, found, "in a container: start it with --shm-size=8g or more")


def open_files(limit: int | None = None) -> Finding:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    if limit in (resource.RLIM_INFINITY, -1) or limit >= OPEN_FILES:
        return Finding("open files", Status.OK, "unlimited" if limit < 0 else str(limit))
    return Finding("open files", Status.WARN, str(limit), f"ulimit -n {OPEN_FILES} or more before starting")


def processes(limit: int | None = None, root: bool | None = None) -> Finding:
    """Processes and threads of this user; root has no limit."""
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0] if limit is None else limit
    root = os.geteuid() == 0 if root is None else root
    found = "unlimited" if limit in (resource.RLIM_INFINITY, -1) else str(limit)
    if root or found == "unlimited" or limit >= PROCESSES:
        return Finding("processes", Status.OK, found)
    return Finding("processes", Status.WARN, found, f"ulimit -u {PROCESSES} or more before starting")


def locked_memory(has_gpu: bool, limit: int | None = None) -> Finding:
    """NCCL over InfiniBand registers its buffers as locked memory."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] if limit is None else limit
    if limit in (resource.RLIM_INFINITY, -1):
        return Finding("locked memory", Status.OK, "unlimited")
    found = f"{limit / (1 << 20):.0f} MiB"
    if not has_gpu or limit >= GIB:
        return Finding("locked memory", Status.OK, found)
    advice = "several machines with InfiniBand need ulimit -l unlimited (in a container: --ulimit memlock=-1)"
    return Finding("locked memory", Status.WARN, found, advice)


def ptrace_scope(path: Path = Path("/proc/sys/kernel/yama/ptrace_scope"), root: bool | None = None) -> Finding:
    """Only for diagnosis: ``ray stack`` and py-spy attach to a stuck worker."""
    root = os.geteuid() == 0 if root is None else root
    if not path.exists():
        return Finding("ptrace scope", Status.OK, "not restricted")
    value = int(path.read_text())
    if value == 0 or (root and value < 3):
        return Finding("ptrace scope", Status.OK, str(value))
    advice = "ray stack and py-spy cannot look into a stuck worker; sudo sysctl kernel.yama.ptrace_scope=0"
    return Finding("ptrace scope", Status.WARN, str(value), advice)


def disk(name: str, folder: Path, least_gib: float) -> Finding:
    usage = shutil.disk_usage(folder)
    free = usage.free / GIB
    found = f"{free:.1f} GiB free in {folder}"
    if free < 1:
        return Finding(name, Status.FAIL, found, "free some space: not even logs and one checkpoint fit")
    if free < least_gib or usage.used > 0.95 * usage.total:
        advice = f"have {least_gib:g} GiB free, and less than 95 % in use: from there on Ray refuses to spill objects"
        return Finding(name, Status.WARN, found, advice)
    return Finding(name, Status.OK, found)


def memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> Finding:
    """The machine's memory, or the container's where that is less."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.M) if meminfo.exists() else None
    if match is None:
        return Finding("memory", Status.WARN, f"{meminfo} does not say", "look with free -g: 8 GiB should be free")
    available = int(match[1]) * 1024
    limit = cgroup.read_text().strip() if cgroup.exists() else "max"
    limit_note = ""
    if limit.isdigit() and int(limit) < available:
        available, limit_note = int(limit), " (the container's limit)"
    found = f"{available / GIB:.1f} GiB available{limit_note}"
    if available >= 8 * GIB:
        return Finding("memory", Status.OK, found)
    advice = "a run has a process for each policy, reference and engine; Ray ends them at 95 % of memory in use"
    return Finding("memory", Status.WARN, found, advice)


def cores() -> Finding:
    count = len(os.sched_getaffinity(0))
    if count >= 2:
        return Finding("cpu cores", Status.OK, str(count))
    return Finding("cpu cores", Status.WARN, str(count), "the quickstart is made for two cores")


def quickstart_model(folder: str) -> Finding:
    try:
        if not Path(folder).exists():
            raise UserError(f"no folder {folder}")
        check_model_folder(folder)
    except UserError as error:
        advice = "launch/quickstart.sh makes it; not needed with another actor.model_name_or_path"
        return Finding("quickstart model", Status.WARN, str(error), advice)
    return Finding("quickstart model", Status.OK, folder)
