"""The arena's command with scripted seats and a scripted judge: what is played, shown, written and refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from openrlhf_medical import arena_run
from openrlhf_medical.arena_run import ArenaPlan, run_arena, seeds_of
from openrlhf_medical.config import load_config
from openrlhf_medical.data.prepare import prepare_data
from openrlhf_medical.errors import RunError, UserError
from openrlhf_medical.evaluation.arena_players import Entrant
from openrlhf_medical.game.players import Label, Prompt, Reply, Role, Truth, TurnKey
from openrlhf_medical.judge.transport import Health


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare_data("synthetic", folder, 80, 0.5, 0, None, [], None, "all")
    return folder


class Player:
    def __init__(self, entrant: Entrant) -> None:
        self.entrant = entrant

    async def reply(self, prompt: Prompt, key: TurnKey) -> Reply:
        answer = "1: He takes aspirin." if key.role is Role.ATTACKER else "Harmful"
        return Reply(f"t </think> <answer>{answer}</answer>", player=self.entrant.name)


class Seat:
    """Keeps who sat down."""

    taken: list[tuple[str, str]] = []  # noqa: RUF012

    def __init__(self, config, role: Role) -> None:
        self.role, self.one = role, None

    def take(self, one: Entrant) -> None:
        if one != self.one:
            self.taken.append((self.role.value, one.name))
        self.one = one

    def wait(self) -> None: ...

    def player(self) -> Player:
        return Player(self.one)


class Judge:
    broken = False

    async def label(self, query) -> Label:
        if self.broken:
            return Label("error", None, reason="out of order")
        return Label("ok", Truth.HARMFUL, error_present=True)

    def health(self):
        return {"http://judge": Health(False, "out of order")}

    def last_words(self):
        return {"http://judge": "out of order"}


@pytest.fixture
def judge(monkeypatch) -> Judge:
    one = Judge()
    Seat.taken = []
    monkeypatch.setattr(arena_run, "Seat", Seat)
    monkeypatch.setattr(arena_run, "tokenizer_of", lambda entrant: "tokenizer")
    monkeypatch.setattr(arena_run.assembly, "check_prompts_fit", lambda *given: None)
    monkeypatch.setattr(arena_run.assembly, "judge_of", lambda config, folder: contextlib.nullcontext(one))
    monkeypatch.setattr(arena_run.cluster, "session", lambda places: contextlib.nullcontext())
    return one


def config_of(data: Path, *words: str):
    return load_config(Path("configs/tiny.yaml"), ["--data.val", str(data / "val.jsonl"),
                                                   "--judge.recovery_timeout_s", "0", *words])  # fmt: skip


def entrants(folder: Path, role: Role, *names: str) -> list[Entrant]:
    found = []
    for name in names:
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps({"weights": name}))
        found.append(Entrant(name, role, str(folder / name)))
    return found


def plan_of(folder: Path, *attackers: str, samples: int = 4) -> ArenaPlan:
    return ArenaPlan(entrants(folder, Role.ATTACKER, *attackers), entrants(folder, Role.ASSESSOR, "s", "t"), samples, 0,
                     folder / "arena", folder / "published.json")  # fmt: skip


def test_an_arena_from_start_to_end(tmp_path, data, judge, capsys):
    result = run_arena(config_of(data), plan_of(tmp_path, "a", "b"))
    assert [(cell["attacker"], cell["assessor"], cell["games"]) for cell in result["matrix"]] == [
        (a, s, 4) for a in ("a", "b") for s in ("s", "t")
    ]
    assert Seat.taken == [("attacker", "a"), ("assessor", "s"), ("attacker", "b"), ("assessor", "t"),
                          ("attacker", "a")]  # fmt: skip
    written = json.loads((tmp_path / "arena" / "arena.json").read_text())
    assert written == json.loads((tmp_path / "published.json").read_text())
    assert written["attackers"] == ["a", "b"] and written["assessors"] == ["s", "t"]
    for one in written["ratings"]:
        assert {"player", "role", "elo", "low", "high"} <= one.keys()
    assert written["alone"][0]["false_positive_rate"]["value"] == 1, "it says Harmful, whatever it reads"
    told = capsys.readouterr()
    assert "Attacker's wins" in told.out and "100 %" in told.out and str(tmp_path / "arena") in told.out
    lines = told.err.splitlines()
    assert any(line.startswith("games ") and "min left" in line for line in lines) and len(lines) < 15


def test_new_players_play_what_is_left_and_nothing_else(tmp_path, data, judge, capsys):
    run_arena(config_of(data), plan_of(tmp_path, "a"))
    before = (tmp_path / "arena" / "games.jsonl").read_text()
    Seat.taken = []
    result = run_arena(config_of(data), plan_of(tmp_path, "b", "a"))
    assert (tmp_path / "arena" / "games.jsonl").read_text().startswith(before)
    assert {name for role, name in Seat.taken if role == "attacker"} == {"b"}
    assert len(result["matrix"]) == 4
    Seat.taken = []
    assert run_arena(config_of(data), plan_of(tmp_path, "b", "a")) == result and Seat.taken == []


@pytest.mark.parametrize("words, samples, message", [
    (["--game.cot", "false"], 4, "was played with game"),
    (["--rollout.temperature", "0.5"], 4, "was played with sampling"),
    ([], 5, "was played with (alone|seeds)"),
])  # fmt: skip
def test_an_arena_of_other_games_is_refused(tmp_path, data, judge, words, samples, message):
    run_arena(config_of(data), plan_of(tmp_path, "a"))
    with pytest.raises(UserError, match=message):
        run_arena(config_of(data, *words), plan_of(tmp_path, "a", samples=samples))


def test_a_judge_that_is_gone_is_no_result(tmp_path, data, judge):
    judge.broken = True
    with pytest.raises(RunError, match="a against s: 4 of 4 games failed"):
        run_arena(config_of(data), plan_of(tmp_path, "a"))
    assert not (tmp_path / "arena" / "arena.json").exists()
    judge.broken = False
    run_arena(config_of(data), plan_of(tmp_path, "a"))


def test_seeds_are_those_on_which_somebody_plays(data):
    config = config_of(data)
    playing, alone = seeds_of(config, config.rules(), 6, 0)
    assert len(playing) == len(alone) == 6
    assert not any(seed.category.is_vanilla for seed in playing) and all(seed.category.is_vanilla for seed in alone)
    copying = config_of(data, "--game.vanilla_turn", "generate")
    assert seeds_of(copying, copying.rules(), 6, 0)[1] == []
    words = [f"--game.mix.{name}" for name in ("vanilla_harmful", "vanilla_benign")]
    none = config_of(data, words[0], "0.5", words[1], "0.5", "--game.mix.adversarial_harmful", "0",
                     "--game.mix.adversarial_benign", "0")  # fmt: skip
    with pytest.raises(UserError, match="no category in which the attacker writes"):
        seeds_of(none, none.rules(), 6, 0)
