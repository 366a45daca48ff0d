"""The learning benchmark from held-out seeds to the report, on made-up games and no model."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # as `python benchmarks/learning.py` has it

import learning_data as held_out  # noqa: E402
import learning_header  # noqa: E402
import learning_matches as matches  # noqa: E402
import learning_plan  # noqa: E402
import learning_plots  # noqa: E402
import learning_report  # noqa: E402
import learning_scores as scored  # noqa: E402

from openrlhf_medical import cli  # noqa: E402
from openrlhf_medical.config import load_config  # noqa: E402
from openrlhf_medical.data.conditions import load_conditions  # noqa: E402
from openrlhf_medical.data.prepare import prepare_data  # noqa: E402
from openrlhf_medical.data.seed_files import read_seeds  # noqa: E402
from openrlhf_medical.data.synthetic import generate  # noqa: E402
from openrlhf_medical.errors import RunError, UserError  # noqa: E402
from openrlhf_medical.game.players import Label, Reply, Truth  # noqa: E402
from openrlhf_medical.game.rules import GameRules  # noqa: E402
from openrlhf_medical.game.scoring import Attack, score  # noqa: E402
from openrlhf_medical.game.seeds import Category  # noqa: E402
from openrlhf_medical.game.turns import data_label, read_assessment, read_attack  # noqa: E402

RULES = GameRules(edit="sentence")


@dataclass(frozen=True)
class Skill:
    """How often a made-up player does what."""

    in_form: float
    harmful: float  # assessor: says Harmful of a Harmful note; attacker: its note is Harmful
    safe: float = 0.0  # assessor: says Safe of a Safe note


ASSESSORS = {"base": Skill(0.3, 0.5, 0.5), "warm_start": Skill(0.97, 0.6, 0.7), "final": Skill(0.99, 0.85, 0.8)}
ATTACKERS = {"base": Skill(0.2, 0.2), "warm_start": Skill(0.9, 0.5), "final": Skill(0.98, 0.85)}


def made_up_game(seed, idx, attacker, assessor, rng):
    """One line of games.jsonl, by the real rules from made-up replies."""
    attack = Attack(0, idx, 0, seed, [None], presented_note=seed.seed_note)
    if not seed.category.is_vanilla:
        text = f"t </think> <answer>1: A changed sentence number {rng.randrange(2)} of some length.</answer>"
        attack.attacker, attack.presented_note = read_attack(
            seed, Reply(text if rng.random() < attacker.in_form else "?"), RULES
        )
        harmful = rng.random() < attacker.harmful
        attack.label = Label("ok", Truth.HARMFUL if harmful else Truth.SAFE, error_present=harmful)
    if attack.presented_note is not None:
        attack.label = data_label(seed.category, attack.presented_note, seed.seed_note) or attack.label
        truth = attack.label.actual_harm
        right = rng.random() < (assessor.harmful if truth is Truth.HARMFUL else assessor.safe)
        said = truth if right else next(t for t in Truth if t is not truth)
        text = f"t </think> <answer>{said}</answer>" if rng.random() < assessor.in_form else said
        attack.assessors = [read_assessment(Reply(text), cot=True)]
    return score(attack, RULES)[0].to_json()


def fake_play(words, **_):
    """Stands in for the sub-process: reads the options that it would read."""
    options = dict(zip(words[4::2], words[5::2], strict=True))
    who = {role: Path(options[f"--{role}"]) for role in ("attacker", "assessor")}
    names = {role: folder.parent.name if folder.name in who else "base" for role, folder in who.items()}
    rng = random.Random(f"{names} {options['--seed']}")
    seeds = read_seeds(Path(options["--data"]))
    assert int(options["--num-samples"]) == len(seeds)
    with Path(options["--output"]).open("x", encoding="utf-8") as file:
        for idx, seed in enumerate(seeds):
            game = made_up_game(seed, idx, ATTACKERS[names["attacker"]], ASSESSORS[names["assessor"]], rng)
            file.write(json.dumps(game) + "\n")
    return subprocess.CompletedProcess(words, 0)


def made_up_run(root: Path, name: str, train: Path, seed: int) -> Path:
    """A run's folder as `openrlhf-medical train` leaves it, without weights."""
    run = root / "runs" / name
    for who in ("warm_start", "final"):
        for role in ("attacker", "assessor"):
            (run / "checkpoints" / who / role).mkdir(parents=True)
    (root / "base").mkdir(exist_ok=True)
    config = {
        "run": {"name": name, "steps": 30},
        "actor": {"model_name_or_path": str(root / "base"), "adam": {"lr": 1e-5}},
        "roles": {"policy": "separate"},
        "rollout": {"batch_size": 16, "max_new_tokens": 96, "temperature": 0.7},
        "train": {"seed": seed, "sft_warmup_steps": 40, "sft_batch_size": 16},
        "algo": {"kl": {"init_coef": 0.01}},
        "data": {"train": str(train)},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {"git_commit": "0123456789abcdef", "git_dirty": False, "cpu": "a processor", "cpu_cores": 2,
                   "memory_gib": 16.0, "gpus": [], "versions": {"openrlhf": "0.11.2", "torch": "2"}}  # fmt: skip
    (run / "environment.json").write_text(json.dumps(environment))
    taught = [{"step": 5 * k, "time/warm_start_s": 60.0 * k, f"policy/{role}/sft_loss": 3.0 / k}
              for k in (1, 2, 3) for role in ("attacker", "assessor")]  # fmt: skip
    (run / "warm_start.jsonl").write_text("".join(json.dumps(line) + "\n" for line in taught))
    rng = random.Random(seed)
    lines = [made_up_metrics(step, rng) for step in range(30)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def made_up_metrics(step, rng):
    rise = step / 30
    noise = lambda: rng.uniform(-0.1, 0.1)  # noqa: E731
    found = {"step": step, "time": 1_000.0 + 60 * step, "time/games_s": 10.0, "time/step_s": 40.0,
             "time/update_s/attacker": 20.0, "time/update_s/assessor": 25.0,
             "assessor/balanced_accuracy": 0.6 + 0.2 * rise + noise(),
             "attacker/faithful_rate": 0.4 + 0.3 * rise + noise(),
             "attacker/success_rate": 0.2 + 0.1 * rise + noise()}  # fmt: skip
    for role, sign in (("attacker", 1), ("assessor", -1)):
        found |= {f"format/{role}/violation_rate": max(0.0, 0.2 - 0.2 * rise + noise()),
                  f"reward/{role}/mean": sign * rise + noise(), f"policy/{role}/kl": 0.05 * rise,
                  f"policy/{role}/entropy": 2.0 - rise + noise()}  # fmt: skip
    return found


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    prepare_data("synthetic", folder, num_samples=400)
    return folder / "train.jsonl"


@pytest.fixture
def data(tmp_path, train):
    held_out.write_held_out(tmp_path / "data", read_seeds(train), vignettes=16, attacked=8)
    return tmp_path / "data"


@pytest.fixture
def measured(tmp_path, train, data, monkeypatch):
    monkeypatch.setattr(matches.subprocess, "run", fake_play)
    monkeypatch.setattr(matches, "_commit", lambda: "0123456789abcdef")
    runs = [made_up_run(tmp_path, name, train, seed) for seed, name in enumerate(("learn-1", "learn-2"))]
    for seed, run in enumerate(runs):
        matches.measure(run, data, seed=seed, timeout_s=60, say=lambda line: None)
    return runs


# --- Held-out seeds --------------------------------------------------------------------------------


def test_held_out_seeds_are_both_twins_half_each(data):
    for part in held_out.PARTS:
        seeds = read_seeds(data / f"{part}.jsonl")
        by_category = {c: [s for s in seeds if s.category is c] for c in Category}
        assert [len(by_category[c]) for c in Category] == [16, 8, 16, 8]
        vignettes = [{s.vignette_id for s in by_category[c]} for c in Category]
        assert vignettes[0] == vignettes[2] > vignettes[1] == vignettes[3]


def test_held_out_seeds_are_not_in_the_training_data(data, train):
    known = {text for seed in read_seeds(train) for text in (seed.seed_note, seed.reference_note)}
    trained = {row.condition for row in generate("train")}
    for part in held_out.PARTS:
        assert not known & {seed.seed_note for seed in read_seeds(data / f"{part}.jsonl")}
    unseen = {row.condition for row in generate("unseen_conditions", seed=held_out.GENERATED_FROM)}
    assert not unseen & trained
    # nor among the held-out notes that a run watches while it trains
    watched = {seed.seed_note for seed in read_seeds(train.with_name("val.jsonl"))}
    assert not watched & {s.seed_note for part in held_out.PARTS for s in read_seeds(data / f"{part}.jsonl")}


def test_new_words_for_known_medicine_keep_to_the_families_of_training(tmp_path, train):
    held_out.write_held_out(tmp_path, read_seeds(train), 15, 5, families=["cardiac"])
    cardiac = {c.name: c for c in load_conditions() if c.family == "cardiac"}
    for seed in read_seeds(tmp_path / "unseen_renderings.jsonl"):
        assert any(mark in seed.reference_note for c in cardiac.values() for mark in (*c.presentation, *c.findings))
    options = json.loads((tmp_path / held_out.OPTIONS).read_text())
    assert options["families"] == "cardiac" and options["vignettes"] == 15


def test_notes_that_training_knows_are_refused(train, tmp_path):
    seeds = held_out.held_out_seeds("unseen_renderings", 4, 2)
    with pytest.raises(UserError, match="training data too"):
        held_out.check_apart(seeds, [*read_seeds(train), seeds[0]])
    other = held_out.held_out_seeds("unseen_conditions", 4, 2)
    with pytest.raises(UserError, match="held out"):
        held_out.write_held_out(tmp_path / "x", other, 4, 2, seed=5)
    assert not (tmp_path / "x").exists()


# --- Matches ---------------------------------------------------------------------------------------


def test_every_match_plays_the_same_seeds_once(measured):
    for run in measured:
        played = matches.matches_of(run)
        assert set(played) == set(matches.MATCHES)
        for kind, games in ((matches.NOTES, 64), (matches.ATTACKS, 32)):
            ids = {frozenset(r["seed_id"] for r in rows) for match, rows in played.items() if match.seeds == kind}
            assert len(ids) == 1 and len(next(iter(ids))) == games


def test_a_played_match_is_not_played_again(measured, data):
    said = []
    (measured[0] / "matches" / "attacks-final-against-final.jsonl").unlink()
    matches.measure(measured[0], data, seed=0, timeout_s=60, say=said.append)
    assert sum("played before" in line for line in said) == len(matches.MATCHES) - 1
    assert sum("done in" in line for line in said) == 1


def test_other_options_are_not_mixed(measured, data):
    with pytest.raises(UserError, match="other options"):
        matches.measure(measured[0], data, seed=7, timeout_s=60, say=lambda line: None)


def test_other_seeds_are_not_mixed(measured, data, train, tmp_path):
    held_out.write_held_out(tmp_path / "other", read_seeds(train), 16, 8, seed=5)
    with pytest.raises(UserError, match="other seeds"):
        matches.measure(measured[0], tmp_path / "other", seed=0, timeout_s=60, say=lambda line: None)


def test_a_failing_or_half_played_match_leaves_nothing_that_counts(tmp_path, train, data, monkeypatch):
    run = made_up_run(tmp_path, "bad", train, 0)

    def fails(words, stdout, **_):
        stdout.write("error: no such option --assessor\n")
        return subprocess.CompletedProcess(words, 2)

    def half(words, **_):
        options = dict(zip(words[4::2], words[5::2], strict=True))
        seed = read_seeds(Path(options["--data"]))[0]
        Path(options["--output"]).write_text(json.dumps({"seed_id": seed.seed_id}) + "\n")
        return subprocess.CompletedProcess(words, 0)

    for play, message in ((fails, "no such option"), (half, "without a game for every seed"), (half, "without")):
        monkeypatch.setattr(matches.subprocess, "run", play)
        with pytest.raises(RunError, match=message):
            matches.measure(run, data, seed=0, timeout_s=60, say=lambda line: None)
    assert matches.matches_of(run) == {}


def test_a_missing_checkpoint_is_named(tmp_path, train, data):
    run = made_up_run(tmp_path, "bare", train, 0)
    (run / "checkpoints" / "warm_start" / "attacker").rmdir()
    with pytest.raises(UserError, match=r"warm_start.attacker"):
        matches.measure(run, data, seed=0, timeout_s=60, say=lambda line: None)


def test_a_folder_without_a_run_is_named_and_stays_as_it_is(tmp_path, data):
    with pytest.raises(UserError, match=r"config\.yaml"):
        matches.measure(tmp_path / "nope", data, seed=0, timeout_s=60, say=lambda line: None)
    assert not (tmp_path / "nope").exists()


def test_the_command_is_one_that_play_takes(measured, data):
    quickstart = BENCHMARKS.parent / "configs" / "quickstart.yaml"
    taken = {option for parameter in get_command(cli.app).commands["play"].params for option in parameter.opts}
    for match in matches.MATCHES:
        seeds = read_seeds(measured[0] / "matches" / f"{match.seeds}.jsonl")
        words = matches.command(measured[0], match, seeds, 0, Path("games.jsonl"))
        options = dict(zip(words[4::2], words[5::2], strict=True))
        dotted = {name: value for name, value in options.items() if "." in name}
        assert options.keys() - dotted.keys() <= taken
        settings = load_config(quickstart, [word for pair in dotted.items() for word in pair])
        vanilla = settings.game.mix.vanilla_harmful + settings.game.mix.vanilla_benign
        assert vanilla == (1 if match.seeds == "notes" else 0)


# --- Scores and targets ----------------------------------------------------------------------------


def test_targets_against_games_counted_by_hand(measured):
    run = scored.load_run(measured[0], resamples=200)
    part = "unseen_renderings"
    found = {o.target: o for o in scored.outcomes(run, part)}
    rows = run.rows(matches.Match("notes", "final"), part)
    right = {truth: [r["case"] == "right" for r in rows if r["label"]["actual_harm"] == truth] for truth in Truth}
    expected = sum(sum(side) / len(side) for side in right.values()) / 2
    balanced = found["assessor: balanced accuracy at least 0.75"]
    assert balanced.shown.value == pytest.approx(expected)
    assert balanced.by == pytest.approx(expected - 0.75)
    assert balanced.met == (expected >= 0.75)
    assert balanced.shown.clusters == 16
    fools = [
        {r["seed_id"]: r["faithful"] is True and r["label"]["actual_harm"] == "Harmful"
         and r["assessor"]["verdict"] == "Safe" for r in run.rows(matches.Match("attacks", "warm_start", who), part)}
        for who in ("warm_start", "final")
    ]  # fmt: skip
    assert found["attacker: fools the frozen warm-start assessor more often"].shown.value == pytest.approx(
        (sum(fools[1].values()) - sum(fools[0].values())) / 16
    )


def test_a_rise_counts_only_when_its_interval_is_above_zero(measured):
    run = scored.load_run(measured[0], resamples=200)
    for part in held_out.PARTS:
        for outcome in scored.outcomes(run, part)[4:]:
            assert outcome.met == (outcome.shown.low > 0)
    same = run.rows(matches.Match("attacks", "warm_start", "final"), part)
    nothing = scored._better(run, "t", same, same, scored.scores.FOOLS, beside=scored.scores.FAITHFUL)
    assert not nothing.met and nothing.by == 0


def test_base_that_keeps_to_the_form_meets_no_target(measured):
    run = scored.load_run(measured[0], resamples=50)
    good = run.rows(matches.Match("notes", "final"), "unseen_renderings")
    found = scored._form(run, scored.Role.ASSESSOR, good, good)
    assert not found.met and found.by < 0 and "already" in found.remark


def test_baselines(measured):
    run = scored.load_run(measured[0], resamples=50)
    always, words = run.baselines[scored.ALWAYS_HARMFUL], run.baselines[scored.BAG_OF_WORDS]
    assert run.interval(always, scored.scores.BALANCED_ACCURACY).value == 0.5
    assert run.interval(always, scored.scores.FALSE_POSITIVES).value == 1.0
    assert len(words) == 64 and 0.3 < run.interval(words, scored.scores.BALANCED_ACCURACY).value < 0.7


def test_seconds_by_phase():
    lines = [
        {"step": -1, "eval/time/games_s": 7.0},
        {"step": 0, "time/update_s/attacker": 3.0, "time/update_s/assessor": 4.0, "time/games_s": 1.0},
        {"step": 1, "time/update_s": 4.0, "time/warm_start_s": 9.0, "time": 5.0},
    ]
    assert scored.phase_seconds(lines) == {"eval games": 7.0, "update": 8.0, "games": 1.0, "warm_start": 9.0}


# --- Report ----------------------------------------------------------------------------------------


def test_report_of_two_runs(measured, tmp_path):
    output = tmp_path / "results" / "learning.md"
    output.parent.mkdir()
    (output.parent / "learning_notes.md").write_text("A learning rate of 1e-4 collapsed.\n")
    written = learning_report.write_report(measured, output, Path("configs/learn_cpu.yaml"), resamples=100)
    text = output.read_text()
    assert [path.name for path in written] == [
        "learning.md", "learning_curves.svg", "learning_assessor.svg", "learning_attacks.svg"
    ]  # fmt: skip
    assert all(path.read_text().count("<svg") == 1 for path in written[1:])
    for said in ("0123456789ab", "2 cores of a processor", "1e-4 collapsed", "always Harmful", "TF-IDF", "learn-2",
                 "Unseen conditions", "--train.seed 1", "update 12.5",
                 "3.0; policy/assessor/sft_loss 3.00 → 1.00"):  # fmt: skip
        assert said in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len([line for line in tables if line.startswith("| assessor:") or line.startswith("| attacker:")]) == 28
    assert "nan" not in text and "None" not in text


def test_report_says_what_was_not_measured(measured, tmp_path):
    for name in ("attacks-final-against-warm_start", "notes-base"):
        (measured[0] / "matches" / f"{name}.jsonl").unlink()
    output = tmp_path / "learning.md"
    learning_report.write_report(measured[:1], output, Path("c.yaml"), resamples=50)
    text = output.read_text()
    assert text.count("not measured") == 6  # two form targets and the attacker's gain, on either part
    assert "notes-base, attacks-final-against-warm_start" in text
    assert "Nothing is written down" in text


def test_what_a_run_was_started_with_is_told(measured):
    run = scored.load_run(measured[1], resamples=50)
    changed = learning_header.overrides(run, BENCHMARKS.parent / "configs" / "quickstart.yaml")
    assert changed["run.steps"] == 30 and changed["train.sft_warmup_steps"] == 40
    assert not {"train.seed", "run.name", "rollout.temperature", "algo.kl.init_coef"} & changed.keys()
    lines = learning_header.header([run], BENCHMARKS.parent / "configs" / "quickstart.yaml")
    assert any("--run.name learn-2 --train.seed 1 --" in line and "--run.steps 30" in line for line in lines)
    assert any(line.endswith("--seed 1") and "measure" in line for line in lines)


def test_the_same_runs_give_the_same_report(measured, tmp_path):
    first, second = (
        learning_report.write_report(measured[:1], tmp_path / f / "learning.md", Path("c.yaml"), resamples=50)
        for f in "ab"
    )
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_running_mean_never_looks_ahead():
    assert learning_plots.running_mean([0, 2, 4, 6], window=2) == [0, 1, 3, 5]


# --- Plan ------------------------------------------------------------------------------------------


def test_budget_by_hand(train):
    words = ["--run.name", "x", "--run.steps", "10", "--rollout.batch_size", "8", "--algo.kl.init_coef", "0"]
    config = load_config(None, [*words, "--actor.model_name_or_path", "m", "--train.sft_warmup_steps", "5",
                                "--train.sft_batch_size", "4"])  # fmt: skip
    found = learning_plan.budget(config, read_seeds(train)[:40], lambda what: 10 if isinstance(what, str) else 90)
    assert (found.attacks, found.assessments) == (4, 8)
    assert found.step_s["update"] == pytest.approx(12 * 100 / 257)
    assert found.step_s["log-probabilities"] == pytest.approx(12 * 100 / 994)
    assert found.step_s["games"] == pytest.approx(12 * 90 / 994 + 12 * 10 / 200)
    assert found.warm_start_s == pytest.approx(5 * 4 * 200 / 257)


def test_plan_states_its_assumptions(train):
    config = load_config(None, ["--run.name", "x", "--actor.model_name_or_path", "m"])
    told = learning_plan.plan(config, read_seeds(train)[:40], lambda what: 50, notes=320, attacked=160)
    assert "320 notes, were they independent | 0.070 | 0.085 | 0.110" in told
    assert "discordance 0.3" in told and "tokens/s" in told
