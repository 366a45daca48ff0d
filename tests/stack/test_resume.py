"""A run that is killed in every phase in turn and resumed each time ends as one that was never killed, bit for bit."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from test_train import ROOT, data, rows  # noqa: F401  (data is a fixture)

from openrlhf_medical import commands
from openrlhf_medical.checkpoints import PLAYED_AHEAD
from openrlhf_medical.config import load_config

DRIVER = ROOT / "tests" / "stack" / "signalled_run.py"
MARK = "OPENRLHF_MEDICAL_TEST"
STEPS = 4

pytestmark = pytest.mark.slow  # eight minutes on 2 cores

CHAIN = [
    ("SIGKILL", "games", 4 + 3),  # of the first step: no state yet, so the run begins again
    ("SIGKILL", "log-probabilities", 2),  # the first step is done, and its state kept
    ("SIGKILL", "update", 1),
    ("SIGKILL", "send_weights", 3),  # the first two are those of the start, and of the state
    ("SIGKILL", "save_state", 1),
    ("SIGTERM", "update", 2),  # ends this step, keeps its state
]
"""Signal, place, and at the how-manieth time in that process; each process goes on where the one before ended."""


def by_the_clock(name: str) -> bool:
    """Whether a metric may differ between two runs."""
    name = name.removeprefix("eval/")
    return name in ("time", "judge/latency_s") or name.startswith(("time/", "throughput/"))


def command(folder: Path, data: Path, *words: str) -> list[str]:  # noqa: F811
    return ["train", "--config", "configs/tiny.yaml", "--run.name", "run", "--run.dir", str(folder),
            "--run.steps", str(STEPS), "--run.eval_games", "4", "--rollout.batch_size", "8",
            "--data.train", str(data / "train.jsonl"), "--data.val", str(data / "val.jsonl"),
            "--roles.policy", "shared", "--train.colocate_all", "true", "--run.deterministic", "true",
            "--ckpt.resume_steps", "1", *words]  # fmt: skip


def marked(mark: str) -> list[str]:
    """Processes that descend from one that was started with the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                    found.append(f"{entry.name} {(entry / 'cmdline').read_bytes()[:200]!r}")
            except (OSError, PermissionError):
                continue
    return found


def process(*words: str, mark: str = "") -> tuple[subprocess.CompletedProcess[str], float]:
    """Runs to the end. Returns it and its seconds."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=600, cwd=ROOT,
                          env={**os.environ, MARK: mark})  # fmt: skip
    return done, time.monotonic() - began


def nothing_is_left_of(mark: str) -> None:
    """Ray's agents look every now and then whether their raylet is alive: give them time."""
    end = time.monotonic() + 180
    while (left := marked(mark)) and time.monotonic() < end:
        time.sleep(0.5)
    assert not left, f"long after the end of the run there are still {left}"


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("whole")
    done, seconds = process("-m", "openrlhf_medical", *command(folder, data))
    assert done.returncode == 0, done.stderr[-3000:]
    print(f"\nnever killed: {seconds:.0f} s")
    return folder / "run"


@pytest.fixture(scope="module")
def chain(data, tmp_path_factory):  # noqa: F811
    """The run's folder, and what each process of the chain said."""
    folder, shared_memory = tmp_path_factory.mktemp("chain"), set(Path("/dev/shm").iterdir())
    told, mark = [], uuid.uuid4().hex
    for signal, place, count in CHAIN:
        words = command(folder, data, "--resume", "auto")
        done, seconds = process(str(DRIVER), signal, place, str(count), "--", *words, mark=mark)
        expected = -9 if signal == "SIGKILL" else 128 + 15
        assert done.returncode == expected, f"{signal} in {place}: {done.returncode}\n{done.stderr[-3000:]}"
        told.append(done.stderr)
        status = json.loads((folder / "run" / "status.json").read_text())
        print(f"\n{signal} in {place}: {seconds:.0f} s, {status}")
        assert status["state"] == ("running" if signal == "SIGKILL" else "interrupted")
    done, seconds = process("-m", "openrlhf_medical", *command(folder, data, "--resume", "auto"), mark=mark)
    assert done.returncode == 0, done.stderr[-3000:]
    print(f"\nto the end: {seconds:.0f} s")
    nothing_is_left_of(mark)
    assert set(Path("/dev/shm").iterdir()) <= shared_memory
    return folder / "run", [*told, done.stderr]


def test_each_process_goes_on_where_the_last_whole_step_ended(chain):
    _, told = chain
    begins = "holds no state to go on from"
    assert [begins in words for words in told] == [True, True, *[False] * (len(told) - 2)]
    done = [words.split("going on from")[1].split(": ")[1][0] for words in told[2:]]
    assert done == ["1", "1", "1", "1", "3"]
    assert "go on with: openrlhf-medical train" in told[5] and "--resume auto" in told[5]


