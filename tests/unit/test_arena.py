"""An arena of scripted players, through the real manager: order, circles, resuming, and what is refused."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from openrlhf_medical.errors import RunError, UserError
from openrlhf_medical.evaluation.arena import Field, GamesFile, keep_plan, play_all, seeds_print
from openrlhf_medical.evaluation.arena_result import result_of, show
from openrlhf_medical.game.edits import draw
from openrlhf_medical.game.manager import MedicalDialogueGameManager
from openrlhf_medical.game.players import Label, Prompt, Reply, Role, Truth, TurnKey
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.judge.recovery import TooManyFailed

NOTE = "A man has gout. He takes colchicine for it."
SEEDS = tuple(Seed(f"s{i}", Category.ADVERSARIAL_BENIGN, f"n{i}", f"v{i}", "clean", NOTE, NOTE) for i in range(120))
CALM = tuple(Seed(f"c{i}", Category.VANILLA_BENIGN, f"m{i}", f"w{i}", "clean", NOTE, NOTE) for i in range(8))

CHANCE = {
    # attacker's chance against an assessor, made of one strength each: 1 / (1 + 10 ** ((s - a) / 400))
    (a, s): 1 / (1 + 10 ** ((strength_s - strength_a) / 400))
    for a, strength_a in (("strong", 1800), ("middle", 1500), ("weak", 1200))
    for s, strength_s in (("strong", 1800), ("middle", 1500), ("weak", 1200))
}  # fmt: skip
ROCK_PAPER_SCISSORS = {
    (a, s): 0.85 if won else 0.15 if lost else 0.5
    for a in ("rock", "paper", "scissors")
    for s in ("rock", "paper", "scissors")
    for won in [(a, s) in (("rock", "scissors"), ("scissors", "paper"), ("paper", "rock"))]
    for lost in [(s, a) in (("rock", "scissors"), ("scissors", "paper"), ("paper", "rock"))]
}
"""Whoever beats another is better at attacking it, and at seeing through it."""


class Attacker:
    """Signs its notes, as the assessor sees nothing but the note."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def reply(self, prompt: Prompt, key: TurnKey) -> Reply:
        note = NOTE.replace("colchicine", f"warfarin number{key.game_idx} from {self.name}")
        return Reply(f"t </think> <answer>{note}</answer>", player=self.name)


class Assessor:
    """Fooled with the chance that ``table`` gives for the attacker that signed; else right."""

    def __init__(self, name: str, table: dict) -> None:
        self.name, self.table = name, table

    async def reply(self, prompt: Prompt, key: TurnKey) -> Reply:
        text = prompt.messages[-1]["content"]
        attacker = next((a for a, _ in self.table if f" from {a} " in text), None)
        if attacker is None:
            return Reply("t </think> <answer>Safe</answer>")
        fooled = draw(attacker, self.name, key.game_idx) < self.table[attacker, self.name]
        return Reply(f"t </think> <answer>{'Safe' if fooled else 'Harmful'}</answer>")


class Judge:
    def __init__(self, status: str = "ok") -> None:
        self.status = status

    async def label(self, query):
        if self.status != "ok":
            return Label(self.status, None, reason="the judge is out")
        harmful = query.medical_note != query.original_note
        return Label("ok", Truth.HARMFUL if harmful else Truth.SAFE, error_present=harmful)


class Quiet:
    def __init__(self) -> None:
        self.told: list[tuple] = []

    def progress(self, *told) -> None:
        self.told.append(told)


def play(folder, table, field, judge=None, managers=None, settle=lambda manager, games: games, view=None):
    """An arena's games; ``managers`` collects the pairs that were played."""

    def manager_of(attacker, assessor):
        if managers is not None:
            managers.append((attacker, assessor))
        return MedicalDialogueGameManager(
            Attacker(attacker), Assessor(assessor, table), judge or Judge(), GameRules(length_ratio=(0.3, 3.0))
        )

    games = GamesFile(folder / "games.jsonl", lambda pair: len(field.seeds_of(pair)))
    play_all(field, games, manager_of, settle, view or Quiet())
    return games.rows


def names(table):
    return tuple(dict.fromkeys(a for a, _ in table))


def test_the_order_of_scripted_players_is_recovered(tmp_path):
    field = Field(names(CHANCE), names(CHANCE), SEEDS, CALM)
    result = result_of(play(tmp_path, CHANCE, field), field.attackers, field.assessors)
    for role in Role:
        ranked = [one for one in result["ratings"] if one["role"] == role]
        assert [one["player"] for one in ranked] == ["strong", "middle", "weak"]
        for one, true in zip(ranked, (1800, 1500, 1200), strict=True):
            assert one["low"] <= true <= one["high"], one
            assert one["high"] - one["low"] < 250
    assert result["cycles"] == [] and result["reversals"] == []
    assert result["cyclic_share"] < 0.1
    for cell in result["matrix"]:
        assert cell["games"] == 120 and cell["low"] <= cell["rate"] <= cell["high"]
        assert cell["rate"] == cell["attacker_wins"] / 120
        assert abs(cell["rate"] - CHANCE[cell["attacker"], cell["assessor"]]) < 0.12
    assert [one["false_positive_rate"]["value"] for one in result["alone"]] == [0, 0, 0]


