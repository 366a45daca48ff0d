"""The runner with a scripted place: how many at once, what is started again, what a kill leaves, what Ctrl-C does."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_medical.errors import RunError, StuckError, UserError
from openrlhf_medical.sweep.folder import Record, State, SweepFolder
from openrlhf_medical.sweep.outcome import outcome
from openrlhf_medical.sweep.plan import PlannedRun, plan
from openrlhf_medical.sweep.runner import Runner, stop_jobs
from openrlhf_medical.sweep.spec import read_sweep
from openrlhf_medical.sweep.submitters import Job, JobState, Seen
from openrlhf_medical.sweep.view import duration, time_left

ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """SIGKILL: nothing of the runner runs after it, so the test also takes its submitter's word for nothing."""


class Place:
    """Jobs that last as many looks as the script says and end with its codes; it outlives any runner."""

    kind = "scripted"

    def __init__(self, script: dict[str, list[tuple[int, int | None]]], outlives: bool = True) -> None:
        self.script, self.outlives = script, outlives
        self.jobs: dict[str, list[Any]] = {}
        self.submitted: list[str] = []
        self.most = 0
        self.refuses: set[str] = set()
        self.silent = 0

    def submit(self, job: Job) -> str:
        run = job.name.split(".")[1]
        if run in self.refuses:
            raise RunError("no room")
        looks, code = self.script[run].pop(0) if len(self.script[run]) > 1 else self.script[run][0]
        self.jobs[job.name] = [looks, code]
        self.submitted.append(run)
        self.most = max(self.most, len([1 for left, _ in self.jobs.values() if left > 0]))
        return job.name

    def poll(self, job_ids: Sequence[str]) -> dict[str, Seen]:
        if self.silent:
            self.silent -= 1
            raise RunError("nobody answers")
        found = {}
        for job_id in job_ids:
            job = self.jobs[job_id]
            job[0] -= 1
            ended = Seen(JobState.ENDED, job[1]) if job[1] is not None else Seen(JobState.GONE)
            found[job_id] = Seen(JobState.RUNNING) if job[0] > 0 else ended
        return found

    def stop(self, job_id: str) -> None:
        self.jobs[job_id] = [min(self.jobs[job_id][0], 2), 143]


class Silent:
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def started(self, run: str, record: Record) -> None:
        self.told.append(("started", run))

    def ended(self, run: str, record: Record) -> None:
        self.told.append((str(record.state), run))

    def look(self, records: Any) -> None:
        pass


def planned(folder: Path, count: int, broken: bool = False, **keys: Any) -> list[PlannedRun]:
    variants: dict[str, Any] = {f"v{i}": {} for i in range(count)}
    if broken:
        variants["broken"] = {"game.cott": 1}
    sweep = {
        "name": "s",
        "dir": str(folder),
        "base": str(ROOT / "configs/tiny.yaml"),
        "seeds": [1],
        "variants": variants,
    }
    (folder / "sweep.yaml").write_text(json.dumps(sweep | keys))
    return plan(read_sweep(folder / "sweep.yaml"), {})


def runner(folder: Path, runs: list[PlannedRun], place: Place, **options: Any) -> Runner:
    ticks = iter(range(10**9))
    given: dict[str, Any] = {
        "concurrency": 2,
        "grace_s": 5.0,
        "clock": lambda: float(next(ticks)),
        "sleep": lambda s: None,
    }
    return Runner("s", runs, SweepFolder(folder / "s"), place, options.pop("view", Silent()), **(given | options))


def done(folder: Path, runs: list[PlannedRun], place: Place, **options: Any) -> dict[str, State]:
    """One whole call: the states at its end, as they are on the disk."""
    own = runner(folder, runs, place, **options)
    own.prepare()
    own.run()
    return {run.name: SweepFolder(folder / "s").record(run.name).state for run in runs}


