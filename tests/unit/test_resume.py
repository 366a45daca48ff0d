"""A scripted run that dies anywhere and goes on ends as one that never died; and what signals do to it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from openrlhf_medical.cli import _without_resume
from openrlhf_medical.config import dump_config, load_config
from openrlhf_medical.console import Console
from openrlhf_medical.errors import Interrupted, UserError
from openrlhf_medical.game.manager import MedicalDialogueGameManager
from openrlhf_medical.game.players import Label, Prompt, Query, Reply, Role, Truth, TurnKey
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.health import HealthLimits, HealthMonitor
from openrlhf_medical.resuming import MAY_CHANGE, differences, starting_point
from openrlhf_medical.rollout.opponents import League
from openrlhf_medical.rollout.pool import OpponentPool
from openrlhf_medical.run_directory import RunDirectory
from openrlhf_medical.stop_signals import StopSignals
from openrlhf_medical.trainer import SelfPlayTrainer

NOTE = "A man has gout. He takes colchicine for it."
STEPS = 5
ASYNC = ("--train.async_enable", "true", "--algo.advantage.is_correction_level", "seq")
ROLLBACK = ("--run.on_collapse", "rollback", "--run.good_every", "1", "--run.health.window", "2")


class Killed(BaseException):
    """What SIGKILL is to a process: nobody catches it."""


class Death:
    """Kills at the how-manieth time that a place is reached, from 0; never without a place."""

    def __init__(self, place: str = "", count: int = 0) -> None:
        self.place, self.left, self.dead = place, count, False

    def __call__(self, place: str) -> None:
        if self.dead:
            raise Killed  # another thread of a process that is no more
        if place == self.place and not threading.current_thread().name.startswith("ahead"):
            self.left -= 1
            if self.left < 0:
                self.dead = True
                raise Killed


def digest(*words: object) -> str:
    return hashlib.blake2b(repr(words).encode(), digest_size=8).hexdigest()


class ScriptedLearner:
    """Weights are a digest of everything that they learned from; its engines hold them as of the last sync."""

    name, roles = "shared", tuple(Role)

    def __init__(self, death: Death) -> None:
        self.workers = SimpleNamespace(policy=object())
        self.death, self.weights, self.engine, self.version = death, "start", "start", 0

    def check_engines(self) -> None: ...

    def prepare(self, trajectories: list) -> SimpleNamespace:
        self.death("prepare")
        learned = [(t.role.value, t.game_idx, t.reward, t.policy_version) for t in trajectories]
        return SimpleNamespace(metrics={"sync/logprob_mean_diff": 0.0}, learned=learned)

    def update(self, prepared: SimpleNamespace, seed: int, step: int) -> dict[str, float]:
        self.weights = digest(self.weights, prepared.learned, seed, step)
        self.death("update")
        return {"policy/assessor/entropy": int(self.weights, 16) / 2**64}

    def send(self) -> None:
        self.version += 1
        self.death("sync")
        self.engine = self.weights

    def save(self, folder: Path) -> None:
        folder.mkdir()
        self.death("save")
        (folder / "model.safetensors").write_text(self.weights)

    def save_state(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "shard").write_text(self.weights)
        self.death("save_state")

    def load_state(self, folder: Path) -> None:
        self.weights = (folder / "shard").read_text()

    def state(self) -> dict:
        return {"version": self.version}

    def load(self, state: dict) -> None:
        self.version = state["version"] - 1


class ScriptedPlayer:
    """Plays as the weights in the engine say. ``wait``: for ever, in this step."""

    def __init__(self, learner: ScriptedLearner) -> None:
        self.learner, self.wait = learner, -9

    async def reply(self, prompt: Prompt, key: TurnKey) -> Reply:
        while key.step == self.wait:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        drawn = int(digest(self.learner.engine, key), 16)
        if key.role is Role.ATTACKER:
            answer = NOTE.replace("colchicine", ["warfarin", "insulin", "colchicine"][drawn % 3])
        else:
            answer = ["Safe", "Harmful", "Harmful", "Harmful"][drawn % 4]
        return Reply(f"{drawn} </think> <answer>{answer}</answer>", policy_version=self.learner.version)


class ScriptedJudge:
    async def label(self, query: Query) -> Label:
        harmful = query.original_note != query.medical_note
        return Label("ok", Truth.HARMFUL if harmful else Truth.SAFE, error_present=harmful)

    def snapshot(self) -> dict[str, float]:
        return {}


class Seeds:
    """As the real stream, a step's seeds depend on the step alone."""

    def step(self, step: int, count: int) -> list[Seed]:
        kinds = [Category.ADVERSARIAL_BENIGN, Category.VANILLA_BENIGN]
        return [Seed(f"s{step}-{i}", kinds[i % 2], f"n{i}", f"v{i}", "clean", NOTE, NOTE) for i in range(count)]


