"""``openrlhf-medical doctor``: what of this machine would make a run fail, and what to do about it.

Imports neither torch nor Ray: versions come from package metadata, all else from the system. Every
check is a function of its own that returns one Finding; facts are read, none is guessed.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata, util
from pathlib import Path

from openrlhf_medical import devices
from openrlhf_medical.errors import UserError
from openrlhf_medical.judge.replicas import checked_url
from openrlhf_medical.judge.transport import Transport
from openrlhf_medical.models import check_model_folder

GIB = 1 << 30
CHECKOUT = Path(__file__).resolve().parent.parent
QUICKSTART_MODEL = "models/smollm2-135m"
PYTHON_FROM, PYTHON_BELOW = (3, 11), (3, 13)
OPEN_FILES = 8192
"""Ray's own recommendation; below it, a larger cluster loses connections."""
LEAST_DRIVER = {"12": 525, "13": 580}
"""CUDA major version of a torch build to the oldest driver branch that runs it (NVIDIA's table of
minor version compatibility)."""


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what was looked at, what was found, what to do (empty where all is well)."""

    name: str
    status: Status
    found: str
    advice: str = ""


def python_version(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    found = ".".join(map(str, version))
    if PYTHON_FROM <= version[:2] < PYTHON_BELOW:
        return Finding("python", Status.OK, found)
    return Finding("python", Status.FAIL, found, "use Python 3.11 or 3.12: the pinned vLLM and Ray have no other")


def build_tools(has_gpu: bool) -> Finding:
    """DeepSpeed compiles its CPU Adam with both at first use; on a GPU only ds.adam_offload needs it."""
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if not missing:
        return Finding("build tools", Status.OK, "g++, ninja")
    advice = "apt-get install g++ ninja-build"
    if missing == ["ninja"] and (Path(sys.prefix) / "bin" / "ninja").exists():
        advice = f"put {sys.prefix}/bin on PATH (activate the environment)"
    status = Status.WARN if has_gpu else Status.FAIL
    return Finding("build tools", status, f"not on PATH: {', '.join(missing)}", advice)


def read_pins(text: str) -> dict[str, str]:
    """``name==version`` lines to {name: version}; extras and comments are dropped."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    pins = (re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)", line) for line in lines)
    return {match[1]: match[2] for match in pins if match}


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def packages(pins_file: Path, installed: Callable[[str], str | None] = installed_version) -> Finding:
    """Installed versions against the pins; a build's local suffix (``+cpu``) is not compared."""
    if not pins_file.exists():
        found = f"openrlhf {installed('openrlhf') or 'not installed'}; no pins beside the package to compare with"
        return Finding("packages", Status.WARN, found, "run doctor from a checkout to compare versions")
    pins = read_pins(pins_file.read_text())
    versions = {name: installed(name) for name in pins}
    missing = [name for name, version in versions.items() if version is None]
    other = [
        f"{name} {version} (pinned {pins[name]})"
        for name, version in versions.items()
        if version is not None and version.split("+")[0] != pins[name].split("+")[0]
    ]
    if missing:
        return Finding("packages", Status.FAIL, f"missing: {_some(missing)}", "run launch/setup.sh")
    if other:
        found = f"{len(other)} of {len(pins)} differ from {pins_file.name}: {_some(other)}"
        return Finding("packages", Status.WARN, found, "run launch/setup.sh to get the pinned versions")
    return Finding("packages", Status.OK, f"{len(pins)} as pinned in {pins_file.name}")


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def torch_build() -> tuple[str | None, str | None]:
    """(version, CUDA version) of the installed torch, read from its files; None where there is none."""
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None, None
    source = Path(spec.origin).with_name("version.py").read_text()
    version = re.search(r"^__version__\s*(?::[^=]*)?=\s*['\"]([^'\"]+)", source, re.M)
    cuda = re.search(r"^cuda\s*(?::[^=]*)?=\s*['\"]([^'\"]+)", source, re.M)
    return version[1] if version else installed_version("torch"), cuda[1] if cuda else None


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    if not path.exists():
        return None
    match = re.search(r"Kernel Module.*?\s(\d{3,}\.\d[\d.]*)", path.read_text())
    return match[1] if match else None


