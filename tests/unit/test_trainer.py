"""The loop with scripted players and learners: what becomes of a run whose judge is gone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from faulty_judge import FaultyJudge, good, status

from openrlhf_medical.config import load_config
from openrlhf_medical.console import Console
from openrlhf_medical.errors import RunError
from openrlhf_medical.game.manager import MedicalDialogueGameManager
from openrlhf_medical.game.players import Prompt, Reply, Role, TurnKey
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.health import HealthLimits, HealthMonitor
from openrlhf_medical.judge.client import JudgeClient
from openrlhf_medical.rollout.opponents import League
from openrlhf_medical.run_directory import RunDirectory
from openrlhf_medical.trainer import SelfPlayTrainer

NOTE = "A man has gout. He takes colchicine for it."
CATEGORIES = [Category.ADVERSARIAL_BENIGN, Category.VANILLA_BENIGN]
STEPS = 4


class Player:
    async def reply(self, prompt: Prompt, key: TurnKey) -> Reply:
        answer = NOTE.replace("colchicine", "warfarin") if key.role is Role.ATTACKER else "Harmful"
        return Reply(f"t </think> <answer>{answer}</answer>")


class Seeds:
    def step(self, step: int, count: int) -> list[Seed]:
        return [Seed(f"s{i}", CATEGORIES[i % 2], f"n{i}", f"v{i}", "clean", NOTE, NOTE) for i in range(count)]


@pytest.fixture(autouse=True)
def _no_engines(monkeypatch):
    monkeypatch.setattr("openrlhf_medical.learner.policy.Learner.sync", lambda learner: None)


class ScriptedLearner:
    name, roles = "shared", tuple(Role)

    def __init__(self) -> None:
        self.workers = SimpleNamespace(policy=object())
        self.learned_from: list[int] = []

    def check_engines(self) -> None: ...

    def prepare(self, trajectories: list) -> SimpleNamespace:
        self.learned_from.append(len(trajectories))
        return SimpleNamespace(metrics={"sync/logprob_mean_diff": 0.0})

    def update(self, prepared, seed: int, step: int) -> dict[str, float]:
        return {}

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")


def trainer_of(folder: Path, judge: JudgeClient, *words: str) -> SelfPlayTrainer:
    config = load_config(Path("configs/tiny.yaml"), ["--run.steps", str(STEPS), "--rollout.batch_size", "8", *words])
    directory = RunDirectory(folder)
    directory.create("")
    player = Player()
    manager = MedicalDialogueGameManager(player, player, judge, GameRules())
    monitor = HealthMonitor(HealthLimits(), tuple(Role))
    console = Console(STEPS, directory.log_file)
    league, learners = League({}, {}, None), [ScriptedLearner()]
    return SelfPlayTrainer(config, learners, league, manager, judge, Seeds(), None, monitor, directory, console)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("words", [[], ["--train.async_enable", "true", "--algo.advantage.is_correction_level", "seq"]])
def test_a_run_whose_judge_is_gone_for_good_saves_what_it_has(tmp_path, words):
    with FaultyJudge(good) as judge, JudgeClient([judge.url], timeout_s=0.5) as client:
        limits = ["--judge.recovery_timeout_s", "1.5", "--judge.max_failed_fraction", "0.25"]
        trainer = trainer_of(tmp_path / "run", client, *limits, *words)

        def update(prepared, seed: int, step: int) -> dict[str, float]:
            if step == 1:  # while the games of step 2 are played, or before
                judge.stop()
            return {}

        trainer.learners[0].update = update
        with pytest.raises(RunError) as error:
            trainer.fit()
        trainer.close()
    assert "4 of 8 games failed, 4 of them for want of a label, more than judge.max_failed_fraction (0.25)" in str(
        error
    )
    assert f"{judge.url}: ConnectionError" in str(error.value)
    saved = tmp_path / "run" / "checkpoints" / "interrupted"
    assert str(saved) in str(error.value) and (saved / "shared" / "model.safetensors").exists()
    games = rows(tmp_path / "run" / "games.jsonl")
    keys = [(game["step"], game["game_idx"]) for game in games]
    last = keys[-1][0]
    assert sorted(keys) == [(step, idx) for step in range(last + 1) for idx in range(8)], "each game once"
    assert [game["status"] for game in games if game["step"] == last] == ["error", "ok"] * 4
    assert {game["status"] for game in games if game["step"] < last} == {"ok"}
    assert [row["step"] for row in rows(tmp_path / "run" / "metrics.jsonl")] == list(range(last))


def test_a_pause_costs_no_game(tmp_path):
    """The judge fails all of step 1, and then stands up again."""
    with FaultyJudge(good) as judge, JudgeClient([judge.url], timeout_s=0.5) as client:
        trainer = trainer_of(tmp_path / "run", client, "--judge.recovery_timeout_s", "120")

        def update(prepared, seed: int, step: int) -> dict[str, float]:
            if step == 0:
                judge.handler = status(500)
            return {}

        trainer.learners[0].update = update
        trainer.recovery._tell = lambda sentence: setattr(judge, "handler", good)  # as soon as the pause begins
        trainer.fit()
        trainer.close()
    games = rows(tmp_path / "run" / "games.jsonl")
    assert len(games) == 8 * STEPS and {game["status"] for game in games} == {"ok"}
    again = [game for game in games if game["judge_failures"]]
    assert {(game["step"], game["category"]) for game in again} == {(1, "adversarial_benign")} and len(again) == 4
    metrics = rows(tmp_path / "run" / "metrics.jsonl")
    assert ["judge/paused_s" in row for row in metrics] == [False, True, False, False]
    assert len(set(trainer.learners[0].learned_from)) == 1, "every step learned from all its games"
