"""A Slurm of its own on this machine: munged, slurmctld and one slurmd a node, with everything in one folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
_START_S = 60.0

SETTINGS = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmctldPort={controller_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=10
MailProg=/bin/true
"""


def why_not() -> str:
    """Why it cannot be started here; empty where it can."""
    if os.geteuid() != 0:
        return "a real Slurm is started by root only"
    if missing := [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]:
        return f"{', '.join(missing)} missing: apt-get install slurm-wlm munge"
    return ""


class Slurm:
    """``run`` calls its commands; ``environment`` is what other programs need to find it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *words: str, **options: object) -> str:
        """Standard output. Raises CalledProcessError."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload]
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return str(done.stdout).strip()

    def state(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` tells, by its names (JobState, Restarts, ExitCode …)."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def logs(self, end: int = 1500) -> str:
        """The end of each daemon's log."""
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-end:]}" for log in self.folder.glob("*.log"))

    def start(self, name: str, *words: str, user: str | None = None) -> None:
        log = (self.folder / f"{name}.log").open("wb")
        with log:
            self.daemons[name] = subprocess.Popen(
                words, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=user, group=user
            )

    def stop(self) -> None:
        """Every daemon by its own pid, the one that was started last first."""
        for process in reversed(self.daemons.values()):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()
            process.wait()


@contextlib.contextmanager
def slurm(nodes: Sequence[str] = ("a", "b"), cpus: int = 2) -> Iterator[Slurm]:
    """Nodes of this name, all of them this machine. Jobs that are left are cancelled at the end."""
    # munged wants no folder above its files that others may write to, pytest's are not of that kind.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    (folder / "state").mkdir()
    cluster = Slurm(folder)
    ports = free_ports(1 + len(nodes))
    lines = [SETTINGS.format(folder=folder, host=socket.gethostname(), controller_port=ports[0])]
    for node, port in zip(nodes, ports[1:], strict=True):
        lines.append(
            f"NodeName={node} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs={cpus}\n"
        )
    lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n")
    (folder / "slurm.conf").write_text("".join(lines))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    try:
        _start_munge(cluster, key)
        cluster.start("slurmctld", "slurmctld", "-D", "-c")
        for node in nodes:
            cluster.start(f"slurmd-{node}", "slurmd", "-D", "-N", node)
        _wait(cluster, "nodes", lambda: cluster.run("sinfo", "-h", "-o", "%T %D") == f"idle {len(nodes)}")
        yield cluster
        _cancel_all(cluster)
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _start_munge(cluster: Slurm, key: Path) -> None:
    folder = cluster.folder / "munge"
    folder.mkdir()
    shutil.chown(folder, "munge", "munge")
    shutil.chown(key, "munge", "munge")
    socket_file = cluster.folder / "munge.socket"
    own = [f"--pid-file={folder}/pid", f"--log-file={folder}/log", f"--seed-file={folder}/seed"]
    cluster.start("munged", "munged", "--foreground", "--force", f"--key-file={key}",
                  f"--socket={folder}/socket", *own, user="munge")  # fmt: skip
    socket_file.symlink_to(folder / "socket")
    _wait(cluster, "munged", (folder / "socket").exists)


def _wait(cluster: Slurm, what: str, ready: object) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        with contextlib.suppress(AssertionError):
            if ready():  # type: ignore[operator]
                return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} not there after {_START_S:g} s\n{cluster.logs()}")
        time.sleep(0.2)


def _cancel_all(cluster: Slurm) -> None:
    for job in cluster.run("squeue", "-h", "-o", "%i").split():
        cluster.run("scancel", "--full", job)
    _wait(cluster, "an empty queue", lambda: not cluster.run("squeue", "-h"))


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
