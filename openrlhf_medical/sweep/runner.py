"""Brings the runs of a sweep to their end: starts, watches, writes down. Knows nothing of where they run."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from openrlhf_medical.config import dump_config, load_config
from openrlhf_medical.errors import RunError, StuckError, UserError
from openrlhf_medical.resuming import differences
from openrlhf_medical.sweep.folder import Record, State, SweepFolder, read_json, write_text
from openrlhf_medical.sweep.outcome import outcome
from openrlhf_medical.sweep.plan import PlannedRun
from openrlhf_medical.sweep.submitters import Job, JobState, Seen, Submitter

_SILENCE_S = 600.0
_STOP_POLL_S = 0.5
_AFTER_GRACE_S = 60.0


class View(Protocol):
    """Who is told of progress."""

    def started(self, run: str, record: Record) -> None: ...
    def ended(self, run: str, record: Record) -> None: ...
    def look(self, records: Mapping[str, Record]) -> None: ...


class Runner:
    """One call of ``sweep``. Nothing is started twice in it: what fails or is interrupted waits for the next call."""

    def __init__(
        self,
        sweep: str,
        runs: Sequence[PlannedRun],
        folder: SweepFolder,
        submitter: Submitter,
        view: View,
        *,
        concurrency: int,
        grace_s: float,
        run_timeout_s: float | None = None,
        retry_failed: bool = False,
        poll_s: float = 1.0,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._sweep, self._folder, self._submitter, self._view = sweep, folder, submitter, view
        self._runs = {run.name: run for run in runs}
        self._concurrency, self._grace_s, self._run_timeout_s = concurrency, grace_s, run_timeout_s
        self._retry_failed, self._poll_s, self._clock, self._sleep = retry_failed, poll_s, clock, sleep
        self.records = {run.name: folder.record(run.name) for run in runs}
        self._waiting: list[str] = []
        self._told_to_stop: dict[str, float] = {}
        self._answered = clock()

    def prepare(self) -> int:
        """Sorts the runs into those that are done, under way, and waiting; returns how many there is work with.

        Raises:
            UserError: a run was done with another configuration, or is under way elsewhere.
        """
        for name, run in self._runs.items():
            record = self.records[name]
            if run.config is None and record.state in (State.FINISHED, State.INTERRUPTED, State.RUNNING):
                raise UserError(f"{name} is {record.state}, but cannot be started any more: {run.problem}")
            if run.config is None:
                self._note(name, Record(State.INVALID, attempt=record.attempt, reason=run.problem))
                continue
            if record.state in (State.FINISHED, State.RUNNING):  # of one that goes on, train itself sees to it
                self._refuse_changed(run)
            if record.state is State.RUNNING and record.submitter != self._submitter.kind:
                raise UserError(f"{name} is under way with --submit {record.submitter}: go on with that, or end it "
                                f"first with openrlhf-medical sweep stop {self._folder.path}")  # fmt: skip
            done = record.state is State.FINISHED or (record.state is State.FAILED and not self._retry_failed)
            if not done and record.state is not State.RUNNING:
                self._waiting.append(name)
        return len(self._waiting) + len(self._under_way())

    def run(self) -> None:
        """Until every run has ended.

        Raises:
            RunError: the place where they run does not answer any more.
            KeyboardInterrupt: runs that would end with this process were stopped before.
        """
        before = set(self._under_way())  # by a sweep that was killed: what it left unfinished may be started again
        try:
            while self._waiting or self._under_way():
                self._fill()
                for name in self._look():
                    if name in before and self.records[name].state is State.INTERRUPTED:
                        self._waiting.append(name)
                    before.discard(name)
                self._view.look(self.records)
                if self._waiting or self._under_way():
                    self._sleep(self._poll_s)
        except BaseException:
            if not self._submitter.outlives:
                with _undisturbed():
                    self._stop_all()
            raise

    def _under_way(self) -> list[str]:
        return [name for name, record in self.records.items() if record.state is State.RUNNING]

    def _fill(self) -> None:
        while self._waiting and len(self._under_way()) < self._concurrency:
            self._start(self._waiting.pop(0))

    def _start(self, name: str) -> None:
        run, folder = self._runs[name], self._folder
        assert run.config is not None
        attempt = self.records[name].attempt + 1
        write_text(folder.config_file(name), dump_config(run.config))
        folder.exit_file(name).unlink(missing_ok=True)
        if run.command is not None:
            folder.run_folder(name).mkdir(exist_ok=True)  # train makes its own
        job = Job(
            name=f"{self._sweep}-{folder.token()}.{name}.{attempt}",
            words=run.words(folder.config_file(name), folder.run_folder(name)),
            config=run.config if run.command is None else None,
            config_file=folder.config_file(name),
            log_file=folder.log_file(name),
            exit_file=folder.exit_file(name),
            grace_s=self._grace_s,
        )
        record = Record(State.RUNNING, self._submitter.kind, None, attempt)
        try:
            self._note(name, replace(record, job_id=self._submitter.submit(job)))
        except RunError as error:
            self._note(name, replace(record, state=State.FAILED, ended=self._clock(), reason=str(error)))
            self._view.ended(name, self.records[name])
            return
        self._view.started(name, self.records[name])

    def _look(self) -> list[str]:
        """Asks for all that are under way; returns those that have ended."""
        if not (under_way := self._under_way()):
            return []
        try:
            seen = self._submitter.poll([self.records[name].job_id or "" for name in under_way])
            self._answered = self._clock()
        except RunError as error:
            if self._clock() - self._answered > _SILENCE_S:
                raise RunError(f"{error}; runs that are under way there go on: call the sweep again later") from None
            return []
        ended = []
        for name in under_way:
            found = seen[self.records[name].job_id or ""]
            if found.state in (JobState.ENDED, JobState.GONE):
                self._settle(name, found)
                ended.append(name)
            elif found.state is JobState.RUNNING:
                self._watch_time(name)
        return ended

    def _settle(self, name: str, seen: Seen) -> None:
        record = settled(self._folder, name, self.records[name], seen, self._clock())
        if name in self._told_to_stop and record.state is not State.FINISHED:
            reason = f"stopped after run_timeout_s ({self._run_timeout_s:g} s)"
            record = replace(record, state=State.FAILED, reason=reason)
        self._note(name, record)
        self._view.ended(name, record)

    def _watch_time(self, name: str) -> None:
        record = self.records[name]
        if record.started is None:
            self._note(name, replace(record, started=self._clock()))  # what waits in a queue has not begun
            return
        if self._run_timeout_s is None or self._clock() - record.started <= self._run_timeout_s:
            return
        if name not in self._told_to_stop:
            self._told_to_stop[name] = self._clock()
            self._submitter.stop(record.job_id or "")
        elif self._clock() - self._told_to_stop[name] > self._grace_s + _AFTER_GRACE_S:
            late_s = self._grace_s + _AFTER_GRACE_S
            raise StuckError(f"{name} took longer than run_timeout_s and has not ended {late_s:g} s after it was told "
                             f"to: see job {record.job_id}")  # fmt: skip

    def _stop_all(self) -> None:
        self._waiting.clear()
        for name in self._under_way():
            self._submitter.stop(self.records[name].job_id or "")
        deadline = self._clock() + self._grace_s + _AFTER_GRACE_S
        while self._under_way() and self._clock() < deadline:
            self._look()
            self._sleep(min(self._poll_s, 0.2))

    def _note(self, name: str, record: Record) -> None:
        self.records[name] = record
        self._folder.save(name, record)

    def _refuse_changed(self, run: PlannedRun) -> None:
        """A run counts, or is watched, only with what it was trained with."""
        assert run.config is not None
        file = self._folder.config_file(run.name)
        if not file.exists() or file.read_text(encoding="utf-8") == dump_config(run.config):
            return
        then = load_config(file)
        changed = differences(then, run.config)
        if then.run.steps != run.config.run.steps:  # what may change when a run goes on, but this one does not
            changed.append(f"run.steps was {then.run.steps} and is {run.config.run.steps}")
        if changed:
            raise UserError(f"{run.name} is {self.records[run.name].state} with another configuration ({file}): "
                            f"{'; '.join(changed)}; give the sweep another name, or move that run's folder and its "
                            "files in jobs away")  # fmt: skip


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C does not cut short what the first one asked for."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def settled(folder: SweepFolder, name: str, record: Record, seen: Seen, now: float) -> Record:
    """The record of a run whose job is no more."""
    ended = read_json(folder.exit_file(name))
    state, reason = outcome(seen, ended, folder.status(name), folder.last_words(name))
    return replace(record, state=state, ended=now, reason=reason)


def stop_jobs(
    folder: SweepFolder,
    submitter: Submitter,
    runs: Sequence[str],
    deadline_s: float,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Stops what is under way at this place, without a runner, and writes down how it ended.

    Raises StuckError that names what has not ended in time.
    """
    left = {name: record for name in runs if (record := folder.record(name)).state is State.RUNNING
            and record.submitter == submitter.kind and record.job_id}  # fmt: skip
    for record in left.values():
        submitter.stop(record.job_id or "")
    deadline = clock() + deadline_s
    while left:
        seen = submitter.poll([record.job_id or "" for record in left.values()])
        for name, record in list(left.items()):
            if (found := seen[record.job_id or ""]).state in (JobState.ENDED, JobState.GONE):
                folder.save(name, settled(folder, name, record, found, clock()))
                del left[name]
        if left and clock() > deadline:
            raise StuckError(f"{', '.join(left)} did not end {deadline_s:g} s after they were told to")
        if left:
            sleep(_STOP_POLL_S)
