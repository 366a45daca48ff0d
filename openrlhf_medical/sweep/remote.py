"""Ray and Slurm as places for jobs. Both run them, queue them and know their state; here they are only asked."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openrlhf_medical.errors import RunError, UserError
from openrlhf_medical.sweep.submitters import Job, JobState, Seen

if TYPE_CHECKING:
    from openrlhf_medical.submit import Cluster

_ANSWER_S = 60.0
_KNOWN_END = ("COMPLETED", "FAILED")


class RaySubmitter:
    """Jobs of a running Ray cluster. An id is the job's name, which Ray refuses to give twice."""

    kind = "ray"
    outlives = True

    def __init__(self, cluster: Cluster, working_dir: Path) -> None:
        self._cluster, self._working_dir = cluster, working_dir

    def submit(self, job: Job) -> str:
        from openrlhf_medical import submit as ray_jobs

        if self._see(job.name).state in (JobState.QUEUED, JobState.RUNNING):
            return job.name
        if job.config is not None:
            entrypoint = ray_jobs.training(sys.executable, job.config_file, [], job.config, self._working_dir, "auto")
        else:
            entrypoint = "exec " + shlex.join(job.watched())
        request = ray_jobs.Job(
            f"{entrypoint} >> {shlex.quote(str(job.log_file))} 2>&1", self._working_dir, job.name,
            stop_grace_s=int(job.grace_s),
        )  # fmt: skip
        try:
            return self._cluster.submit(request)
        except UserError as error:
            raise RunError(str(error)) from None

    def poll(self, job_ids: Sequence[str]) -> Mapping[str, Seen]:
        return {job_id: self._see(job_id) for job_id in job_ids}

    def _see(self, job_id: str) -> Seen:
        from openrlhf_medical.submit import exit_code

        try:
            details = self._cluster.details(job_id)
        except UserError:  # this cluster has no such job
            return Seen(JobState.GONE)
        if details.status.is_terminal():
            return Seen(JobState.ENDED, exit_code(details))
        return Seen(JobState.QUEUED if str(details.status) == "PENDING" else JobState.RUNNING)

    def stop(self, job_id: str) -> None:
        """On a thread: the cluster's own ``stop`` waits for the end."""

        def stop() -> None:
            with contextlib.suppress(UserError, RunError):  # whether it ended is asked with ``poll``
                self._cluster.stop(job_id)

        threading.Thread(target=stop, name=f"stop-{job_id}", daemon=True).start()


class SlurmSubmitter:
    """Jobs of Slurm's queue, one a run: ``launch/slurm.sbatch`` for train, the words themselves for another command.
    What Slurm requeues is still under way."""

    kind = "slurm"
    outlives = True

    def __init__(self, script: Path, options: Sequence[str]) -> None:
        self._script, self._options = script, list(options)

    def submit(self, job: Job) -> str:
        if there := _call("squeue", "--me", "--noheader", f"--name={job.name}", "--format=%i").split():
            return there[0]
        own = [f"--job-name={job.name}", f"--output={job.log_file}", "--open-mode=append"]
        if job.config is not None:
            if not self._script.exists():
                raise UserError(
                    f"{self._script} does not exist: set slurm_script to this project's launch/slurm.sbatch"
                )
            what = [str(self._script), "--python", sys.executable, "--config", str(job.config_file), "--resume", "auto"]
        else:
            what = [f"--wrap=exec {shlex.join(job.watched())}"]
        return _call("sbatch", "--parsable", *own, *self._options, *what).strip().partition(";")[0]

    def poll(self, job_ids: Sequence[str]) -> Mapping[str, Seen]:
        lines = _call("squeue", "--me", "--noheader", "--format=%i %T").splitlines()
        queued = dict(line.split(maxsplit=1) for line in lines if " " in line)
        return {job_id: self._see(job_id, queued.get(job_id)) for job_id in job_ids}

    def _see(self, job_id: str, state: str | None) -> Seen:
        if state is not None:
            waits = state.strip() in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")
            return Seen(JobState.QUEUED if waits else JobState.RUNNING)
        try:
            words = _call("scontrol", "--oneliner", "show", "job", job_id).split()
        except RunError:  # Slurm forgets a job some minutes after its end
            return Seen(JobState.GONE)
        told = dict(word.split("=", 1) for word in words if "=" in word)
        if told.get("JobState", "").startswith("CANCELLED"):
            return Seen(JobState.ENDED, 128 + signal.SIGTERM)
        if told.get("JobState") in _KNOWN_END:
            code, _, number = told.get("ExitCode", "0:0").partition(":")
            return Seen(JobState.ENDED, int(code) or (128 + int(number) if int(number) else 0))
        return Seen(JobState.ENDED)  # TIMEOUT, NODE_FAIL …: the run's own files say how far it came

    def stop(self, job_id: str) -> None:
        for options in (("--state=PENDING",), ("--batch", "--signal=TERM", "--state=RUNNING")):
            with contextlib.suppress(RunError):  # one that has ended
                _call("scancel", *options, job_id)


def _call(*words: str) -> str:
    """Standard output of one of Slurm's commands. Raises UserError where there is no Slurm, RunError where it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_ANSWER_S)
    except FileNotFoundError:
        raise UserError(f"--submit slurm needs {words[0]}, which is not on this machine's PATH") from None
    except subprocess.TimeoutExpired:
        raise RunError(f"{words[0]} has not answered within {_ANSWER_S:g} s") from None
    if done.returncode:
        raise RunError(f"{words[0]} failed: {' '.join((done.stderr or done.stdout).split())[-500:]}")
    return done.stdout
