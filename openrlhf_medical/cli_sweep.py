"""``openrlhf-medical sweep``: its options, and what is made of them."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openrlhf_medical.errors import RunError, UserError

if TYPE_CHECKING:
    from openrlhf_medical.sweep.commands import Sweep

sweep_app = typer.Typer(rich_markup_mode=None, add_completion=False)


class Place(StrEnum):
    LOCAL = "local"
    RAY = "ray"
    SLURM = "slurm"


WHERE = Annotated[
    Path | None, typer.Argument(help="The sweep's folder (runs/NAME), or its sweep.yaml.", show_default=False)
]


@sweep_app.callback(invoke_without_command=True)
def sweep(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="The sweep, YAML or JSON.")] = None,
    submit: Annotated[
        Place, typer.Option(help="local: processes here. ray: jobs of a Ray cluster. slurm: jobs of sbatch.")
    ] = Place.LOCAL,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs, check them, start nothing.")] = False,
) -> None:
    """Train many variants of a configuration, each with several seeds, and compare them.

    Every run has its own folder in runs/NAME. The same command goes on where a sweep was ended or killed: what is
    finished is not run again. What fails is told at the end (exit code 1) and stops nothing else. Runs of Ray and Slurm
    go on when this program ends.

    \b
    Examples:
      openrlhf-medical sweep --config configs/sweeps/tiny.yaml
      openrlhf-medical sweep --config configs/sweeps/ablations.yaml --dry-run
      openrlhf-medical sweep --config configs/sweeps/ablations.yaml --submit slurm
      openrlhf-medical sweep status runs/tiny-sweep
      openrlhf-medical sweep stop runs/tiny-sweep
      openrlhf-medical sweep summary runs/tiny-sweep
    """
    if context.invoked_subcommand is not None:
        if config is not None:
            raise UserError(f"write: sweep {context.invoked_subcommand} {config}")
        return
    if config is None:
        raise UserError("sweep needs --config FILE, or one of status, summary, stop")
    from openrlhf_medical.sweep import commands

    for signum in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: runs on this machine are stopped first
        signal.signal(signum, _interrupt)
    opened = commands.open_sweep(config, submit)
    if dry_run:
        commands.show_plan(opened)
        return
    try:
        failed = commands.run(opened, submit, retry_failed=retry_failed)
    except KeyboardInterrupt:
        typer.echo(_how_to_go_on(opened, submit), err=True)
        raise
    if failed:
        raise RunError(failed)


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _how_to_go_on(opened: Sweep, submit: Place) -> str:
    again = f"openrlhf-medical sweep --config {opened.file.path} --submit {submit}"
    if submit is Place.LOCAL:
        return f"stopped; go on with: {again}"
    stop = f"openrlhf-medical sweep stop {opened.file.path}"
    return f"jobs that are under way go on; watch them and start the rest with: {again}; end them with: {stop}"


@sweep_app.command("status")
def status(where: WHERE = None) -> None:
    """How far each run is.

    \b
    Example:
      openrlhf-medical sweep status runs/tiny-sweep
    """
    from openrlhf_medical.sweep import commands

    commands.show_status(commands.open_sweep(_needed(where, "status")))


@sweep_app.command("summary")
def summary(where: WHERE = None) -> None:
    """Write sweep.json, summary.csv and summary.html anew, and show them.

    \b
    Example:
      openrlhf-medical sweep summary runs/tiny-sweep
    """
    from openrlhf_medical.sweep import commands

    commands.show_summary(commands.open_sweep(_needed(where, "summary")))


@sweep_app.command("stop")
def stop(where: WHERE = None) -> None:
    """End a sweep and the runs that are under way, which save their state first.

    \b
    Example:
      openrlhf-medical sweep stop runs/tiny-sweep
    """
    from openrlhf_medical.sweep import commands

    opened = commands.open_sweep(_needed(where, "stop"))
    stopped = commands.stop(opened)
    typer.echo(f"stopped: {', '.join(stopped) or 'nothing was under way'}", file=sys.stderr)


def _needed(where: Path | None, verb: str) -> Path:
    if where is None:
        raise UserError(f"sweep {verb} needs the sweep's folder, or its sweep.yaml")
    return where