def test_what_fails_stops_nothing_and_is_tried_again_only_when_asked(tmp_path: Path) -> None:
    runs = planned(tmp_path, 3, broken=True)
    place = Place({"v0-seed1": [(2, 0)], "v1-seed1": [(1, 3), (1, 0)], "v2-seed1": [(4, 0)]})
    F, X, I = State.FINISHED, State.FAILED, State.INVALID  # noqa: E741
    assert list(done(tmp_path, runs, place).values()) == [F, X, F, I]
    record = SweepFolder(tmp_path / "s").record("v1-seed1")
    assert record.reason == "exit code 3" and record.attempt == 1
    assert "nearest: game.cot" in str(SweepFolder(tmp_path / "s").record("broken-seed1").reason)
    assert place.most == 2
    assert list(done(tmp_path, runs, place).values()) == [F, X, F, I]
    assert place.submitted == ["v0-seed1", "v1-seed1", "v2-seed1"], "the second call runs nothing again"
    assert list(done(tmp_path, runs, place, retry_failed=True).values()) == [F, F, F, I]
    assert place.submitted[3:] == ["v1-seed1"]
    assert SweepFolder(tmp_path / "s").record("v1-seed1").attempt == 2


def test_a_variant_that_was_mended_is_run(tmp_path: Path) -> None:
    place = Place({"v0-seed1": [(1, 0)], "broken-seed1": [(1, 0)]})
    done(tmp_path, planned(tmp_path, 1, broken=True), place)
    mended = planned(tmp_path, 1, variants={"v0": {}, "broken": {"game.cot": False}})
    assert set(done(tmp_path, mended, place).values()) == {State.FINISHED}
    assert place.submitted == ["v0-seed1", "broken-seed1"]


@settings(max_examples=12)
@given(st.integers(0, 2**32), st.integers(1, 4), st.booleans())
def test_a_sweep_that_is_killed_again_and_again_ends_as_one_that_is_not(
    seed: int, concurrency: int, lost: bool
) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        runs = planned(folder, 3)
        script = {run.name: [(rng.randint(1, 4), rng.choice([0, 0, 1]))] for run in runs}
        ends = {name: entries[-1][1] for name, entries in script.items()}
        place = Place(script)
        for _ in range(60):
            kill_at = rng.randint(1, 8)
            slept = iter(range(10**9))

            def sleep(seconds: float, slept: Any = slept, kill_at: int = kill_at) -> None:
                if next(slept) == kill_at:
                    raise Killed

            own = runner(folder, runs, place, concurrency=concurrency, sleep=sleep)
            work = own.prepare()
            try:
                own.run()
            except Killed:
                if lost:  # the machine went down with the sweep: what was under way is gone
                    for job in place.jobs.values():
                        if job[0] > 0:
                            job[:] = [0, None]
                continue
            break
        else:
            pytest.fail("never done")
        assert place.most <= concurrency
        states = {run.name: SweepFolder(folder / "s").record(run.name).state for run in runs}
        assert states == {name: State.FAILED if code else State.FINISHED for name, code in ends.items()}
        if not lost:
            assert sorted(place.submitted) == sorted(states), "each is started once"
        again = runner(folder, runs, place)
        assert (work >= 0, again.prepare()) == (True, 0)


def test_jobs_that_outlive_the_sweep_are_found_again(tmp_path: Path) -> None:
    runs, place = planned(tmp_path, 2), Place({"v0-seed1": [(9, 0)], "v1-seed1": [(9, 0)]})

    def ctrl_c(seconds: float) -> None:
        raise KeyboardInterrupt

    own = runner(tmp_path, runs, place, sleep=ctrl_c)
    own.prepare()
    with pytest.raises(KeyboardInterrupt):
        own.run()
    folder = SweepFolder(tmp_path / "s")
    assert [folder.record(run.name).state for run in runs] == [State.RUNNING] * 2
    stop_jobs(folder, place, [run.name for run in runs], 60, sleep=lambda s: None)
    assert [folder.record(run.name).state for run in runs] == [State.INTERRUPTED] * 2
    assert done(tmp_path, runs, place) == {"v0-seed1": State.FINISHED, "v1-seed1": State.FINISHED}
    assert place.submitted == ["v0-seed1", "v1-seed1"] * 2, "what was stopped goes on with the next call"


