"""What a run talks to: proxies, ports, Ray, Slurm, judges."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from openrlhf_medical.doctor.findings import Finding, Status
from openrlhf_medical.errors import UserError
from openrlhf_medical.judge import hub
from openrlhf_medical.judge.replicas import checked_url
from openrlhf_medical.judge.spec import DEFAULT_MODEL
from openrlhf_medical.judge.transport import Transport
from openrlhf_medical.ray_address import CURRENT_CLUSTER, address_of, answers, noted

LOOPBACK = ("127.0.0.1", "localhost")
PORTS = {6379: "Ray's head (ray start --head)", 8265: "Ray's dashboard and job server", 10001: "Ray's client server",
         8000: "serve-judge"}  # fmt: skip
"""Ports that are taken unless another is given, and by whom."""
ANSWER_TIMEOUT_S = 5.0
SLURM = ("sbatch", "srun", "scontrol")


def proxies(hosts: Iterable[str] = ()) -> Finding:
    """A proxy that is asked for 127.0.0.1 makes Ray and the judge unreachable on their own machine; ``hosts``:
    others that must be reached without one."""
    found = {kind: url for kind, url in urllib.request.getproxies_environment().items() if kind != "no"}
    if not found:
        return Finding("proxies", Status.OK, "none set")
    names = ", ".join(sorted(f"{kind}_proxy" for kind in found))
    caught = [host for host in dict.fromkeys((*LOOPBACK, *hosts)) if not urllib.request.proxy_bypass(host)]
    if not caught:
        return Finding("proxies", Status.OK, f"{names}; loopback is excepted")
    wanted = ",".join(dict.fromkeys((*LOOPBACK, *caught)))
    advice = f"export no_proxy={wanted} (and NO_PROXY); on a cluster add its hosts"
    return Finding("proxies", Status.WARN, f"{names} would also take {' and '.join(caught)}", advice)


def port_is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is only waiting to be forgotten is free
        try:
            sock.bind(("", port))
        except OSError:
            return False
    return True


def ports(is_free: Callable[[int], bool] = port_is_free) -> Finding:
    """Whether a head of Ray and a judge could be started here with their usual ports."""
    taken = [port for port in PORTS if not is_free(port)]
    if not taken:
        return Finding("ports", Status.OK, f"{', '.join(map(str, PORTS))} are free")
    found = ", ".join(f"{port} ({PORTS[port]})" for port in taken)
    advice = "right if those run here already; if not, `ss -ltnp` names who does, or give another: --port"
    return Finding("ports", Status.WARN, f"in use: {found}", advice)


def ray_cluster(environment: Mapping[str, str] = os.environ, current: Path = CURRENT_CLUSTER) -> Finding:
    """Whether the cluster that RAY_ADDRESS names answers; where it is not set, runs start a Ray of their own."""
    named, local = environment.get("RAY_ADDRESS", ""), noted(current)
    if not named:
        if local and answers(local):
            found = f"RAY_ADDRESS not set; a cluster is at {local}"
            return Finding("ray", Status.OK, f"{found} (export RAY_ADDRESS={local} to run there)")
        return Finding("ray", Status.OK, "RAY_ADDRESS not set: a run starts its own Ray on this machine")
    address = address_of(environment, current)
    if address and answers(address):
        return Finding("ray", Status.OK, f"{named} answers")
    advice = "start it (ray start --head), correct RAY_ADDRESS (HOST:PORT of the head), or unset it to run here"
    return Finding("ray", Status.FAIL, f"RAY_ADDRESS={named}: nothing answers", advice)


def slurm(which: Callable[[str], str | None] = shutil.which) -> Finding:
    """Whether ``launch/slurm.sbatch`` could be submitted from here."""
    missing = [program for program in SLURM if which(program) is None]
    if len(missing) == len(SLURM):
        return Finding("slurm", Status.OK, "not here (only launch/slurm.sbatch needs it)")
    if missing:
        advice = "load the whole client (Debian: slurm-client), or submit from a login node"
        return Finding("slurm", Status.WARN, f"not on PATH: {', '.join(missing)}", advice)
    try:
        done = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S)
        said = " ".join(done.stdout.split()) or "".join(done.stderr.strip().splitlines()[-1:])
    except subprocess.TimeoutExpired:
        said = f"scontrol ping did not answer within {ANSWER_TIMEOUT_S:g} s"
    except OSError as error:
        said = f"scontrol cannot be run: {error.strerror}"
    if " UP" in said:
        return Finding("slurm", Status.OK, said)
    advice = "its controller cannot be reached: see /etc/slurm/slurm.conf and that munge runs; only for slurm.sbatch"
    return Finding("slurm", Status.WARN, said or "scontrol ping said nothing", advice)


def judge(url: str) -> Finding:
    """Whether the judge there is ready, and which model it has."""
    with Transport(None) as transport:
        health = transport.health(checked_url(url), timeout_s=5)
    if health.ready:
        return Finding("judge", Status.OK, f"{url}: ready, model {health.said}")
    advice = "start one with openrlhf-medical serve-judge, wait until it has loaded, or correct the address"
    return Finding("judge", Status.FAIL, f"{url}: {health.said}", advice)


def judge_model(name: str | None) -> Finding:
    """Whether a model judge's weights can be had. Asks the hub only for one that is named."""
    title, model = "judge model", name or DEFAULT_MODEL
    try:
        if name is not None:
            hub.check_access(name)
            return Finding(title, Status.OK, f"{name} can be had")
        if hub.downloaded(model) is not None:
            return Finding(title, Status.OK, f"{model} is on this machine")
        if hub.has_token():
            found = f"{model} not downloaded; a Hugging Face token is here"
            return Finding(title, Status.OK, f"{found} (doctor --judge-model {model} asks whether it opens the model)")
    except UserError as error:
        return Finding(title, Status.FAIL, f"{model} cannot be had", str(error))
    except ImportError:
        return Finding(title, Status.WARN, "huggingface_hub is not installed", "run launch/setup.sh")
    advice = f"only for serve-judge --backend vllm: {hub.how_to_unlock(model, has_token=False)}"
    return Finding(title, Status.WARN, f"{model} not downloaded, and no Hugging Face token", advice)
