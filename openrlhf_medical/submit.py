"""Training as a job of a running Ray cluster: submitted, followed and stopped through Ray's job API.

What travels: the working directory (code and configurations), without ``LEFT_BEHIND``. What does not, and so has to
lie on a file system that every node sees at the same path: models, data, token files, and the folder of runs.
Relative paths in a configuration are those of the machine that submits, and are made absolute here: a job runs in a
copy of the working directory that Ray deletes.

The worker hook is not among a job's settings: the driver sets it, once (``cluster.connect``), and Ray refuses a
setting that a job and its driver both make.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from openrlhf_medical.config import RunConfig
from openrlhf_medical.config.schema import alternatives, config_schema_keys
from openrlhf_medical.errors import RunError, UserError

LEFT_BEHIND = (
    "/.venv",
    "/models",
    "/runs",
    "/data",
    ".git",
    "__pycache__",
    ".*_cache",
    "*.egg-info",
    "*.token",
    ".env",
)
"""Of the working directory, in the manner of .gitignore; what its own .gitignore names stays behind as well."""

MODEL_KEYS = ("actor.model_name_or_path", "critic.model_name_or_path")
"""Keys that name a folder or a model of a hub."""

STOP_GRACE_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
"""Read by Ray in the process that watches over a job: seconds between SIGTERM and SIGKILL, 3 where it is not set.
A job's own environment reaches that process."""

