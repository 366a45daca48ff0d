"""The loop with scripted players and learners: what becomes of a run whose judge is gone."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from faulty_judge import FaultyJudge, good, opposite, row_of, rows_changed, slow, status

from openrlhf_medical import commands
from openrlhf_medical.config import load_config
from openrlhf_medical.console import Console
from openrlhf_medical.errors import RunError
from openrlhf_medical.game.manager import MedicalDialogueGameManager
from openrlhf_medical.game.players import Prompt, Reply, Role, Truth, TurnKey
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.health import HealthLimits, HealthMonitor
from openrlhf_medical.judge.audit.gold_watch import GoldWatch
from openrlhf_medical.judge.client import JudgeClient
from openrlhf_medical.judge.transport import Health
from openrlhf_medical.rollout.opponents import League
from openrlhf_medical.run_directory import RunDirectory
from openrlhf_medical.trainer import SelfPlayTrainer, _largest

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

    def state(self) -> dict:
        return {}

    def save_state(self, folder: Path) -> None:
        folder.mkdir()


def trainer_of(folder: Path, judge: JudgeClient, *words: str, gold: GoldWatch | None = None) -> SelfPlayTrainer:
    config = load_config(Path("configs/tiny.yaml"), ["--run.steps", str(STEPS), "--rollout.batch_size", "8", *words])
    directory = RunDirectory(folder)
    directory.create("")
    player = Player()
    manager = MedicalDialogueGameManager(player, player, judge, GameRules())
    monitor = HealthMonitor(HealthLimits(), tuple(Role))
    console = Console(STEPS, directory.log_file)
    league, learners = League({}, {}, None), [ScriptedLearner()]
    return SelfPlayTrainer(config, learners, league, manager, judge, Seeds(), None, monitor, directory, console, gold)


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


@pytest.mark.parametrize("in_a_pause", [False, True])
def test_a_run_that_fails_does_not_wait_for_the_games_played_ahead(tmp_path, in_a_pause):
    """Those of step 1 wait for a reply that takes a minute, or for a judge that does not come back."""
    begun, go_on, paused = threading.Event(), threading.Event(), threading.Event()

    class WaitsInStep1(Player):
        async def reply(self, prompt: Prompt, key: TurnKey) -> Reply:
            end = time.monotonic() + 60
            while key.step == 1 and not go_on.is_set() and time.monotonic() < end:
                begun.set()
                await asyncio.sleep(0.01)
            return await super().reply(prompt, key)

    def update(prepared, seed: int, step: int) -> dict[str, float]:
        assert begun.wait(10)
        if in_a_pause:
            judge.stop()
            go_on.set()
            assert paused.wait(10)
        raise RunError("the workers do not answer")

    with FaultyJudge(good) as judge, JudgeClient([judge.url], timeout_s=0.5) as client:
        ahead = ["--train.async_enable", "true", "--algo.advantage.is_correction_level", "seq"]
        trainer = trainer_of(tmp_path / "run", client, *ahead, "--judge.recovery_timeout_s", "60")
        trainer.manager.attacker = trainer.manager.assessor = WaitsInStep1()
        trainer.recovery._tell = lambda sentence: paused.set()
        trainer.learners[0].update = update
        with pytest.raises(RunError, match="the workers do not answer"):
            trainer.fit()
        began = time.monotonic()
        trainer.close()
        assert time.monotonic() - began < 5
    kept = {game["step"] for game in rows(tmp_path / "run" / "games.jsonl")}
    assert kept == ({0, 1} if in_a_pause else {0}), "what was played is kept"


def test_samples_that_teach_nothing_are_counted(tmp_path):
    """All were alone in their groups: the weights stay as they are, and the metrics tell why."""
    with FaultyJudge(good) as judge, JudgeClient([judge.url], timeout_s=5) as client:
        trainer = trainer_of(tmp_path / "run", client, "--run.steps", "1")
        trainer.learners[0].prepare = lambda trajectories: None
        trainer.fit()
        trainer.close()
    [row] = rows(tmp_path / "run" / "metrics.jsonl")
    for role, count in (("attacker", 4), ("assessor", 8)):
        assert row[f"policy/{role}/samples"] == 0 and row[f"policy/{role}/dropped_thinned"] == count


# ── Health ──


def test_weights_that_became_nan_stop_the_run_that_asks_for_it(tmp_path):
    with FaultyJudge(good) as judge, JudgeClient([judge.url], timeout_s=5) as client:
        trainer = trainer_of(tmp_path / "run", client, "--run.on_collapse", "stop")
        trainer.learners[0].update = lambda prepared, seed, step: {
            "policy/assessor/grad_norm": math.nan if step == 1 else 1.0
        }
        with pytest.raises(RunError, match=r"stopped at step 1 .*policy/assessor/grad_norm was nan"):
            trainer.fit()
        trainer.close()
    norms = [row["policy/assessor/grad_norm"] for row in rows(tmp_path / "run" / "metrics.jsonl")]
    assert norms == [1.0, None]
    assert (tmp_path / "run" / "checkpoints" / "collapsed" / "shared" / "model.safetensors").exists()


@pytest.mark.parametrize(("a", "b"), [(1.0, math.nan), (math.nan, 1.0)])
def test_of_two_policies_figures_the_largest_is_told_and_nan_before_all(a, b):
    assert math.isnan(_largest(a, b)) and _largest(1.0, 2.0) == _largest(2.0, 1.0) == 2.0


# ── Gold probes ──

WRONG = NOTE.replace("colchicine", "insulin")
PAIRS = [Seed("e", Category.VANILLA_HARMFUL, "ne", "ve", "error", WRONG, NOTE)] + [
    Seed(f"c{i}", Category.VANILLA_BENIGN, f"n{i}", f"v{i}", "clean", NOTE, NOTE) for i in range(4)
]


def gold_of(client: JudgeClient, every: int = 2) -> GoldWatch:
    watch = GoldWatch(client, PAIRS, every=every, count=4, seed=0)
    # Cosmetic rewrites are beyond the scripted judge: its Safe pairs are all identical here.
    watch.pairs = lambda step: [(Truth.HARMFUL, NOTE, WRONG), (Truth.SAFE, NOTE, NOTE)]  # type: ignore[method-assign]
    return watch


def fitted(folder: Path, handler, *words: str, every: int = 2, wait: bool = True) -> tuple[SelfPlayTrainer, str]:
    """A run with gold probes, and what it warned of. ``wait``: steps take long enough for a round."""
    with FaultyJudge(handler) as judge, JudgeClient([judge.url], timeout_s=5) as client:
        trainer = trainer_of(folder, client, *words, gold=gold_of(client, every))
        told: list[str] = []
        trainer.console.warn = told.append  # type: ignore[method-assign]

        def update(prepared, seed: int, step: int) -> dict[str, float]:
            end = time.monotonic() + 5
            while wait and trainer.gold._round and not trainer.gold._round.done() and time.monotonic() < end:
                time.sleep(0.01)
            return {}

        trainer.learners[0].update = update
        try:
            trainer.fit()
        finally:
            trainer.close()
    return trainer, "\n".join(told)


def test_gold_probes_leave_figures_and_enter_no_game(tmp_path):
    _, told = fitted(tmp_path / "run", good)
    metrics = rows(tmp_path / "run" / "metrics.jsonl")
    assert [row.get("judge/gold_balanced_accuracy") for row in metrics] == [1.0, None, 1.0, None]
    assert [row.get("judge/gold_abstain_rate") for row in metrics] == [0.0, None, 0.0, None]
    games = rows(tmp_path / "run" / "games.jsonl")
    assert len(games) == 8 * STEPS and all("insulin" not in json.dumps(game) for game in games)
    assert {row["judge/abstain_rate"] for row in metrics} == {0.0} and "judge_drift" not in told


def drifts(judge: FaultyJudge, http, body) -> None:
    """Right about games, wrong about the pairs that it should know."""
    changed = [opposite(row_of(query)) if query["game_category"] == "gold_probe" else row_of(query)
               for query in body["queries"]]  # fmt: skip
    rows_changed(lambda found: changed)(judge, http, body)


def test_a_judge_that_drifts_is_a_warning(tmp_path):
    _, told = fitted(tmp_path / "run", drifts)
    assert told.count("judge_drift") == 1, "once until it clears"
    assert "step 0: judge_drift (run): the judge's balanced accuracy on gold probes was 0.00" in told
    assert len(rows(tmp_path / "run" / "metrics.jsonl")) == STEPS


def test_a_judge_that_drifts_stops_a_run_that_asks_for_it(tmp_path):
    with pytest.raises(RunError, match=r"stopped at step 0 .*gold probes was 0\.00"):
        fitted(tmp_path / "run", drifts, "--run.on_collapse", "stop")
    assert (tmp_path / "run" / "checkpoints" / "collapsed" / "shared" / "model.safetensors").exists()


def test_training_does_not_wait_for_gold_probes(tmp_path):
    """The judge is quick about games and hangs on probes."""

    def handle(judge: FaultyJudge, http, body) -> None:
        hangs = any(query["game_category"] == "gold_probe" for query in body["queries"])
        (slow(3) if hangs else good)(judge, http, body)

    with FaultyJudge(handle) as judge, JudgeClient([judge.url], timeout_s=5, batch_size=1) as client:
        trainer = trainer_of(tmp_path / "run", client, gold=gold_of(client, 1))
        began = time.monotonic()
        trainer.fit()
        assert time.monotonic() - began < 2.5
        trainer.close()
    metrics = rows(tmp_path / "run" / "metrics.jsonl")
    assert len(metrics) == STEPS and not [row for row in metrics if "judge/gold_error_rate" in row]


def test_the_configuration_reaches_probes_and_alarm():
    words = ["--judge.probe_every", "3", "--judge.probe_count", "4", "--judge.probe_alarm", "0.9"]
    config, seeds = load_config(Path("configs/tiny.yaml"), words), SimpleNamespace(all_seeds=lambda: PAIRS)
    with FaultyJudge(good) as judge, JudgeClient([judge.url]) as client:
        gold = commands._gold_watch(config, client, seeds)  # type: ignore[arg-type]
        assert gold is not None and Counter(truth for truth, *_ in gold.pairs(0)) == {Truth.HARMFUL: 1, Truth.SAFE: 2}
        for step in (1, 2, 4):
            gold.begin(step)
        time.sleep(0.2)
        assert judge.asked == 0
        gold.begin(3)
        end = time.monotonic() + 5
        while not gold.finished() and time.monotonic() < end:
            time.sleep(0.01)
        assert judge.asked > 0
        assert commands._gold_watch(load_config(Path("configs/tiny.yaml")), client, seeds) is None  # type: ignore[arg-type]
    assert commands._health_limits(config).gold_accuracy_share == 0.9


@pytest.mark.parametrize("told", [True, False])
def test_disguise_before_the_rules_is_told_at_start(told):
    config = load_config(Path("configs/tiny.yaml"), ["--game.benign_goal", "disguise"] if told else [])
    judge = SimpleNamespace(health=lambda: {"http://a": Health(True, "reference")})
    warned: list[str] = []
    commands._warn_of_disguise(config, judge, SimpleNamespace(warn=warned.append))  # type: ignore[arg-type]
    assert [text.split(" with ")[0] for text in warned] == ["game.benign_goal disguise"] * told


@pytest.mark.parametrize(("words", "named"), [([], ["data.train"]), (["--data.sft", "f"], ["data.train", "data.sft"])])
def test_held_out_notes_that_training_knows_are_told(words, named):
    config = load_config(Path("configs/tiny.yaml"), ["--train.sft_coef", "1", *words])
    warned: list[str] = []
    console = SimpleNamespace(warn=warned.append)
    commands._warn_of_known(config, PAIRS, PAIRS[:1], PAIRS, console)  # type: ignore[arg-type]
    assert [text.split(" known from ")[1].split(",")[0] for text in warned] == named
    assert all("of the 5 seeds of data.val" in text for text in warned)
    warned.clear()
    commands._warn_of_known(config, PAIRS, [], [], console)  # type: ignore[arg-type]
    assert not warned
