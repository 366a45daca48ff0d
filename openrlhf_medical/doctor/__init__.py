"""``openrlhf-medical doctor``: what of this machine would make a run fail, and what to do about it.

Imports neither torch nor Ray: versions come from package metadata, all else from the system. Every
check is a function of its own that returns one Finding; facts are read, none is guessed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from openrlhf_medical import devices
from openrlhf_medical.doctor import machine, services, software
from openrlhf_medical.doctor.findings import Finding, as_dict, exit_code, render
from openrlhf_medical.plan import hardware

__all__ = ("CHECKOUT", "QUICKSTART_MODEL", "as_dict", "diagnose", "exit_code", "render")

CHECKOUT = Path(__file__).resolve().parents[2]
QUICKSTART_MODEL = "models/smollm2-135m"


def diagnose(judge_urls: Iterable[str] = (), model: str | None = None) -> list[Finding]:
    """All checks of this machine, in the order of the report, and of the judges and the judge's model named."""
    has_gpu, urls = devices.has_gpu(), list(judge_urls)
    version, cuda = software.torch_build()
    pins = CHECKOUT / "launch" / "pins" / ("cuda.txt" if has_gpu else "cpu.txt")
    visible = hardware.visible(hardware.read_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")) if has_gpu else ()
    return [
        software.python_version(),
        software.packages(pins),
        software.gpu(has_gpu, software.driver_version(), version, cuda),
        *([software.gpus(visible)] if has_gpu else []),
        software.build_tools(has_gpu),
        machine.cores(),
        machine.memory(),
        machine.shared_memory(),
        machine.disk("disk (runs)", Path.cwd(), 5),
        machine.disk("disk (Ray)", Path("/tmp"), 2),
        machine.open_files(),
        machine.processes(),
        machine.locked_memory(has_gpu),
        machine.ptrace_scope(),
        services.proxies(filter(None, (urlsplit(url).hostname for url in urls))),
        services.ports(),
        services.ray_cluster(),
        services.slurm(),
        machine.quickstart_model(QUICKSTART_MODEL),
        services.judge_model(model),
        *map(services.judge, urls),
    ]