SET_BY_THE_DRIVER = ("TOKENIZERS_PARALLELISM", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE")
"""Variables of ``cluster.connect``; Ray raises where a job sets them, too."""

NO_AGENT = "No available agent"
"""Ray 2.55 answers this for some seconds after the cluster's start, and while its agent is restarted."""

STOPPED = 128 + signal.SIGTERM
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 5.0
_AWAY_S = 60.0
_AFTER_GRACE_S = 30.0


@dataclass(frozen=True, slots=True)
class Job:
    """What Ray is asked to run."""

    entrypoint: str
    working_dir: Path
    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    cpus: float | None = None
    memory_gib: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    stop_grace_s: int = 600

    def request(self) -> dict[str, Any]:
        """Keyword arguments of ``JobSubmissionClient.submit_job``."""
        return {
            "entrypoint": self.entrypoint,
            "submission_id": self.name,
            "runtime_env": {
                "working_dir": str(self.working_dir),
                "excludes": list(LEFT_BEHIND),
                "env_vars": {STOP_GRACE_VARIABLE: str(self.stop_grace_s), **self.environment},
            },
            "entrypoint_num_cpus": self.cpus,
            "entrypoint_memory": None if self.memory_gib is None else int(self.memory_gib * 2**30),
            "entrypoint_resources": dict(self.resources) or None,
        }


def job_name(run: str) -> str:
    """A name that no other job has: a call that is repeated cannot start a second one."""
    return f"{run}-{secrets.token_hex(4)}"


def training(
    python: str, config_file: Path, words: Sequence[str], config: RunConfig, base: Path, resume: str | None = None
) -> str:
    """The command line of the job. ``config`` is what file and words resolve to, ``base`` the working directory.

    ``exec``: the shell that Ray starts gives way to the driver, which so is the one that gets the signal.
    """
    absolute = [f"--{key}={path}" for key, path in absolute_paths(config, Path.cwd()).items()]
    command = [python, "-m", "openrlhf_medical", "train", "--config", str(_seen_from(base, config_file))]
    command += ["--resume", resume] if resume else []
    return "exec " + shlex.join([*command, *words, *absolute])


def absolute_paths(config: RunConfig, base: Path) -> dict[str, Path]:
    """{key: path} of every relative path of a configuration, and of models that are folders under ``base``."""
    found = {}
    for key, info in config_schema_keys().items():
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        names_folder = key in MODEL_KEYS and value is not None and (base / str(value)).exists()
        is_path = value is not None and Path in alternatives(info.annotation)
        if (names_folder or is_path) and not Path(str(value)).is_absolute():
            found[key] = base / str(value)
    return found


def _seen_from(base: Path, file: Path) -> Path:
    """A file that travels by its place in the copy, another by its full path."""
    file = file.absolute()
    if not file.is_relative_to(base.absolute()):
        return file
    inside = file.relative_to(base.absolute())
    return file if f"/{inside.parts[0]}" in LEFT_BEHIND else inside


def refuse_variables(environment: Mapping[str, str]) -> None:
    """Raises UserError for what the driver, or an option, sets itself."""
    if twice := sorted(set(environment) & set(SET_BY_THE_DRIVER)):
        raise UserError(
            f"--env {', '.join(twice)}: the driver sets this itself, and Ray refuses what both set; leave it out"
        )
    if STOP_GRACE_VARIABLE in environment:
        raise UserError(f"--env {STOP_GRACE_VARIABLE}: give --stop-grace-s instead")


def refuse_lost_folder(folder: Path, here: Path) -> None:
    """Raises UserError in a job of Ray whose run would be written into the copy of the working directory."""
    if "working_dir_files" in here.parts and not folder.is_absolute():
        raise UserError(
            f"run.dir {folder} is relative to {here}, which Ray deletes after the job: give --run.dir an absolute path "
            "on a file system that all nodes share (openrlhf-medical submit does so by itself)"
        )


class Cluster:
    """The job API of a running cluster.

    Raises:
        UserError: nobody answers at ``address``.
    """

    def __init__(self, address: str, deadline_s: float = 30.0) -> None:
        from ray.job_submission import JobSubmissionClient

        if not address.startswith(("http://", "https://")):
            raise UserError(
                f"--address {address!r}: write http://HOST:PORT, the address of Ray's dashboard (port 8265)"
            )
        self.address = address
        _no_proxy_for(urlsplit(address).hostname or "")
        deadline = time.monotonic() + deadline_s
        for pause in _pauses():
            try:
                self._client = JobSubmissionClient(address)
                return
            except (ConnectionError, RuntimeError) as error:
                if time.monotonic() + pause > deadline:
                    raise UserError(
                        f"no Ray cluster answers at {address} ({error}): start one (ray start --head), or give the "
                        "address of its dashboard with --address"
                    ) from None
            time.sleep(pause)

    def submit(self, job: Job, deadline_s: float = 120.0) -> str:
        """Hands the job over and returns its name. A cluster that is not ready yet is asked again.

        Raises:
            RunError: not ready within ``deadline_s``. UserError: Ray refuses the job.
        """
        deadline = time.monotonic() + deadline_s
        for attempt, pause in enumerate(_pauses()):
            try:
                self._client.submit_job(**job.request())
                return job.name
            except (RuntimeError, ConnectionError, OSError) as error:
                told = " ".join(str(error).split())
                if attempt and "already exists" in told:  # the call before this one was heard, its answer was not
                    return job.name
                if isinstance(error, RuntimeError) and NO_AGENT not in told:
                    raise UserError(f"Ray refuses the job: {told[-1000:]}") from None
                if time.monotonic() + pause > deadline:
                    raise RunError(
                        f"the cluster at {self.address} took no job within {deadline_s:g} s ({told[-300:]}): its head "
                        "has no job agent; see dashboard_agent.log in the head's Ray session, and whether the agent's "
                        "port (ray start --dashboard-agent-listen-port) is free"
                    ) from None
            time.sleep(pause)
        raise AssertionError("unreachable")

    def details(self, name: str) -> Any:
        """Ray's JobDetails. Raises UserError where there is no such job, RunError where the cluster is gone."""
        deadline = time.monotonic() + _AWAY_S
        for pause in _pauses():
            try:
                return self._client.get_job_info(name)
            except RuntimeError as error:
                if "does not exist" in str(error):
                    raise UserError(f"no job {name} at {self.address}: see openrlhf-medical submit list") from None
                self._give_up(error, pause, deadline)
            except (ConnectionError, OSError) as error:
                self._give_up(error, pause, deadline)
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _give_up(self, error: Exception, pause: float, deadline: float) -> None:
        if time.monotonic() + pause > deadline:
            raise RunError(f"the cluster at {self.address} has not answered for {_AWAY_S:g} s ({error}); what it runs "
                           "may still be running") from None  # fmt: skip

    def jobs(self) -> list[Any]:
        """JobDetails of all submitted jobs, the oldest first."""
        submitted = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(submitted, key=lambda job: job.start_time or 0)

    def logs(self, name: str) -> str:
        self.details(name)
        return str(self._client.get_job_logs(name))

    def follow(self, name: str, write: Callable[[str], object]) -> Any:
        """Writes the job's output until the job ends, however long that takes, and returns its JobDetails."""
        shown = 0

        async def tail() -> None:
            nonlocal shown
            skip = shown  # a new connection tells everything from the beginning
            async for text in self._client.tail_job_logs(name):
                write(text[skip:])
                shown += len(text[skip:])
                skip = max(0, skip - len(text))

        import aiohttp

        while True:
            with contextlib.suppress(
                RuntimeError, aiohttp.ClientError, OSError
            ):  # whether it still runs is asked below
                asyncio.run(tail())
            if (details := self.details(name)).status.is_terminal():
                write(str(self._client.get_job_logs(name))[shown:])
                return details
            time.sleep(_PAUSE_S)

    def stop(self, name: str) -> Any:
        """Tells the job to save its state and end, waits for it, and returns its JobDetails.

        Raises:
            RunError: it has not ended after the grace that it was submitted with.
        """
        details = self.details(name)
        if details.status.is_terminal():
            return details
        grace_s = float((details.runtime_env or {}).get("env_vars", {}).get(STOP_GRACE_VARIABLE, 3))
        deadline = time.monotonic() + grace_s + _AFTER_GRACE_S
        self._client.stop_job(name)
        while time.monotonic() < deadline:
            if (details := self.details(name)).status.is_terminal():
                return details
            time.sleep(_PAUSE_S)
        raise RunError(f"job {name} has not ended {grace_s + _AFTER_GRACE_S:g} s after it was told to stop")


def exit_code(details: Any) -> int:
    """What ``submit`` ends with: the driver's own code, or 143 for a job that was stopped."""
    status = str(details.status)
    if status == "STOPPED":
        return STOPPED
    if status == "SUCCEEDED":
        return 0
    return details.driver_exit_code or 1


def _pauses() -> Iterator[float]:
    pause = _PAUSE_S
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _no_proxy_for(host: str) -> None:
    """A proxy has no business on loopback, and Ray's client asks every proxy that the environment names."""
    if host in ("localhost", "127.0.0.1", "::1"):
        for name in ("no_proxy", "NO_PROXY"):
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), host]))
