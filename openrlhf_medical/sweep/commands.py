"""``openrlhf-medical sweep`` and its status, summary and stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from openrlhf_medical.config import RunConfig, check_hardware
from openrlhf_medical.errors import StuckError, UserError
from openrlhf_medical.sweep import plan, shared, view
from openrlhf_medical.sweep.folder import Record, State, SweepFolder
from openrlhf_medical.sweep.runner import Runner, stop_jobs
from openrlhf_medical.sweep.spec import SweepFile, SweepSpec, read_sweep
from openrlhf_medical.sweep.submitters import LocalSubmitter, Submitter
from openrlhf_medical.sweep.summary import FAILED, summarise, write_summary

SHOWN_METRICS = 3
"""Of the summary, in the terminal: all of them are in the files."""

_STOP_POLL_S = 0.5
_AFTER_GRACE_S = 60.0


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep that was read: its file, its folder, its runs (checked without the shared judge's address)."""

    file: SweepFile
    folder: SweepFolder
    runs: Sequence[plan.PlannedRun]

    @property
    def spec(self) -> SweepSpec:
        return self.file.spec

    def records(self) -> dict[str, Record]:
        return {run.name: self.folder.record(run.name) for run in self.runs}


def open_sweep(where: Path, submit: str | None = None) -> Sweep:
    """A sweep by its file, or by its folder, which keeps a copy of the file.

    Args:
        submit: local also checks every configuration against this machine.

    Raises:
        UserError: a mistake that concerns the whole sweep.
    """
    if where.is_dir() and not (where / "sweep.yaml").exists():
        raise UserError(f"{where} has no sweep.yaml: give the folder of a sweep, or its file")
    file = read_sweep(where / "sweep.yaml" if where.is_dir() else where)
    folder = SweepFolder(file.spec.folder)
    return Sweep(file, folder, plan.plan(file, _shared(file, folder, {}), _check if submit == "local" else _no_check))


def _shared(file: SweepFile, folder: SweepFolder, judge: Mapping[str, Any]) -> dict[str, Any]:
    return {**shared.data_keys(file.spec.prepare, folder), **judge}


def _no_check(config: RunConfig) -> None:
    """The machine that submits is not the one that trains."""


def _check(config: RunConfig) -> None:
    from openrlhf_medical import devices
    from openrlhf_medical.models import check_model_folder

    check_hardware(config, devices.has_gpu() or "RAY_ADDRESS" in os.environ)
    check_model_folder(config.actor.model_name_or_path)


def submitter_of(kind: str, spec: SweepSpec) -> Submitter:
    """Raises UserError where there is no such place."""
    if kind == "local":
        return LocalSubmitter()
    from openrlhf_medical.sweep.remote import RaySubmitter, SlurmSubmitter

    if kind == "slurm":
        if missing := [name for name in ("sbatch", "squeue", "scontrol", "scancel") if shutil.which(name) is None]:
            raise UserError(f"--submit slurm needs {', '.join(missing)}, not on this machine's PATH: call it where you "
                            "submit jobs")  # fmt: skip
        return SlurmSubmitter(spec.slurm_script, spec.sbatch_options)
    from openrlhf_medical.submit import Cluster

    return RaySubmitter(Cluster(spec.ray_address), Path.cwd())


def _refuse_unreachable_judge(kind: str, spec: SweepSpec) -> None:
    """A judge of the sweep's own listens on loopback."""
    if spec.judge is None or spec.judge.urls or kind == "local":
        return
    if kind == "slurm" or not spec.ray_address.startswith(("http://127.0.0.1:", "http://localhost:")):
        raise UserError(f"judge has no urls, and runs of --submit {kind} cannot reach a judge that the sweep starts "
                        "here: start one with serve-judge --host 0.0.0.0 --token-file FILE and give judge.urls, or "
                        "remove judge, so that each run starts its own")  # fmt: skip


def run(opened: Sweep, kind: str, *, retry_failed: bool) -> str | None:
    """Everything that is not finished. Returns what to tell of runs that did not finish, None where all did.

    Raises:
        UserError: another sweep works on the folder; runs were done with another configuration.
        KeyboardInterrupt: Ctrl-C; runs on this machine were stopped before.
    """
    spec, folder = opened.spec, opened.folder
    _refuse_unreachable_judge(kind, spec)
    submitter = submitter_of(kind, spec)
    _tell_invalid(opened.runs)
    wanted = spec.judge if _works(opened, retry_failed) else None
    with folder.lock(), shared.judge_keys(wanted, folder) as judge:
        if spec.prepare is not None and (prepared := shared.prepare_once(spec.prepare, folder)):
            print(prepared, file=sys.stderr)
        check = _check if kind == "local" else _no_check
        runs = plan.plan(opened.file, _shared(opened.file, folder, judge), check) if judge else opened.runs
        bar = view.SweepView(folder, spec.concurrency)
        runner = Runner(
            spec.name, runs, folder, submitter, bar,
            concurrency=spec.concurrency, grace_s=spec.stop_grace_s, run_timeout_s=spec.run_timeout_s,
            retry_failed=retry_failed, poll_s=spec.poll_s or (0.5 if kind == "local" else 5.0),
        )  # fmt: skip
        bar.total = runner.prepare()
        _keep_file(opened)
        _tell_begin(runner.records, bar.total, folder)
        with bar:
            try:
                runner.run()
            finally:
                _write(opened, runner.records)
    show_summary(opened)
    return _tell_failed(opened, runner.records)


