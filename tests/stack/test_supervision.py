"""What becomes of a run whose processes are struck, as a user runs it: killed engines, a killed worker, a stopped one.

Two runs with the same seeds. One loses engines while it plays, the other does not: their games must be the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from faulty_judge import FaultyJudge, good
from test_train import data, rows  # noqa: F401  (data is a fixture)

ROOT = Path(__file__).resolve().parents[2]
GAMES = 16
UPDATE_S = 60


@dataclass
class Run:
    """A training run under way, and who was struck in it."""

    process: psutil.Popen
    folder: Path
    struck: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    family: set[psutil.Process] = field(default_factory=set)

    def steps_played(self) -> int:
        games = self.folder / "games.jsonl"
        return games.read_text().count("\n") // GAMES if games.exists() else 0

    def members(self, *titles: str) -> list[psutil.Process]:
        """Its processes of these titles, oldest first."""
        found = []
        for process in self.process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                self.family.add(process)
                if process.cmdline() and process.cmdline()[0].startswith(titles):
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def strike(self, process: psutil.Process, how: signal.Signals) -> None:
        self.struck.append(f"pid {process.pid}")
        os.kill(process.pid, how)


def engines(run: Run) -> list[psutil.Process]:
    """By the title that Ray gives them: of the class whose method ran last."""
    return run.members("ray::_Engine", "ray::RolloutRayActor")


def workers(run: Run) -> list[psutil.Process]:
    return run.members("ray::_PolicyWorker", "ray::PolicyModelActor")


def kill_engines(run: Run, step: int) -> None:
    """In step 0 one of the two; in step 1 both, one of them by the vLLM process behind it."""
    found = engines(run)
    assert len(found) == 2, found
    run.strike(found[0], signal.SIGKILL)
    if step == 1:
        run.strike(next(p for p in run.members("VLLM::EngineCore") if p.ppid() == found[1].pid), signal.SIGKILL)


def train(data: Path, folder: Path, steps: int, while_playing: Callable[[Run, int], None] | None,  # noqa: F811
          after: Callable[[Run], None]) -> tuple[Run, int, str, float]:  # fmt: skip
    """Strikes when the judge is first asked in a step, which is in the middle of its games, and when the games of
    the last step are over. Returns the run, its exit code, what it said, and the seconds from the last strike."""
    struck_in: set[int] = set()
    lock = threading.Lock()

    def judge(judge: FaultyJudge, http, body) -> None:
        with lock:
            step = run.steps_played()
            if step not in struck_in and while_playing is not None and engines(run):  # none is there at the start
                struck_in.add(step)
                try:
                    while_playing(run, step)
                except Exception as error:  # this thread is the judge's, which would keep it to itself
                    run.problems.append(repr(error))
        good(judge, http, body)

    with FaultyJudge(judge) as server:
        words = ("train", "--config", "configs/tiny.yaml", "--run.name", "run", "--run.dir", str(folder),
                 "--run.steps", str(steps), "--roles.policy", "shared", "--run.deterministic", "true",
                 "--vllm.num_engines", "2", "--judge.urls", server.url, "--run.update_timeout_s", str(UPDATE_S),
                 "--data.train", str(data / "train.jsonl"), "--data.val", str(data / "val.jsonl"))  # fmt: skip
        log = folder / "console.txt"
        with log.open("w") as out:
            process = psutil.Popen([sys.executable, "-m", "openrlhf_medical", *words], stdout=out,
                                   stderr=subprocess.STDOUT, cwd=ROOT)  # fmt: skip
        run = Run(process, folder / "run")
        try:
            while run.steps_played() < steps and process.poll() is None:
                time.sleep(0.02)
            if process.poll() is None:
                run.members()
                after(run)
            began = time.monotonic()
            code = process.wait(UPDATE_S + 240)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    return run, code, log.read_text(), time.monotonic() - began


@pytest.fixture(scope="module")
def one_worker_killed(data, tmp_path_factory):  # noqa: F811
    return train(data, tmp_path_factory.mktemp("worker"), 1, None,
                 lambda run: run.strike(workers(run)[0], signal.SIGKILL))  # fmt: skip


@pytest.fixture(scope="module")
def engines_killed(data, tmp_path_factory):  # noqa: F811
    return train(data, tmp_path_factory.mktemp("engines"), 2, kill_engines,
                 lambda run: run.strike(workers(run)[0], signal.SIGSTOP))  # fmt: skip


def still_there(run: Run) -> list[str]:
    """Of all its processes that were ever seen, those that do not end within moments."""
    psutil.wait_procs(run.family, 20)
    return [str(p) for p in run.family if p.is_running() and "zombie" not in str(p)]


def turns(game: dict) -> tuple:
    """All that a game is, but for what the clock says."""
    return tuple(json.dumps(game[key]) for key in ("seed_note", "presented_note", "status", "attacker", "assessor"))


def test_a_killed_worker_ends_the_run_and_is_named(one_worker_killed):
    run, code, said, _ = one_worker_killed
    assert code == 1, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: ") and "shared policy rank 0 (node " in last and run.struck[0] in last, said
    assert "--resume auto" in last and not still_there(run)
    assert "Traceback" not in said


def test_games_of_killed_engines_are_played_again(engines_killed, one_worker_killed):
    run, _, said, _ = engines_killed
    assert not run.problems and len(run.struck) == 4, (run.problems, run.struck)
    games = rows(run.folder / "games.jsonl")
    assert sorted((game["step"], game["game_idx"]) for game in games) == [(s, i) for s in (0, 1) for i in range(GAMES)]
    assert {game["status"] for game in games} <= {"ok", "abstain", "forfeit", "truncated"}, said
    undisturbed = rows(one_worker_killed[0].folder / "games.jsonl")
    assert [turns(game) for game in games if game["step"] == 0] == [turns(game) for game in undisturbed]
    for role in ("attacker", "assessor"):
        assert {(g["step"], g[role]["policy_version"]) for g in games if g[role]} == {(0, 0), (1, 1)}


def test_restarts_and_lost_time_are_told(engines_killed):
    run, _, said, _ = engines_killed
    first = rows(run.folder / "metrics.jsonl")[0]
    assert first["step"] == 0 and first["supervision/engine_restarts"] == 1
    assert first["supervision/lost_s"] > 1 and first["supervision/turns_replayed"] >= 1
    told = [line for line in said.splitlines() if line.startswith("warning: shared engine ")]
    assert len(told) == 3 and all("died while playing" in line and "was replaced in" in line for line in told), said
    assert "(node " in told[0] and run.struck[0] in told[0]


def test_a_stopped_worker_ends_the_run_in_time(engines_killed):
    run, code, said, seconds = engines_killed
    assert code == 1, said
    last = said.strip().splitlines()[-1]
    assert "no answer from shared policy rank 0 (node " in last and run.struck[-1] in last and "--resume auto" in last
    assert f"within {UPDATE_S} s" in last and seconds < UPDATE_S + 120
    assert not still_there(run)
