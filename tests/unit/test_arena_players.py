"""Who enters an arena, and what is no player."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openrlhf_medical.cli import app
from openrlhf_medical.errors import UserError
from openrlhf_medical.evaluation.arena_players import Entrant, check_names, entrant, fingerprint, named, of_run
from openrlhf_medical.game.players import Role


def model(folder: Path, weights: str = "w", adapter_of: str | None = None) -> Path:
    folder.mkdir(parents=True)
    if adapter_of is None:
        (folder / "config.json").write_text("{}")
        (folder / "tokenizer.json").write_text("{}")
    else:
        (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "base_model_name_or_path": adapter_of}))
    (folder / "model.safetensors").write_text(weights)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Separate policies; of the pool one is still being written."""
    root = tmp_path / "run" / "checkpoints"
    for name in ("final", "step_10", "step_2", "pool/step_0", "warm_start"):
        for role in Role:
            model(root / name / role)
    model(root / "best.partial" / "attacker")
    model(root / "state" / "step_2" / "attacker")
    (root / "step_2" / "trainer_state").mkdir()
    model(tmp_path / "base")
    return tmp_path / "run"


def test_all_checkpoints_of_a_run(run):
    found = of_run(run, str(run.parent / "base"))
    order = ["base", "warm_start", "pool/step_0", "step_2", "step_10", "final"]
    assert [one.name for one in found if one.role is Role.ASSESSOR] == order
    assert all(one.folder.endswith(f"{one.name}/{one.role}") for one in found if one.name != "base")
    kept = of_run(run, str(run.parent / "base"), ["final", "base"])
    assert [(one.name, one.role) for one in kept] == [
        ("base", Role.ATTACKER), ("base", Role.ASSESSOR), ("final", Role.ASSESSOR), ("final", Role.ATTACKER),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"--only step_3: .*it has base, final, pool/step_0"):
        of_run(run, str(run.parent / "base"), ["step_3"])


def test_a_shared_policy_plays_both_roles(tmp_path):
    model(tmp_path / "run" / "checkpoints" / "final" / "shared")
    found = of_run(tmp_path / "run", str(model(tmp_path / "base")))
    assert {(one.name, one.role) for one in found} == {(n, r) for n in ("base", "final") for r in Role}


def test_a_run_without_checkpoints_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint"):
        of_run(tmp_path / "run", str(model(tmp_path / "base")))


def test_names():
    assert named("a=x/y") == ("a", "x/y") and named("x/y") == ("y", "x/y")
    for word in ("", "=x", "a="):
        with pytest.raises(UserError, match="is no player; write NAME=FOLDER"):
            named(word)
    a, b = (Entrant("a", role, "x") for role in Role)
    assert check_names([a, b, a]) == ([a], [b])
    with pytest.raises(UserError, match=r"two attackers are called a \(x and y\)"):
        check_names([a, b, Entrant("a", Role.ATTACKER, "y")])
    with pytest.raises(UserError, match="the arena has no assessor"):
        check_names([a])


def test_adapters_know_their_base(tmp_path):
    base = model(tmp_path / "base")
    folder = model(tmp_path / "adapter", adapter_of="elsewhere/model")
    assert entrant("a", Role.ATTACKER, str(folder), str(base)).base == str(base)
    assert entrant("a", Role.ATTACKER, str(folder), None).base == "elsewhere/model"
    assert entrant("a", Role.ATTACKER, str(base), str(folder)).base is None


def test_what_is_no_model_is_told_with_what_is_below_it(run):
    with pytest.raises(UserError, match=r"final is no player.*its folders assessor, attacker are: name one"):
        entrant("a", Role.ATTACKER, str(run / "checkpoints" / "final"), None)


def test_a_fingerprint_is_of_the_bytes(tmp_path):
    one, same, other = (model(tmp_path / name, text) for name, text in (("1", "w"), ("2", "w"), ("3", "v")))
    prints = [fingerprint(Entrant("a", Role.ATTACKER, str(folder))) for folder in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]
    on_base = [fingerprint(Entrant("a", Role.ATTACKER, str(one), base=str(base))) for base in (same, other)]
    assert on_base[0] != on_base[1] != prints[0]


@pytest.mark.parametrize("words, message", [
    ([], "an arena needs players"),
    (["--only", "final", "--player", "models/tiny"], "--only names checkpoints of a run"),
    (["--run", "nowhere"], "nowhere is no run"),
    (["--attacker", "a=models/tiny"], "the arena has no assessor"),
    (["--player", "a=./nothing"], "no model at ./nothing"),
])  # fmt: skip
def test_mistakes_on_the_command_line(words, message):
    done = CliRunner().invoke(app, ["arena", *words])
    assert done.exit_code == 2 and message in done.output, done.output