def _works(opened: Sweep, retry_failed: bool) -> bool:
    """Whether anything is to be run: without that no judge is started."""
    done = (State.FINISHED,) if retry_failed else (State.FINISHED, State.FAILED)
    records = opened.records()
    return any(run.config is not None and records[run.name].state not in done for run in opened.runs)


def _keep_file(opened: Sweep) -> None:
    kept = opened.folder.path / "sweep.yaml"
    if opened.file.path.resolve() != kept.resolve():
        shutil.copyfile(opened.file.path, kept)


def _tell_invalid(runs: Sequence[plan.PlannedRun]) -> None:
    told: dict[str, str] = {run.variant.name: run.problem for run in runs if run.problem}
    for variant, problem in told.items():
        print(f"warning: variant {variant} cannot be started: {problem}", file=sys.stderr)


def _tell_begin(records: Mapping[str, Record], work: int, folder: SweepFolder) -> None:
    finished = sum(record.state is State.FINISHED for record in records.values())
    failed = sum(record.state in FAILED for record in records.values())
    print(f"{len(records)} runs in {folder.path}: {finished} finished before, {failed} failed, {work} to do",
          file=sys.stderr)  # fmt: skip


def _tell_failed(opened: Sweep, records: Mapping[str, Record]) -> str | None:
    rest = {name: record for name, record in records.items() if record.state is not State.FINISHED}
    if not rest:
        return None
    for name, record in rest.items():
        log = opened.folder.log_file(name)
        print(f"{record.state}: {name}: {record.reason}" + (f" (log {log})" if log.exists() else ""), file=sys.stderr)
    again = f"openrlhf-medical sweep --config {opened.file.path}"
    return (f"{len(rest)} of {len(records)} runs did not finish: {', '.join(rest)}; what was interrupted goes on with "
            f"{again}, what failed is tried again with --retry-failed")  # fmt: skip


def _write(opened: Sweep, records: Mapping[str, Record]) -> dict[str, Any]:
    spec = opened.spec
    variants = list({run.variant.name: run.variant for run in opened.runs}.values())
    found = summarise(spec.name, opened.runs, records, opened.folder, spec.metrics,
                      plan.reference(opened.file, variants))  # fmt: skip
    write_summary(found, opened.folder)
    return found


def show_plan(opened: Sweep) -> None:
    """``--dry-run``."""
    table = Table(title=f"Sweep {opened.spec.name}", title_justify="left")
    for column in ("run", "changes", "calls", "problem"):
        table.add_column(column, overflow="fold")
    for run in opened.runs:
        changes = "\n".join(f"{key} {json.dumps(value, default=str)}" for key, value in run.variant.changes.items())
        table.add_row(run.name, changes, "train" if run.command is None else " ".join(run.command), run.problem or "")
    view.show(table)
    problems = sum(run.problem is not None for run in opened.runs)
    print(f"{len(opened.runs)} runs, {problems} of them cannot be started; nothing was started", file=sys.stderr)


def show_status(opened: Sweep) -> None:
    _refuse_unknown(opened)
    records = opened.records()
    view.show(view.status_table(opened.runs, records, opened.folder, time.time()))
    states = [record.state for record in records.values()]
    print(", ".join(f"{states.count(state)} {state}" for state in State if state in states))
    holder = opened.folder.holder()
    print(f"a sweep is at work: process {holder.get('pid')} on {holder.get('host')}" if holder else
          f"no sweep is at work; go on with: openrlhf-medical sweep --config {opened.file.path}")  # fmt: skip


def show_summary(opened: Sweep) -> None:
    """Writes the three files and shows the first metrics of them."""
    _refuse_unknown(opened)
    found = _write(opened, opened.records())
    view.show(view.summary_table(found, found["metrics"][:SHOWN_METRICS]))
    print(f"All figures: {opened.folder.path}/summary.csv, summary.html, sweep.json")


def _refuse_unknown(opened: Sweep) -> None:
    if not opened.folder.jobs.exists():
        raise UserError(f"{opened.folder.path} holds no sweep yet: openrlhf-medical sweep --config {opened.file.path}")


def stop(opened: Sweep) -> list[str]:
    """Ends the sweep that works on the folder, if any, and all its runs; returns the names of those.

    Raises:
        UserError: it works on another machine. StuckError: something does not end.
    """
    folder, spec = opened.folder, opened.spec
    under_way = {name: record for name, record in opened.records().items() if record.state is State.RUNNING}
    patience_s = spec.stop_grace_s + _AFTER_GRACE_S
    if (holder := folder.holder()) is not None:
        if holder.get("host") != socket.gethostname():
            raise UserError(f"the sweep is process {holder.get('pid')} on {holder.get('host')}: call this there")
        os.kill(int(holder["pid"]), signal.SIGTERM)
        deadline = time.monotonic() + patience_s
        while folder.holder() is not None:
            if time.monotonic() > deadline:
                raise StuckError(f"the sweep (process {holder['pid']}) has not ended {patience_s:g} s after SIGTERM")
            time.sleep(_STOP_POLL_S)
    with folder.lock():
        for kind in sorted({record.submitter or "local" for record in under_way.values()}):
            stop_jobs(folder, submitter_of(kind, spec), list(under_way), patience_s)
    return list(under_way)