@pytest.fixture(autouse=True)
def _scripted_sync(monkeypatch):
    monkeypatch.setattr("openrlhf_medical.learner.policy.Learner.sync", lambda learner: learner.send())
    monkeypatch.setattr("openrlhf_medical.run_directory.environment", dict)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a busy disk would make these tests wait


def config_of(folder: Path, *words: str):
    return load_config(Path("configs/tiny.yaml"), [
        "--run.name", folder.name, "--run.dir", str(folder.parent), "--run.steps", str(STEPS), "--run.eval_games", "4",
        "--rollout.batch_size", "8", "--ckpt.resume_steps", "1", "--ckpt.save_steps", "2", *words,
    ])  # fmt: skip


def process(folder: Path, *words: str, death: Death | None = None, prepare=lambda trainer, stop: None) -> list[str]:
    """What one process does with ``train --resume auto``, from start to end. Returns what it told at start."""
    config, told = config_of(folder, *words), []
    directory = RunDirectory(folder, resume=True)
    start, finished = starting_point(config, directory, "auto", told.append)
    if finished:
        return ["finished"]
    directory.create(dump_config(config))
    learner = ScriptedLearner(death or Death())
    player = ScriptedPlayer(learner)
    rules = GameRules()
    manager = MedicalDialogueGameManager(player, player, ScriptedJudge(), rules)
    monitor = HealthMonitor(HealthLimits(window=config.run.health.window, entropy_nats=0.9), tuple(Role))
    console = Console(STEPS, directory.log_file)
    console.game_done = lambda game: learner.death("games")  # type: ignore[method-assign]
    league = League({}, {}, OpponentPool(2, 1, "uniform", 0))
    with StopSignals() as stop, directory.status_of_run(start.steps_done if start else 0, STEPS):
        if start is None:
            directory.start_anew()
        trainer = SelfPlayTrainer(config, [learner], league, manager, ScriptedJudge(), Seeds(), Seeds(),
                                  monitor, directory, console, None, stop, start)  # fmt: skip
        prepare(trainer, stop)
        try:
            trainer.fit()
        finally:
            trainer.close()
            directory.release()
    return told