def gpu(has_gpu: bool, driver: str | None, torch: str | None, cuda: str | None) -> Finding:
    """Whether the torch build fits the hardware and the driver."""
    build = f"torch {torch} for {'CUDA ' + cuda if cuda else 'the CPU'}" if torch else "torch not installed"
    if torch is None:
        return Finding("gpu", Status.FAIL, build, "run launch/setup.sh")
    if not has_gpu:
        found = f"none; {build}"
        if cuda is None:
            return Finding("gpu", Status.OK, found)
        return Finding("gpu", Status.WARN, found, "a CUDA build has no use here: run launch/setup.sh for the CPU build")
    found = f"NVIDIA driver {driver or 'of unknown version'}; {build}"
    if cuda is None:
        return Finding("gpu", Status.FAIL, found, "install a CUDA build of torch: run launch/setup.sh on this machine")
    least = LEAST_DRIVER.get(cuda.split(".")[0])
    if driver is None or least is None:
        return Finding("gpu", Status.WARN, found, "driver and torch build could not be compared; see nvidia-smi")
    if int(driver.split(".")[0]) < least:
        advice = f"CUDA {cuda} needs a driver of branch {least} or newer"
        return Finding("gpu", Status.FAIL, found, advice)
    return Finding("gpu", Status.OK, found)


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


def proxies() -> Finding:
    """A proxy that is asked for 127.0.0.1 makes Ray and the judge unreachable on their own machine."""
    found = {kind: url for kind, url in urllib.request.getproxies_environment().items() if kind != "no"}
    if not found:
        return Finding("proxies", Status.OK, "none set")
    caught = [host for host in ("127.0.0.1", "localhost") if not urllib.request.proxy_bypass(host)]
    names = ", ".join(sorted(f"{kind}_proxy" for kind in found))
    if not caught:
        return Finding("proxies", Status.OK, f"{names}; loopback is excepted")
    advice = "export no_proxy=127.0.0.1,localhost (and NO_PROXY); on a cluster add its hosts"
    return Finding("proxies", Status.WARN, f"{names} would also take {' and '.join(caught)}", advice)


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


def judge(url: str) -> Finding:
    """Whether the judge there is ready, and which model it has."""
    with Transport(None) as transport:
        health = transport.health(checked_url(url), timeout_s=5)
    if health.ready:
        return Finding("judge", Status.OK, f"{url}: ready, model {health.said}")
    advice = "start one with openrlhf-medical serve-judge, wait until it has loaded, or correct the address"
    return Finding("judge", Status.FAIL, f"{url}: {health.said}", advice)


def diagnose(judge_urls: Iterable[str] = ()) -> list[Finding]:
    """All checks of this machine, in the order of the report, and of the judges named."""
    has_gpu = devices.has_gpu()
    version, cuda = torch_build()
    pins = CHECKOUT / "launch" / "pins" / ("cuda.txt" if has_gpu else "cpu.txt")
    return [
        python_version(),
        packages(pins),
        gpu(has_gpu, driver_version(), version, cuda),
        build_tools(has_gpu),
        cores(),
        memory(),
        shared_memory(),
        disk("disk (runs)", Path.cwd(), 5),
        disk("disk (Ray)", Path("/tmp"), 2),
        open_files(),
        proxies(),
        ptrace_scope(),
        quickstart_model(QUICKSTART_MODEL),
        *map(judge, judge_urls),
    ]


def render(findings: Iterable[Finding]) -> str:
    """One line for each finding, and one with what to do below those that are not ok."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.status.value:<5} {finding.name:<17} {finding.found}")
        if finding.advice:
            lines.append(f"{'':<23} → {finding.advice}")
    return "\n".join(lines)


def as_dict(findings: Iterable[Finding]) -> dict[str, object]:
    """For ``--json``: ``{"status": the worst, "findings": [{name, status, found, advice}, …]}``."""
    rows = [asdict(finding) for finding in findings]
    worst = max((row["status"] for row in rows), key=list(Status).index, default=Status.OK)
    return {"status": worst, "findings": rows}


def exit_code(findings: Iterable[Finding]) -> int:
    return int(any(finding.status is Status.FAIL for finding in findings))