def test_jobs_of_this_machine_are_stopped_by_ctrl_c(tmp_path: Path) -> None:
    runs, place = planned(tmp_path, 3), Place({f"v{i}-seed1": [(9, 0)] for i in range(3)}, outlives=False)
    calls = iter(range(10**9))

    def ctrl_c(seconds: float) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt

    own = runner(tmp_path, runs, place, sleep=ctrl_c)
    own.prepare()
    with pytest.raises(KeyboardInterrupt):
        own.run()
    folder = SweepFolder(tmp_path / "s")
    assert [folder.record(run.name).state for run in runs] == [State.INTERRUPTED, State.INTERRUPTED, State.PENDING]
    assert set(done(tmp_path, runs, place).values()) == {State.FINISHED}


def test_a_run_that_has_begun_goes_on_only_with_its_configuration(tmp_path: Path) -> None:
    place = Place({"v0-seed1": [(1, 0)]})
    done(tmp_path, planned(tmp_path, 1, common={"judge.urls": ["http://127.0.0.1:1"]}), place)
    moved = planned(tmp_path, 1, common={"judge.urls": ["http://127.0.0.1:2"]})
    assert done(tmp_path, moved, place) == {"v0-seed1": State.FINISHED}, "a judge may be elsewhere the next time"
    with pytest.raises(UserError, match=r"v0-seed1 is finished with another configuration.*run.steps was 2 and is 3"):
        runner(tmp_path, planned(tmp_path, 1, common={"run.steps": 3}), place).prepare()
    patient = planned(tmp_path, 1, common={"run.sync_timeout_s": 9})
    assert done(tmp_path, patient, place) == {"v0-seed1": State.FINISHED}, "nor does a deadline change what was trained"
    with pytest.raises(UserError, match=r"game.cot was True and is False"):
        runner(tmp_path, planned(tmp_path, 1, common={"game.cot": False}), place).prepare()
    with pytest.raises(UserError, match=r"v0-seed1 is finished, but cannot be started any more"):
        runner(tmp_path, planned(tmp_path, 2, variants={"v0": {"game.cott": 1}, "v1": {}}), place).prepare()


def test_a_run_that_is_under_way_elsewhere_is_not_started_twice(tmp_path: Path) -> None:
    runs, place = planned(tmp_path, 1), Place({"v0-seed1": [(1, 0)]})
    SweepFolder(tmp_path / "s").save("v0-seed1", Record(State.RUNNING, "slurm", "12", 1))
    with pytest.raises(UserError, match=r"under way with --submit slurm"):
        runner(tmp_path, runs, place).prepare()


def test_what_takes_too_long_is_stopped_and_failed(tmp_path: Path) -> None:
    runs = planned(tmp_path, 2)
    place = Place({"v0-seed1": [(10**6, 0)], "v1-seed1": [(3, 0)]})
    states = done(tmp_path, runs, place, run_timeout_s=20.0)
    assert states == {"v0-seed1": State.FAILED, "v1-seed1": State.FINISHED}
    assert "run_timeout_s (20 s)" in str(SweepFolder(tmp_path / "s").record("v0-seed1").reason)


def test_what_does_not_even_stop_is_named(tmp_path: Path) -> None:
    place = Place({"v0-seed1": [(10**6, 0)]})
    place.stop = lambda job_id: None  # type: ignore[method-assign]
    with pytest.raises(StuckError, match=r"v0-seed1 took longer .*job s-[0-9a-f]{6}.v0-seed1.1"):
        done(tmp_path, planned(tmp_path, 1), place, run_timeout_s=20.0)


def test_a_place_may_be_silent_for_a_while_but_not_for_ever(tmp_path: Path) -> None:
    runs, place = planned(tmp_path, 1), Place({"v0-seed1": [(3, 0)]})
    place.silent = 5
    assert done(tmp_path, runs, place) == {"v0-seed1": State.FINISHED}
    (tmp_path / "other").mkdir()
    runs, place = planned(tmp_path / "other", 1), Place({"v0-seed1": [(3, 0)]})
    place.silent = 10**6
    with pytest.raises(RunError, match="nobody answers; runs that are under way there go on"):
        done(tmp_path / "other", runs, place)