def test_games_are_the_same_line_by_line(whole, chain):
    ours, theirs = ((folder / "games.jsonl").read_text().splitlines() for folder in (chain[0], whole))
    assert len(ours) == 4 + STEPS * 8 + 4
    for line, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        assert own == other, f"line {line}"


def test_metrics_are_the_same_but_for_the_clock(whole, chain):
    def steady(folder: Path) -> list[dict]:
        return [
            {name: value for name, value in row.items() if not by_the_clock(name)}
            for row in rows(folder / "metrics.jsonl")
        ]

    ours, theirs = steady(chain[0]), steady(whole)
    assert [row["step"] for row in ours] == [-1, *range(STEPS), STEPS] and len(ours[1]) > 30
    assert ours == theirs


def test_weights_are_the_same_bit_for_bit(whole, chain):
    ours, theirs = ((folder / "checkpoints" / "final" / "shared") for folder in (chain[0], whole))
    names = sorted(path.name for path in ours.iterdir())
    assert "model.safetensors" in names and names == sorted(path.name for path in theirs.iterdir())
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    assert (ours / "model.safetensors").read_bytes() != (ROOT / "models" / "tiny" / "model.safetensors").read_bytes()


def test_a_finished_run_says_so_and_stays_as_it_is(chain, data):  # noqa: F811
    folder, before = chain[0], (chain[0] / "metrics.jsonl").read_bytes()
    done, _ = process("-m", "openrlhf_medical", *command(folder.parent, data, "--resume", "auto"))
    assert done.returncode == 0 and "is finished already" in done.stderr
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert json.loads((folder / "status.json").read_text()) == {
        "state": "finished", "steps_done": STEPS, "steps": STEPS, "reason": None,
    }  # fmt: skip
    assert [path.name for path in (folder / "checkpoints" / "state").iterdir()] == [f"step_{STEPS}"]


@pytest.mark.slow
class TestAdaptersAhead:
    """Two adapters on one base, games played ahead, replies as the engines draw them: killed in the second update."""

    kept_ahead: ClassVar[list[tuple[int, int]]]

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, data, tmp_path_factory):  # noqa: F811
        folder = tmp_path_factory.mktemp("adapters")
        words = command(folder, data, "--resume", "auto", "--roles.policy", "adapters", "--ds.lora.rank", "8",
                        "--train.async_enable", "true", "--train.colocate_all", "false", "--run.deterministic", "false",
                        "--algo.advantage.is_correction_level", "seq")  # fmt: skip
        done, _ = process(str(DRIVER), "SIGKILL", "update", "4", "--", *words)
        assert done.returncode == -9, done.stderr[-3000:]
        state = folder / "run" / "checkpoints" / "state" / "step_1"
        cls.kept_ahead = [(game.step, game.game_idx) for game in pickle.loads((state / PLAYED_AHEAD).read_bytes())[0]]
        done, _ = process("-m", "openrlhf_medical", *words)
        assert done.returncode == 0, done.stderr[-3000:]
        return folder / "run"

    def test_every_game_counts_once_on_the_seeds_of_its_step(self, folder, data):  # noqa: F811
        games = rows(folder / "games.jsonl")
        assert [(game["step"], game["game_idx"]) for game in games] == [
            (step, index) for step, count in [(-1, 4), *((step, 8) for step in range(STEPS)), (STEPS, 4)]
            for index in range(count)
        ]  # fmt: skip
        config = load_config(folder / "config.yaml")
        stream = commands._stream(config, config.data.train)
        for step in range(STEPS):
            own = [game["seed_id"] for game in games if game["step"] == step]
            assert own == [seed.seed_id for seed in stream.step(step, 8)]

    def test_the_games_kept_ahead_are_those_learned_from(self, folder):
        assert self.kept_ahead == [(1, index) for index in range(8)]
        versions = {
            step: {game[role]["policy_version"] for game in rows(folder / "games.jsonl") if game["step"] == step
                   for role in ("attacker", "assessor") if game[role]} for step in range(STEPS)
        }  # fmt: skip
        assert versions == {0: {0}, 1: {0}, 2: {1}, 3: {2}}, "one version old, but for the first"

    def test_optimizers_and_schedules_went_on(self, folder):
        metrics = [row for row in rows(folder / "metrics.jsonl") if "time/step_s" in row]
        for role in ("attacker", "assessor"):
            steps = sum(row.get(f"policy/{role}/optimizer_steps", 0) for row in metrics)
            saved = torch.load(
                folder / "checkpoints" / "state" / f"step_{STEPS}" / role / "policy" / "state"
                / "mp_rank_00_model_states.pt", weights_only=False,
            )  # fmt: skip
            assert saved["global_steps"] == steps == saved["lr_scheduler"]["last_epoch"] > STEPS - 1
