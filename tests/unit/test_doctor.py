"""Each check of the doctor on made-up machines."""

from __future__ import annotations

import json
import resource
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_judge import FaultyJudge

from openrlhf_medical import devices, doctor
from openrlhf_medical.doctor import machine, services, software
from openrlhf_medical.doctor.findings import Finding, Status
from openrlhf_medical.errors import UserError
from openrlhf_medical.plan import hardware
from openrlhf_medical.plan.hardware import Gpu
from openrlhf_medical.plan.memory import GIB


def test_python_version() -> None:
    statuses = [software.python_version(v).status for v in ((3, 10, 9), (3, 11, 0), (3, 12, 4), (3, 13, 0))]
    assert statuses == [Status.FAIL, Status.OK, Status.OK, Status.FAIL]


@pytest.mark.parametrize(("has_gpu", "status"), [(False, Status.FAIL), (True, Status.WARN)])
def test_build_tools_are_needed_where_deepspeed_uses_the_cpu(
    monkeypatch: pytest.MonkeyPatch, has_gpu: bool, status: Status
) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    finding = software.build_tools(has_gpu)
    assert finding.status is status and "g++, ninja" in finding.found
    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/bin/{tool}")
    assert software.build_tools(has_gpu).status is Status.OK


def test_ninja_of_an_environment_that_is_not_active(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ninja").touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "ninja" else tool)
    assert software.build_tools(False).advice == f"put {tmp_path}/bin on PATH (activate the environment)"


def test_a_judge_is_asked_for_its_health_and_model() -> None:
    with FaultyJudge() as ready, FaultyJudge() as loading:
        loading.healthy = False
        found = services.judge(ready.url)
        assert (found.status, found.found) == (Status.OK, f"{ready.url}: ready, model scripted")
        found = services.judge(loading.url)
        assert found.status is Status.FAIL and "HTTP 503" in found.found and "serve-judge" in found.advice
        assert [each.name for each in doctor.diagnose([ready.url, loading.url])][-2:] == ["judge", "judge"]
    gone = services.judge(ready.url)
    assert gone.status is Status.FAIL and "ConnectionError" in gone.found
    with pytest.raises(UserError, match="write http://HOST:PORT"):
        services.judge("localhost")


def test_pins_are_read_without_extras_and_comments() -> None:
    text = "# pins\nopenrlhf[vllm]==0.11.2\ntorch==2.13.0  # CPU\n\n--no-deps\nray>=2\n"
    assert software.read_pins(text) == {"openrlhf": "0.11.2", "torch": "2.13.0"}


@pytest.mark.parametrize(
    ("installed", "status", "part"),
    [
        ({"torch": "2.13.0+cpu", "ray": "2.55.0"}, Status.OK, "2 as pinned in cpu.txt"),
        ({"torch": "2.13.0", "ray": "2.56.0"}, Status.WARN, "ray 2.56.0 (pinned 2.55.0)"),
        ({"torch": "2.12.0"}, Status.FAIL, "missing: ray"),
    ],
)
def test_packages(tmp_path: Path, installed: dict[str, str], status: Status, part: str) -> None:
    pins = tmp_path / "cpu.txt"
    pins.write_text("torch==2.13.0\nray==2.55.0\n")
    finding = software.packages(pins, installed.get)
    assert finding.status is status and part in finding.found


def test_packages_outside_a_checkout(tmp_path: Path) -> None:
    assert software.packages(tmp_path / "none.txt", lambda name: None).status is Status.WARN


@pytest.mark.parametrize(
    ("machine", "status", "part"),
    [
        ((False, None, "2.13.0+cpu", None), Status.OK, "none; torch 2.13.0+cpu for the CPU"),
        ((False, None, "2.13.0", "13.0"), Status.WARN, "torch 2.13.0 for CUDA 13.0"),
        ((True, "580.65.06", "2.13.0", "13.0"), Status.OK, "driver 580.65.06"),
        ((True, "550.54.14", "2.13.0", "13.0"), Status.FAIL, "driver 550.54.14"),
        ((True, "550.54.14", "2.13.0", "12.8"), Status.OK, "CUDA 12.8"),
        ((True, "580.65.06", "2.13.0+cpu", None), Status.FAIL, "for the CPU"),
        ((True, None, "2.13.0", "13.0"), Status.WARN, "of unknown version"),
        ((False, None, None, None), Status.FAIL, "torch not installed"),
    ],
)
def test_gpu(machine: tuple[Any, ...], status: Status, part: str) -> None:
    finding = software.gpu(*machine)
    assert finding.status is status and part in finding.found


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build  (dvs-builder@U16)",
    ],
)
def test_driver_version(tmp_path: Path, line: str) -> None:
    (tmp_path / "version").write_text(line + "\nGCC version:  gcc version 12.3.0\n")
    assert software.driver_version(tmp_path / "version") == "535.104.05"
    assert software.driver_version(tmp_path / "none") is None