def test_sweeps_of_the_same_name_in_other_folders_have_other_jobs(tmp_path: Path) -> None:
    names = set()
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        place = Place({"v0-seed1": [(1, 0)]})
        done(tmp_path / part, planned(tmp_path / part, 1), place)
        names |= place.jobs.keys()
    assert len(names) == 2


def test_a_job_that_is_refused_is_a_failed_run(tmp_path: Path) -> None:
    runs, place, view = planned(tmp_path, 2), Place({"v0-seed1": [(1, 0)], "v1-seed1": [(1, 0)]}), Silent()
    place.refuses = {"v0-seed1"}
    assert done(tmp_path, runs, place, view=view) == {"v0-seed1": State.FAILED, "v1-seed1": State.FINISHED}
    assert view.told == [("failed", "v0-seed1"), ("started", "v1-seed1"), ("finished", "v1-seed1")]


E, G = JobState.ENDED, JobState.GONE


@pytest.mark.parametrize(
    ("seen", "ended", "status", "state", "reason"),
    [
        (Seen(E, 0), None, {}, State.FINISHED, None),
        (Seen(G), {"code": 0, "stopped": False}, {}, State.FINISHED, None),
        (
            Seen(E, 1),
            None,
            {"state": "failed", "reason": "the judge is gone"},
            State.FAILED,
            "exit code 1: the judge is gone",
        ),
        (Seen(E, 1), None, {}, State.FAILED, "exit code 1: last words"),
        (Seen(E, 1), None, {"state": "interrupted"}, State.INTERRUPTED, "exit code 1: last words"),
        (Seen(E, 143), None, {}, State.INTERRUPTED, "it was stopped"),
        (Seen(G), {"code": 137, "stopped": True}, {}, State.INTERRUPTED, "it was stopped"),
        (Seen(G), {"code": 137, "stopped": False}, {}, State.FAILED, "exit code 137: last words"),
        (Seen(G), None, {"state": "finished"}, State.FINISHED, None),
        (Seen(G), None, {"state": "failed", "reason": "r"}, State.FAILED, "r"),
        (Seen(G), None, {"state": "running"}, State.INTERRUPTED, "its job is gone; its last: last words"),
        (Seen(E), None, {}, State.INTERRUPTED, "its job ended without a word; its last: last words"),
        # The watcher saw the process end; what the place says of its own shell counts less.
        (Seen(E, 0), {"code": 2, "stopped": False}, {"state": "finished"}, State.FAILED, "exit code 2: last words"),
    ],
)
def test_outcomes(seen: Seen, ended: Any, status: dict[str, Any], state: State, reason: str | None) -> None:
    assert outcome(seen, ended, status, "last words") == (state, reason)


def test_time_left() -> None:
    def record(state: State, started: float | None = None, ended: float | None = None) -> Record:
        return Record(state, "local", "1", 1, started, ended)

    begun, waiting = record(State.RUNNING, 100.0), record(State.PENDING)
    records = {"a": record(State.FINISHED, 0.0, 100.0), "b": begun, "c": waiting, "d": record(State.FAILED, 0.0, 1.0)}
    assert time_left(records, {"b": 0.5}, 150.0, 1) == pytest.approx(150)
    assert time_left(records, {"b": 0.5}, 150.0, 2) == pytest.approx(75)
    assert time_left(records, {"b": 0.5}, 150.0, 9) == pytest.approx(75), "no more at once than there are"
    assert time_left({"b": begun}, {"b": 0.25}, 150.0, 1) == pytest.approx(150)
    assert time_left({"b": begun}, {"b": 0.0}, 150.0, 1) is None
    assert [duration(s) for s in (48, 125, 5999, 11100)] == ["48 s", "2 min", "1 h 40 min", "3 h 05 min"]