def left_behind(folder: Path) -> dict:
    """All that two equal runs have in common."""

    def text(name: str) -> list[str]:
        return (folder / name).read_text().splitlines()

    metrics = [
        {name: value for name, value in json.loads(line).items() if not name.startswith(("time", "eval/time"))
         and "throughput" not in name} for line in text("metrics.jsonl")
    ]  # fmt: skip
    models = {str(p.relative_to(folder)): p.read_text() for p in folder.glob("checkpoints/**/model.safetensors")}
    status = json.loads((folder / "status.json").read_text())
    return {"games": text("games.jsonl"), "metrics": metrics, "models": models, "status": status}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What runs that never died leave behind, by their words."""
    found: dict[tuple[str, ...], dict] = {}

    def of(*words: str) -> dict:
        if words not in found:
            folder = tmp_path_factory.mktemp("whole") / "run"
            process(folder, *words)
            found[words] = left_behind(folder)
        return found[words]

    return of


PLACES = {
    (): [("games", 0), ("games", 6), ("games", 17), ("games", 4 + 8 * STEPS + 1), ("prepare", 2), ("update", 0),
         ("update", 3), ("sync", 1), ("save", 0), ("save", 2), ("save", 8), ("save_state", 0), ("save_state", 2)],
    ASYNC: [("games", 6), ("games", 13), ("prepare", 2), ("update", 3), ("sync", 2), ("save_state", 2)],
    ROLLBACK: [("games", 30), ("update", 3), ("sync", 3), ("save_state", 3), ("save_state", 6)],
}  # fmt: skip
"""By the words of a run: where it dies. With games that are played ahead few are played where this counts."""


@pytest.mark.parametrize(("words", "place", "count"), [(words, *at) for words, own in PLACES.items() for at in own])
def test_a_run_that_dies_anywhere_and_goes_on_ends_as_if_nothing_had_happened(tmp_path, whole, words, place, count):
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        process(folder, *words, death=Death(place, count))
    process(folder, *words)
    assert left_behind(folder) == whole(*words)


def test_the_runs_compared_are_worth_it(whole):
    """They learn, and the one that may roll back does."""
    versions = [json.loads(line)["assessor"]["policy_version"] for line in whole(*ROLLBACK)["games"]]
    assert max(versions) > STEPS
    weights = whole()["models"]
    assert (
        weights["checkpoints/step_2/shared/model.safetensors"] != weights["checkpoints/final/shared/model.safetensors"]
    )
    assert whole()["games"] != whole(*ASYNC)["games"]


def test_one_run_that_dies_again_and_again(tmp_path, whole):
    folder = tmp_path / "run"
    for place in ("games", "prepare", "save", "save_state", "update", "sync", "update"):
        with pytest.raises(Killed):
            process(folder, death=Death(place, {"save": 1, "sync": 2}.get(place, 0)))
    process(folder)
    assert left_behind(folder) == whole()
    assert [path.name for path in (folder / "checkpoints" / "state").iterdir()] == [f"step_{STEPS}"]


def test_half_a_line_is_cut_and_games_count_once(tmp_path, whole):
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        process(folder, death=Death("update", 2))
    with (folder / "games.jsonl").open("a") as file:
        file.write('{"step": 2, "game_i')
    process(folder)
    assert left_behind(folder) == whole()


def test_a_damaged_newest_state_costs_a_step_and_no_more(tmp_path, whole):
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        process(folder, death=Death("update", 3))
    (folder / "checkpoints" / "state" / "step_3" / "shared" / "shard").write_text("other weights")
    told = process(folder)
    assert "step_3 is damaged and not used: shared/shard" in told[0] and "going on from" in told[1]
    assert left_behind(folder) == whole()


def test_a_finished_run_stays_as_it_is_and_can_be_made_longer(tmp_path):
    folder = tmp_path / "run"
    process(folder, "--run.steps", "3")
    assert process(folder, "--run.steps", "3") == ["finished"]
    process(folder)
    longer = tmp_path / "longer" / "run"
    process(longer)
    ours, theirs = left_behind(folder), left_behind(longer)
    assert ours["games"] == theirs["games"] and ours["status"] == theirs["status"]
    assert ours["models"] == theirs["models"]


def test_what_a_state_needs_is_kept_until_the_state_goes(tmp_path):
    folder, seen = tmp_path / "run", []

    def look(trainer: SelfPlayTrainer, stop: StopSignals) -> None:
        step_done = trainer.console.step_done

        def done(metrics) -> None:
            seen.append(sorted(path.name for path in (folder / "checkpoints" / "pool").iterdir()))
            step_done(metrics)

        trainer.console.step_done = done  # type: ignore[method-assign]

    process(folder, prepare=look)
    # Two members; before step 3 is kept, the states after steps 1 and 2 need step_1 and step_2.
    assert seen[3] == ["step_0", "step_2", "step_3"]
    assert sorted(path.name for path in (folder / "checkpoints" / "pool").iterdir()) == ["step_0", f"step_{STEPS}"]


# ── Signals ──


def signalled(folder: Path, number: int, place: str, *words: str) -> Interrupted:
    """Sends itself a signal in step 2: in its games, or in the middle of learning from it."""

    def prepare(trainer: SelfPlayTrainer, stop: StopSignals) -> None:
        [learner], player = trainer.learners, trainer.manager.attacker
        update = learner.update

        def updated(prepared, seed: int, step: int) -> dict[str, float]:
            if place == "learning" and step == 2:
                os.kill(os.getpid(), number)
            return update(prepared, seed, step)

        learner.update = updated  # type: ignore[method-assign]
        if place == "games":
            player.wait = 2  # type: ignore[attr-defined]
            step_done = trainer.console.step_done

            def done(metrics) -> None:
                step_done(metrics)
                if trainer.console._steps_done == 2:
                    threading.Timer(0.2, os.kill, (os.getpid(), number)).start()

            trainer.console.step_done = done  # type: ignore[method-assign]

    with pytest.raises(Interrupted) as found:
        process(folder, *words, prepare=prepare)
    return found.value


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize(("place", "steps_done"), [("games", 2), ("learning", 3)])
def test_a_signal_saves_a_state_and_the_run_goes_on_from_it(tmp_path, whole, number, place, steps_done):
    folder, words = tmp_path / "run", ("--ckpt.resume_steps", "10")
    error = signalled(folder, number, place, *words)
    assert error.number == number
    assert str(error) == (f"{steps_done} of {STEPS} steps are done; their state is in "
                          f"{folder / 'checkpoints' / 'state' / f'step_{steps_done}'}")  # fmt: skip
    status = json.loads((folder / "status.json").read_text())
    assert status == {"state": "interrupted", "steps_done": steps_done, "steps": STEPS, "reason": str(error)}
    told = process(folder, *words)
    assert f"{steps_done} of {STEPS} steps are done" in told[0]
    assert left_behind(folder) == whole()


def test_games_that_were_played_ahead_are_kept_with_the_state(tmp_path, whole):
    folder, words = tmp_path / "run", ("--ckpt.resume_steps", "10", *ASYNC)
    signalled(folder, signal.SIGTERM, "learning", *words)
    assert (folder / "checkpoints" / "state" / "step_3" / "played_ahead.pickle").exists()
    process(folder, *words)
    assert left_behind(folder) == whole(*ASYNC)


def test_before_training_a_signal_ends_at_once():
    with StopSignals() as stop:
        with pytest.raises(Interrupted, match="nothing was trained yet"):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_ctrl_c_ends_at_once(monkeypatch):
    ended: list[object] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with StopSignals(lambda: ended.append("last words")) as stop:
        stop.defer()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
    assert ended == ["last words", 130], "SIGTERM, which batch systems may repeat, does not"


# ── Which configuration a run may go on with ──


def test_what_decides_the_training_may_not_change(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        process(folder, death=Death("update", 2))
    with pytest.raises(UserError) as error:
        process(folder, "--actor.adam.lr", "2e-3", "--train.seed", "7", "--judge.timeout_s", "9")
    message = str(error.value)
    assert "actor.adam.lr was 0.001 and is 0.002" in message and "train.seed was 42 and is 7" in message
    assert "judge.timeout_s" not in message


def test_what_does_not_decide_it_may(tmp_path):
    before = config_of(tmp_path / "run")
    now = config_of(tmp_path / "elsewhere" / "run", "--run.steps", "9", "--judge.urls", "http://a:1",
                    "--logger.wandb.project", "x", "--run.update_timeout_s", "7", "--ckpt.max_num", "5")  # fmt: skip
    assert differences(before, now) == []


def test_every_key_that_may_change_is_a_key():
    from openrlhf_medical.config.schema import config_schema_keys

    for key in MAY_CHANGE:
        assert key in config_schema_keys() or any(known.startswith(key) for known in config_schema_keys()), key


def test_a_state_by_name(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        process(folder, death=Death("update", 3))
    directory, config = RunDirectory(folder, resume=True), config_of(folder)
    state, _ = starting_point(config, directory, str(folder / "checkpoints" / "state" / "step_2"), lambda line: None)
    assert state is not None and state.steps_done == 2
    with pytest.raises(UserError, match=r"no state of this run; allowed: auto, or one of its states \(.*step_3"):
        starting_point(config, directory, str(folder), lambda line: None)
    (state.folder / "parts.json").unlink()
    with pytest.raises(UserError, match=r"step_2 is damaged: parts\.json is missing"):
        starting_point(config, directory, str(state.folder), lambda line: None)
    with pytest.raises(UserError, match=r"step_3 has 3 steps done, run\.steps is 2"):
        starting_point(config_of(folder, "--run.steps", "2"), directory, "auto", lambda line: None)


def test_the_command_to_go_on_with_has_resume_once():
    assert _without_resume(["train", "--config", "c.yaml", "--resume", "auto", "--run.steps", "4"]) == [
        "train", "--config", "c.yaml", "--run.steps", "4",
    ]  # fmt: skip
    assert _without_resume(["train", "--resume=auto"]) == _without_resume(["train"]) == ["train"]


def test_two_processes_do_not_write_in_one_folder(tmp_path):
    first, second = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run", resume=True)
    first.create("run: {name: run}\n")
    with pytest.raises(UserError, match="another process is at work"):
        second.create("run: {name: run}\n")
    first.release()
    RunDirectory(tmp_path / "run", resume=True).create("run: {name: run}\n")