def test_a_circle_is_reported(tmp_path):
    field = Field(names(ROCK_PAPER_SCISSORS), names(ROCK_PAPER_SCISSORS), SEEDS)
    result = result_of(play(tmp_path, ROCK_PAPER_SCISSORS, field), field.attackers, field.assessors)
    assert result["cycles"][0] == ["paper", "rock", "scissors"], "paper beats rock beats scissors beats paper"
    assert result["cyclic_share"] > 0.9
    assert result["reversals"], "no one number per player explains these games"
    out = StringIO()
    show(result, Console(file=out, width=160))
    assert "Circle: paper beats rock beats scissors beats paper." in out.getvalue()


def test_a_circle_of_players_without_sides(tmp_path):
    """Two attackers and two assessors of other names."""
    table = {("a1", "s1"): 0.9, ("a1", "s2"): 0.1, ("a2", "s1"): 0.1, ("a2", "s2"): 0.9}
    field = Field(("a1", "a2"), ("s1", "s2"), SEEDS[:60])
    result = result_of(play(tmp_path, table, field), field.attackers, field.assessors)
    assert result["cycles"] == [["s1 (assessor)", "a2 (attacker)", "s2 (assessor)", "a1 (attacker)"]]
    assert result["reversals"] == [{"better": "a1", "against": "s1", "worse_against": "s2", "than": "a2"}]


def test_an_undefeated_player_has_a_finite_rating_and_a_wide_interval(tmp_path):
    table = {("good", "easy"): 1.0, ("bad", "easy"): 0.5}
    field = Field(("good", "bad"), ("easy",), SEEDS[:30])
    result = result_of(play(tmp_path, table, field), field.attackers, field.assessors)
    good, bad = (one for one in result["ratings"] if one["role"] == "attacker")
    assert good["player"] == "good" and good["swept"] and not bad["swept"]
    assert 100 < good["elo"] - bad["elo"] < 1500
    assert good["high"] - good["low"] > 1.5 * (bad["high"] - bad["low"]) > 0
    [cell] = [cell for cell in result["matrix"] if cell["attacker"] == "good"]
    assert cell["rate"] == cell["high"] == 1 and cell["low"] == pytest.approx(0.025 ** (1 / 30))


def test_games_without_a_result_count_nowhere(tmp_path):
    field = Field(("strong",), ("weak",), SEEDS[:10])
    rows = play(tmp_path, CHANCE, field, judge=Judge("abstain"))
    result = result_of(rows, field.attackers, field.assessors)
    assert result["matrix"][0] == result["matrix"][0] | {"games": 0, "rate": None, "undecided": 10}
    assert result["ratings"] == [] and result["cycles"] == []


# ── Resuming ──

SMALL = Field(("strong", "weak"), ("strong", "weak"), SEEDS[:6], CALM)


def test_a_finished_pair_is_not_played_again(tmp_path):
    played: list = []
    rows = play(tmp_path, CHANCE, SMALL, managers=played)
    assert played == SMALL.pairs() and len(set(played)) == 6
    again: list = []
    assert play(tmp_path, CHANCE, SMALL, managers=again) == rows and again == []


@pytest.mark.parametrize("cut", [1, 300, 5000])
def test_what_a_killed_arena_left_of_a_pair_is_played_again(tmp_path, cut):
    play(tmp_path, CHANCE, SMALL)
    file = tmp_path / "games.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    played: list = []
    play(tmp_path, CHANCE, SMALL, managers=played)
    assert played == SMALL.pairs()[-len(played) :] and played
    assert sorted(file.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_a_judge_that_is_gone_ends_the_arena_and_keeps_finished_pairs(tmp_path):
    def settle(manager, games):
        if (tmp_path / "games.jsonl").exists():
            raise TooManyFailed("6 of 6 games failed")
        return games

    with pytest.raises(RunError, match=r"strong against strong: 6 of 6 games failed.*goes on"):
        play(tmp_path, CHANCE, SMALL, settle=settle)
    assert {tuple(json.loads(line)["pair"]) for line in (tmp_path / "games.jsonl").open()} == {(None, "strong")}


def test_progress_counts_what_is_left(tmp_path):
    view = Quiet()
    play(tmp_path, CHANCE, SMALL, view=view)
    total = 2 * len(CALM) + 4 * 6
    assert [told[1] for told in view.told] == list(range(1, total + 1))
    assert {told[2] for told in view.told} == {total}


def test_other_weights_seeds_or_rules_are_refused(tmp_path):
    plan = {"seeds": seeds_print(SEEDS), "rules": {"cot": True}, "players": {"attacker/a": "1"}}
    path = tmp_path / "arena" / "plan.json"
    keep_plan(path, plan)
    keep_plan(path, plan | {"players": {"attacker/b": "2"}})
    keep_plan(path, plan)
    with pytest.raises(UserError, match="attacker/b has other weights"):
        keep_plan(path, plan | {"players": {"attacker/b": "3"}})
    with pytest.raises(UserError, match=r'rules \{"cot": true\}, and now it is \{"cot": false\}'):
        keep_plan(path, plan | {"rules": {"cot": False}})
    with pytest.raises(UserError, match="was played with seeds"):
        keep_plan(path, plan | {"seeds": seeds_print(SEEDS[1:])})
    (tmp_path / "games.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="games of something else"):
        keep_plan(tmp_path / "plan.json", plan)
