"""Python, compilers, packages against their pins, and torch against GPU and driver. Nothing is imported: versions come
from package metadata and from files."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib import metadata, util
from pathlib import Path

from openrlhf_medical.doctor.findings import Finding, Status
from openrlhf_medical.plan.hardware import Gpu
from openrlhf_medical.plan.memory import GIB

PYTHON_FROM, PYTHON_BELOW = (3, 11), (3, 13)
LEAST_DRIVER = {"12": 525, "13": 580}
"""CUDA major version of a torch build to the oldest driver branch that runs it (NVIDIA's table of
minor version compatibility)."""
TAKEN = 1 * GIB
"""Of a GPU, from which on somebody else is at work there."""


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


def gpus(found: Sequence[Gpu]) -> Finding:
    """Those that a run would see, and whether they are free."""
    sizes = [gpu.total for gpu in found if gpu.total is not None]
    if not found:
        advice = "nvidia-smi lists none that CUDA_VISIBLE_DEVICES leaves: unset it, or mend the driver"
        return Finding("gpus", Status.FAIL, "none can be used", advice)
    if len(sizes) < len(found):
        return Finding("gpus", Status.WARN, f"{len(found)}, of unknown size", "the plan cannot compare their memory")
    kinds = ", ".join(f"{sizes.count(size)} x {size / GIB:.1f} GiB" for size in dict.fromkeys(sizes))
    taken = [i for i, gpu in enumerate(found) if gpu.used > TAKEN]
    if not taken:
        return Finding("gpus", Status.OK, f"{kinds}, free")
    busy = ", ".join(f"{i} ({found[i].used / GIB:.1f} GiB)" for i in taken)
    advice = "nvidia-smi names the processes; leave those GPUs out with CUDA_VISIBLE_DEVICES"
    return Finding("gpus", Status.WARN, f"{kinds}; in use: {busy}", advice)
