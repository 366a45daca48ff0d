"""``openrlhf-medical submit``: its options, and what is made of them."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openrlhf_medical.errors import UserError

if TYPE_CHECKING:
    from openrlhf_medical.submit import Cluster

VERBS = {"status": True, "logs": True, "stop": True, "list": False}
"""What can be done with a job that was submitted before, and whether a job has to be named."""


def submit(
    context: typer.Context,
    address: Annotated[str, typer.Option(help="Ray's dashboard, http://HOST:PORT.")] = "http://127.0.0.1:8265",
    config: Annotated[Path | None, typer.Option(help="Configuration, YAML or JSON.")] = None,
    working_dir: Annotated[
        Path, typer.Option(help="Folder that travels to the cluster: code and configurations.")
    ] = Path(),
    python: Annotated[
        str | None, typer.Option(help="Python of the cluster's nodes; by default the path of this one.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for driver and workers, once or more.")] = None,
    resume: Annotated[str | None, typer.Option(help="As of train: auto goes on where the run stopped.")] = None,
    entrypoint_cpus: Annotated[float | None, typer.Option(min=0, help="CPUs that the driver takes.")] = None,
    entrypoint_memory_gib: Annotated[float | None, typer.Option(min=0, help="Memory that the driver takes.")] = None,
    entrypoint_resource: Annotated[
        list[str] | None, typer.Option(help="NAME=AMOUNT of a node's own resource: where the driver runs.")
    ] = None,
    stop_grace_s: Annotated[
        int, typer.Option(min=1, help="Time to save a state when the job is stopped; then it is killed.")
    ] = 600,
    submit_timeout_s: Annotated[float, typer.Option(min=1, help="Time for the cluster to take the job.")] = 120.0,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the job's name and end.")] = False,
) -> None:
    """Train as a job of a running Ray cluster, or ask about such a job.

    \b
    submit --config FILE [--section.key value …]    submit, follow the output, end with the job's exit code
    submit status|logs|stop JOB                     stop: saves a state first, and waits until that is done
    submit list

    The working directory travels, without .venv, models, runs, data and what .gitignore names. Models, data, token
    files and run.dir have to be on a file system that all nodes share; relative paths are those of this machine.
    Ctrl-C ends the following, not the job.

    \b
    Examples:
      openrlhf-medical submit --config configs/quickstart.yaml --run.name on-ray
      openrlhf-medical submit --address http://HEAD:8265 --config configs/quickstart.yaml --no-wait
      openrlhf-medical submit stop JOB
      openrlhf-medical submit --config configs/quickstart.yaml --run.name on-ray --resume auto
    """
    from openrlhf_medical import submit as jobs
    from openrlhf_medical.config import load_config

    words = list(context.args)
    if words and words[0] in VERBS and config is None:
        return _ask(address, words[0], words[1:])
    if config is None:
        raise UserError(f"submit needs --config FILE, or one of {', '.join(VERBS)}")
    settings = load_config(config, words)
    if not (working_dir := working_dir.absolute()).is_dir():
        raise UserError(f"--working-dir {working_dir} is no folder")
    environment = dict(_pair("--env", text) for text in env or [])
    jobs.refuse_variables(environment)
    job = jobs.Job(
        jobs.training(python or sys.executable, config, words, settings, working_dir, resume),
        working_dir,
        jobs.job_name(settings.run.name),
        environment,
        entrypoint_cpus,
        entrypoint_memory_gib,
        {
            name: _number(name, amount)
            for name, amount in (_pair("--entrypoint-resource", r) for r in entrypoint_resource or [])
        },
        stop_grace_s,
    )
    cluster = jobs.Cluster(address)
    name = cluster.submit(job, submit_timeout_s)
    if no_wait:
        typer.echo(name)
        return
    typer.echo(f"submitted {name}; stop it with: openrlhf-medical submit stop {name} --address {address}", err=True)
    _follow(cluster, name)


def _ask(address: str, verb: str, words: list[str]) -> None:
    from openrlhf_medical import submit as jobs

    if len(words) != VERBS[verb]:
        raise UserError(
            f"submit {verb} takes {'the name of one job' if VERBS[verb] else 'nothing more'}, found {words}"
        )
    cluster = jobs.Cluster(address)
    if verb == "list":
        for job in cluster.jobs():
            typer.echo(_line(job))
    elif verb == "status":
        typer.echo(_line(cluster.details(words[0])))
    elif verb == "logs":
        _follow(cluster, words[0])
    else:
        typer.echo(_line(cluster.stop(words[0])))


def _follow(cluster: Cluster, name: str) -> None:
    """Ends with the job's exit code."""
    from openrlhf_medical.submit import exit_code

    try:
        details = cluster.follow(name, _show)
    except KeyboardInterrupt:
        typer.echo(f"job {name} goes on; openrlhf-medical submit stop {name} ends it", err=True)
        raise
    if code := exit_code(details):
        typer.echo(f"job {name}: {details.status}, exit code {code}. {details.message or ''}", err=True)
    raise typer.Exit(code)


def _show(text: str) -> None:
    typer.echo(text, nl=False)


def _line(job: Any) -> str:
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((job.start_time or 0) / 1000))
    return f"{job.submission_id}  {job.status}  since {began}" + (
        f"  exit code {job.driver_exit_code}" if job.driver_exit_code is not None else ""
    )


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UserError(f"{option} {text!r}: write NAME=VALUE")
    return name, value


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--entrypoint-resource {name}={text}: the amount is a number") from None