Usage = namedtuple("Usage", "total used free")


def test_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(64 << 20, 0, 64 << 20))
    finding = machine.shared_memory(tmp_path)
    assert finding.status is Status.WARN and "--shm-size" in finding.advice
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(8 * GIB, 0, 8 * GIB))
    assert machine.shared_memory(tmp_path).status is Status.OK
    assert machine.shared_memory(tmp_path / "none").status is Status.WARN


@pytest.mark.parametrize(
    ("total", "free", "status"), [(100, 50, "ok"), (100, 4, "warn"), (400, 10, "warn"), (100, 0.5, "fail")]
)
def test_disk(monkeypatch: pytest.MonkeyPatch, total: float, free: float, status: str) -> None:
    usage = Usage(total * GIB, (total - free) * GIB, free * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert machine.disk("disk", Path("/"), 5).status == status


def test_open_files() -> None:
    assert machine.open_files(1024).status is Status.WARN
    assert machine.open_files(8192).status is Status.OK
    assert machine.open_files(resource.RLIM_INFINITY).found == "unlimited"


@pytest.mark.parametrize(
    ("environment", "status", "part"),
    [
        ({}, Status.OK, "none set"),
        ({"http_proxy": "http://p:3128"}, Status.WARN, "http_proxy would also take 127.0.0.1 and localhost and judge"),
        ({"HTTPS_PROXY": "http://p:3128", "no_proxy": "localhost"}, Status.WARN, "would also take 127.0.0.1"),
        ({"http_proxy": "http://p:3128", "no_proxy": "127.0.0.1,localhost"}, Status.WARN, "would also take judge"),
        ({"http_proxy": "http://p:3128", "no_proxy": "127.0.0.1,localhost,judge"}, Status.OK, "loopback is excepted"),
    ],
)
def test_proxies(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], status: Status, part: str) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    finding = services.proxies(["judge"])
    assert finding.status is status and part in finding.found


@pytest.mark.parametrize(
    ("value", "root", "status"), [("0", False, "ok"), ("1", True, "ok"), ("1", False, "warn"), ("3", True, "warn")]
)
def test_ptrace_scope(tmp_path: Path, value: str, root: bool, status: str) -> None:
    path = tmp_path / "ptrace_scope"
    path.write_text(value + "\n")
    assert machine.ptrace_scope(path, root).status == status
    assert machine.ptrace_scope(tmp_path / "none", root).status == "ok"


@pytest.mark.parametrize(
    ("available_gib", "limit", "status", "found"),
    [
        (16, None, "ok", "16.0 GiB available"),
        (4, None, "warn", "4.0 GiB available"),
        (16, "max", "ok", "16.0 GiB available"),
        (16, str(2 * GIB), "warn", "2.0 GiB available (the container's limit)"),
    ],
)
def test_memory(tmp_path: Path, available_gib: int, limit: str | None, status: str, found: str) -> None:
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text(f"MemTotal:  99 kB\nMemAvailable:   {available_gib << 20} kB\n")
    if limit is not None:
        cgroup.write_text(limit + "\n")
    finding = machine.memory(meminfo, cgroup)
    assert (finding.status, finding.found) == (status, found)


def test_quickstart_model(tmp_path: Path) -> None:
    assert "launch/quickstart.sh" in machine.quickstart_model(str(tmp_path / "none")).advice
    (tmp_path / "config.json").touch()
    assert machine.quickstart_model(str(tmp_path)).status is Status.WARN
    (tmp_path / "tokenizer.json").touch()
    assert machine.quickstart_model(str(tmp_path)).status is Status.OK


def test_report() -> None:
    findings = [Finding("a", Status.OK, "fine"), Finding("b", Status.WARN, "odd", "do this")]
    assert doctor.render(findings).splitlines() == [
        "ok    a                 fine",
        "warn  b                 odd",
        "                        → do this",
    ]
    assert doctor.as_dict(findings)["status"] == "warn"
    assert json.loads(json.dumps(doctor.as_dict(findings)))["findings"][0]["name"] == "a"
    assert doctor.exit_code(findings) == 0
    assert doctor.exit_code([*findings, Finding("c", Status.FAIL, "broken", "mend")]) == 1


