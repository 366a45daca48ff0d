"""A run that measures itself while it trains, and an arena over what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_train import data, rows, run, training_steps  # noqa: F401  (data is a fixture)

STEPS = 2
BEST = "eval/frozen_attacker/assessor/accuracy"


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("arena")
    done = run(
        *("train", "--config", "configs/tiny.yaml", "--run.name", "measured", "--run.dir", str(folder)),
        *("--data.train", str(data / "train.jsonl"), "--data.val", str(data / "val.jsonl")),
        *("--run.steps", str(STEPS), "--run.eval_games", "8", "--run.eval_every", "1", "--run.eval_frozen", "true"),
        *("--run.best_metric", BEST, "--logger.tensorboard_dir", str(folder / "tensorboard")),
        *("--train.colocate_all", "true"),
    )
    return folder / "measured", done


def test_every_evaluation_is_there(trained):
    folder, _ = trained
    measured = [row for row in rows(folder / "metrics.jsonl") if "eval/assessor/accuracy" in row]
    assert [row["step"] for row in measured] == [-1, 1, STEPS]
    assert all("eval/frozen_assessor/attacker/success_rate" in row and BEST in row for row in measured)
    assert {game["step"] for game in rows(folder / "games.jsonl")} == {-1, 0, 1, -2, STEPS}
    assert all("attacker/diversity/attacks" in row for row in training_steps(folder))


def test_the_start_plays_the_other_side_and_stays_what_it_was(trained):
    folder, _ = trained
    versions = {-1: 0, -2: 1, STEPS: STEPS}
    players = set()
    for game in rows(folder / "frozen_games.jsonl"):
        sides = [game[role] for role in ("attacker", "assessor") if game[role]]
        for side in sides:
            players.add((side["player"], side["frozen"]))
            assert side["policy_version"] == (-1 if side["player"] == "start" else versions[game["step"]])
        assert len({side["player"] for side in sides}) == len(sides), "never the start against itself"
    assert players == {("start", True), ("attacker", False), ("assessor", False)}


def test_the_best_checkpoint_is_the_best_evaluations(trained):
    folder, _ = trained
    values = {max(0, row["step"]): row[BEST] for row in rows(folder / "metrics.jsonl") if BEST in row}
    best = json.loads((folder / "checkpoints" / "best" / "best.json").read_text())
    first = next(done for done, value in values.items() if value == max(values.values()))
    assert best == {"steps_done": first, "metric": BEST, "value": values[first]}
    if first == STEPS:
        for role in ("attacker", "assessor"):
            final, kept = (load_file(folder / "checkpoints" / name / role / "model.safetensors")
                           for name in ("final", "best"))  # fmt: skip
            assert all((final[name] == kept[name]).all() for name in final)


def test_tensorboard_has_every_figure_under_its_name(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = trained
    found = EventAccumulator(str(folder.parent / "tensorboard" / "measured"))
    found.Reload()
    names = {name for row in rows(folder / "metrics.jsonl") for name in row} - {"step", "time"}
    assert set(found.Tags()["scalars"]) == names


def test_the_console_is_one_line_a_step(trained):
    _, done = trained
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("held-out games ")] and len(lines) < 30, done.stderr
    assert sum(line.startswith("step ") for line in lines) == STEPS


@pytest.fixture(scope="module")
def arena(trained):
    folder, _ = trained
    done = play(folder, "--only", "base,final")
    return folder, done, (folder / "arena" / "games.jsonl").read_bytes()


def play(folder: Path, *words: str):
    return run("arena", "--run", str(folder), "--num-samples", "6", "--run.deterministic", "true", *words)


def by_pair(text: str) -> dict[tuple[str | None, str], list[dict]]:
    found: dict[tuple[str | None, str], list[dict]] = {}
    for row in map(json.loads, text.splitlines()):
        found.setdefault(tuple(row["pair"]), []).append(row)
    return found


def test_all_pairs_play_the_same_seeds(arena):
    folder, done, games = arena
    pairs = by_pair(games.decode())
    contests = {pair: own for pair, own in pairs.items() if pair[0]}
    assert set(contests) == {(a, s) for a in ("base", "final") for s in ("base", "final")}
    assert len({tuple(row["seed_id"] for row in own) for own in contests.values()}) == 1
    for (attacker, assessor), own in contests.items():
        assert len(own) == 6
        assert {row["attacker"]["player"] for row in own if row["attacker"]} == {attacker}
        assert {row["assessor"]["player"] for row in own if row["assessor"]} <= {assessor}
    result = json.loads((folder / "arena.json").read_text())
    assert len(result["matrix"]) == 4 and all(cell["games"] + cell["undecided"] == 6 for cell in result["matrix"])
    assert {(one["player"], one["role"]) for one in result["ratings"]} == {
        (name, role) for name in ("base", "final") for role in ("attacker", "assessor")
    }
    assert "Elo" in done.stdout and "Attacker's wins" in done.stdout


def test_weights_that_come_back_are_the_same(arena):
    """Each attacker left its engine and came back: what it writes on a seed is the same against both assessors, for
    turns have seeds of their own. The two attackers are not the same."""
    pairs = by_pair(arena[2].decode())
    written = {pair: [row["attacker"]["answer"] for row in own] for pair, own in pairs.items() if pair[0]}
    for name in ("base", "final"):
        assert written[name, "base"] == written[name, "final"]


def test_an_arena_that_was_killed_goes_on_and_takes_new_players(arena):
    folder, _, games = arena
    file = folder / "arena" / "games.jsonl"
    file.write_bytes(games[:-200])  # in the middle of the last pair's last game
    done = play(folder, "--only", "base,final,best")
    before, after = by_pair(games.decode()), by_pair(file.read_text())
    for pair, rows_before in before.items():  # finished pairs are as they were, and the last one was played alike again
        assert after[pair] == rows_before, pair
    assert set(after) - set(before) == {
        (None, "best"), ("best", "best"), ("best", "base"), ("best", "final"), ("base", "best"), ("final", "best"),
    }  # fmt: skip
    assert "are in" in done.stderr and "left to play" in done.stderr
    assert len(json.loads((folder / "arena.json").read_text())["matrix"]) == 9