def test_this_machine_is_diagnosed_without_torch() -> None:
    program = (
        "import sys\n"
        "from openrlhf_medical import doctor\n"
        "findings = doctor.diagnose()\n"
        "assert not {'torch', 'ray', 'vllm', 'openrlhf'} & set(sys.modules)\n"
        "assert all(finding.advice for finding in findings if finding.status != 'ok'), findings\n"
        "print(len({finding.name for finding in findings}))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert int(done.stdout) == 19


@pytest.mark.parametrize(
    ("found", "status", "part"),
    [
        ([Gpu(80 * GIB), Gpu(80 * GIB)], "ok", "2 x 80.0 GiB, free"),
        ([Gpu(80 * GIB), Gpu(48 * GIB, 9 * GIB)], "warn", "1 x 48.0 GiB; in use: 1 (9.0 GiB)"),
        ([Gpu(None)], "warn", "1, of unknown size"),
        ([], "fail", "none can be used"),
    ],
)
def test_gpus(found: list[Gpu], status: str, part: str) -> None:
    finding = software.gpus(found)
    assert finding.status == status and part in finding.found and bool(finding.advice) == (status != "ok")


def test_gpus_are_looked_at_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    monkeypatch.setattr(hardware, "read_gpus", lambda: [("0", "GPU-a", Gpu(48 * GIB)), ("1", "GPU-b", Gpu(80 * GIB))])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    [finding] = [finding for finding in doctor.diagnose() if finding.name == "gpus"]
    assert finding.found == "1 x 80.0 GiB, free"


@pytest.mark.parametrize(
    ("limit", "root", "status"), [(4096, False, "warn"), (4096, True, "ok"), (65536, False, "ok"), (-1, False, "ok")]
)
def test_processes(limit: int, root: bool, status: str) -> None:
    assert machine.processes(limit, root).status == status


@pytest.mark.parametrize(
    ("has_gpu", "limit", "status"), [(True, 8 << 20, "warn"), (False, 8 << 20, "ok"), (True, -1, "ok")]
)
def test_locked_memory(has_gpu: bool, limit: int, status: str) -> None:
    assert machine.locked_memory(has_gpu, limit).status == status


def test_ports() -> None:
    assert services.ports(lambda port: True).status is Status.OK
    finding = services.ports(lambda port: port != 8265)
    assert finding.status is Status.WARN and "8265 (Ray's dashboard" in finding.found and "ss -ltnp" in finding.advice


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_somebody_listens_on_is_taken(listening: int) -> None:
    assert not services.port_is_free(listening)
    with socket.socket() as sock:
        sock.bind(("", 0))
        port = sock.getsockname()[1]
    assert services.port_is_free(port)


def test_ray(listening: int, tmp_path: Path) -> None:
    def found(address: str | None) -> Finding:
        environment = {} if address is None else {"RAY_ADDRESS": address}
        return services.ray_cluster(environment, tmp_path / "current")

    assert "starts its own Ray" in found(None).found
    for address in (f"127.0.0.1:{listening}", f"ray://127.0.0.1:{listening}", f"http://127.0.0.1:{listening}"):
        assert (found(address).status, found(address).found) == (Status.OK, f"{address} answers")
    for address in ("127.0.0.1:1", "auto", "127.0.0.1:no-port"):
        assert found(address).status is Status.FAIL and "ray start --head" in found(address).advice
    (tmp_path / "current").write_text(f"127.0.0.1:{listening}")
    assert found("auto").status is Status.OK
    assert f"export RAY_ADDRESS=127.0.0.1:{listening}" in found(None).found


@pytest.mark.parametrize(
    ("programs", "scontrol", "status", "part"),
    [
        ((), "", "ok", "not here"),
        (("sbatch", "srun"), "", "warn", "not on PATH: scontrol"),
        (services.SLURM, "echo 'Slurmctld(primary) at head is UP'", "ok", "Slurmctld(primary) at head is UP"),
        (services.SLURM, "echo 'Slurmctld(primary) at head is DOWN'", "warn", "is DOWN"),
        (services.SLURM, "echo 'a: long story' >&2; echo 'b: no controller' >&2; exit 1", "warn", "b: no controller"),
        (services.SLURM, "exec sleep 30", "warn", "did not answer within 0.2 s"),
    ],
)
def test_slurm(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    programs: tuple[str, ...],
    scontrol: str,
    status: str,
    part: str,
) -> None:
    for name in programs:
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{scontrol}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(services, "ANSWER_TIMEOUT_S", 0.2 if "sleep" in scontrol else 30.0)
    finding = services.slurm(lambda name: name if name in programs else None)
    assert finding.status == status and part in finding.found and "long story" not in finding.found
