"""The audit against judges that lie, abstain, fail or are not there, over real sockets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faulty_judge import FaultyJudge, good, opposite, rows_changed, slow, status
from typer.testing import CliRunner

from openrlhf_medical.cli import app
from openrlhf_medical.data.synthetic import generate, write_csv
from openrlhf_medical.judge.audit import asking, result
from openrlhf_medical.judge.audit.audit import all_probes
from openrlhf_medical.judge.audit.probes import drawn, read_notes

SETS = ["gold and cosmetic", "gold and reworded", "identical", "hard", "hard (held out)"]
ABSTAINS = {"status": "abstain", "actual_harm": None, "error_present": None, "judge_reasoning": "SECRET of the judge"}
FAILS = ABSTAINS | {"status": "error", "kind": "backend", "judge_reasoning": "out of memory"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result, "RESAMPLES", 20)
    monkeypatch.setattr("openrlhf_medical.judge.audit.audit.environment", lambda: {"git_commit": "abc"})


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["judge-audit", "--num-samples", "4", *map(str, words)])


def audited(handler: Any, folder: Path, *words: str | Path) -> tuple[dict[str, Any], str]:
    """The JSON that is written, and what is printed."""
    with FaultyJudge(handler) as judge:
        done = run("--judge-url", judge.url, "--output", folder / "audit.json", *words)
    assert done.exit_code == 0, done.output
    return json.loads((folder / "audit.json").read_text()), done.stdout


def value(told: dict[str, Any], name: str, set_name: str = SETS[0], of: str = "") -> float | None:
    section = told["sets"][set_name]
    figure = (section["baselines"][of] if of else section["figures"])[name]
    return None if figure is None else figure["value"]


def test_a_judge_that_calls_any_difference_harmful_is_its_baseline(tmp_path):
    told, printed = audited(good, tmp_path)
    assert list(told["sets"]) == SETS
    for set_name in SETS:
        for figure in ("balanced_accuracy", "accuracy", "kappa"):
            assert value(told, figure, set_name) == value(told, figure, set_name, "any difference is Harmful")
    assert (value(told, "balanced_accuracy"), value(told, "kappa"), value(told, "abstain_share")) == (0.5, 0, 0)
    assert value(told, "accuracy", "identical") == 1 and value(told, "balanced_accuracy", "identical") is None
    assert value(told, "balanced_accuracy", of="always Harmful") == 0.5
    assert "balanced accuracy (of the decided)  0.500" in printed


def test_the_json_says_what_a_number_must_be_read_beside(tmp_path):
    told, _ = audited(good, tmp_path)
    assert set(told) == {"schema", "command", "time", "seconds", "judge", "client", "environment", "notes", "sets",
                         "misses", "first_error", "games"}  # fmt: skip
    ((url, replica),) = told["judge"]["replicas"].items()
    assert replica["model"] == "scripted" and told["judge"]["urls"] == [url] and told["judge"]["own_backend"] is None
    assert told["environment"]["git_commit"] == "abc" and told["games"] is None and told["first_error"] is None
    assert told["notes"] == {"source": "synthetic", "notes": 8, "with_error": 4, "vignettes": 8, "seed": 0} | {
        "vignettes": told["notes"]["vignettes"]
    }
    section = told["sets"]["gold and cosmetic"]
    assert set(section) == {"probes", "vignettes", "confusion", "figures", "baselines", "kinds", "latency"}
    assert section["confusion"]["Harmful"] == {"Harmful": 4, "Safe": 0, "abstain": 0, "error": 0}
    assert sum(section["confusion"]["Safe"].values()) >= 4
    assert {kind["truth"] for kind in section["kinds"] if kind["set"] == "gold"} == {"Harmful"}
    assert 0 < section["latency"]["p50_s"] <= section["latency"]["p95_s"] < 5
    assert told["client"]["counts"]["ok"] == len(all_probes(drawn(read_notes(None), 4, 0)))


def test_a_judge_that_lies_shows(tmp_path):
    told, _ = audited(rows_changed(lambda rows: [opposite(row) for row in rows]), tmp_path)
    assert value(told, "accuracy", "identical") == 0 and value(told, "kappa", "hard") < 0
    assert told["sets"]["gold and cosmetic"]["confusion"]["Harmful"]["Safe"] == 4
    missed = [miss for miss in told["misses"] if miss["set"] == "gold"]
    assert len(missed) == 4 and all((miss["truth"], miss["answer"]) == ("Harmful", "Safe") for miss in missed)


def test_a_judge_that_abstains_shows_and_is_not_called_right(tmp_path):
    told, printed = audited(rows_changed(lambda rows: [row | ABSTAINS for row in rows]), tmp_path)
    for set_name in SETS:
        assert value(told, "abstain_share", set_name) == 1 and value(told, "accuracy", set_name) is None
    assert value(told, "balanced_share_right") == 0 and value(told, "balanced_accuracy") is None
    assert {row["accuracy"] for row in told["sets"]["hard"]["kinds"]} == {None}
    assert "abstained                           1.000" in printed


def test_a_judge_that_fails_shows_with_its_first_reason(tmp_path):
    told, printed = audited(rows_changed(lambda rows: [row | FAILS for row in rows]), tmp_path)
    assert value(told, "error_share", "hard") == 1 and value(told, "abstain_share", "hard") == 0
    assert told["first_error"] == "out of memory" and "The first failure: out of memory" in printed


def test_no_text_of_a_note_is_told_unless_asked_for(tmp_path):
    abstains = rows_changed(lambda rows: [row | ABSTAINS for row in rows])
    probes = all_probes(drawn(read_notes(None), 4, 0))
    told, printed = audited(abstains, tmp_path)
    written = json.dumps(told) + printed
    sentences = {part for probe in probes for part in probe.reference.split(". ") if len(part) > 25}
    assert len(sentences) > 50 and not [part for part in sentences if part in written]
    assert "SECRET" not in written
    (tmp_path / "audit.json").unlink()
    told, printed = audited(abstains, tmp_path, "--show-misses")
    assert "[25 mg -> 250 mg]" in printed.replace("[25 ->", "[25 mg ->").replace("250]", "250 mg]")
    assert "SECRET of the judge" in printed


def test_held_out_pairs_are_never_named(tmp_path):
    held_out = {probe.probe_id for probe in all_probes([]) if "held out" in probe.set_name}
    told, printed = audited(rows_changed(lambda rows: [row | ABSTAINS for row in rows]), tmp_path, "--show-misses")
    assert len(held_out) > 40 and not [name for name in held_out if f'"{name}"' in json.dumps(told) or name in printed]
    assert told["sets"]["hard (held out)"]["kinds"] == []
    assert sum(told["sets"]["hard (held out)"]["confusion"]["Safe"].values()) > 20


def test_answers_are_joined_by_key_however_late(tmp_path):
    """Every answer is right for its own pair though some come long after others."""
    with FaultyJudge(slow(0.01)) as judge:
        client = asking.JudgeClient([judge.url], batch_size=3, max_requests=4, max_wait_s=0)
        with client:
            pairs = [("a", "a" if i % 3 else "b") for i in range(40)]
            answers = asking.ask(client, pairs, concurrency=8)
    assert [label.actual_harm for label, _ in answers] == ["Safe" if i % 3 else "Harmful" for i in range(40)]


# ── Notes that an attacker wrote ──


def game(note: str | None, attacker: Any, step: int = 0, **other: Any) -> str:
    seed = "He takes colchicine."
    return json.dumps({"step": step, "category": "adversarial_benign", "note_id": "n", "seed_note": seed,
                       "reference_note": seed, "presented_note": note, "attacker": attacker, **other})  # fmt: skip


def test_what_the_attacker_wrote_is_asked_once_and_counted(tmp_path):
    own, frozen = {"frozen": False}, {"frozen": True}
    lines = [
        *[game("He takes warfarin.", own)] * 2,  # two assessments of one text
        game("He perhaps takes it.", own, step=1, category="adversarial_harmful"),
        game("He takes colchicine.", own, step=1),
        game("Frozen.", frozen), game("Passed on.", None), game(None, own), "",
    ]  # fmt: skip
    (tmp_path / "games.jsonl").write_text("\n".join(lines))
    told, printed = audited(good, tmp_path, "--games", tmp_path / "games.jsonl")
    groups = told["games"]["groups"]
    assert [groups[name]["notes"] for name in ("all", "rewritten", "adversarial_benign")] == [3, 2, 2]
    assert groups["all"]["abstain_share"]["value"] == pytest.approx(1 / 3)
    assert groups["rewritten"]["abstain_share"]["value"] == 0.5 and groups["rewritten"]["error_share"]["value"] == 0
    assert groups["adversarial_harmful"]["harmful_of_decided"] is None
    assert told["games"]["steps"] == [0, 1] and "colchicine" not in printed
    (tmp_path / "audit.json").unlink()
    words = ["--games", tmp_path / "games.jsonl", "--last-steps", "1"]
    told, _ = audited(good, tmp_path, *words)
    assert told["games"]["groups"]["all"]["notes"] == 2 and told["games"]["steps"] == [1, 1]


# ── Mistakes, and judges that are not there ──


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "no attacker wrote"), ("{}", "line 1: is not a game (KeyError: 'attacker')"), ("[", "line 1: is not a game"),
     (game("x", {}) + "\n" + game(3, {}), "line 2: is not a game"), (None, "cannot be read")],
)  # fmt: skip
def test_a_file_that_holds_no_games_is_a_users_mistake(tmp_path, text, told):
    path = tmp_path / "games.jsonl"
    if text is not None:
        path.write_text(text)
    done = run("--games", path)
    assert done.exit_code == 2 and told in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--backend", "oracle"], "unknown judge backend 'oracle'; allowed: reference"),
        (["--model", "m"], "--model has no meaning for the backend 'reference'"),
        (["--medec", "/none"], "/none: cannot be read"),
        (["--last-steps", "3"], "--last-steps chooses"),
        (["--judge-url", "http://127.0.0.1:1", "--backend", "vllm"], "--judge-url names one"),
        (["--judge-url", "127.0.0.1:1"], "127.0.0.1:1"),
        (["--timeout-s", "0"], "--timeout-s is 0.0"),
        (["--output", __file__], "exists already"),
        (["--token-file", "/none"], "/none"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(words, told):
    done = run(*words)
    assert done.exit_code == 2 and told in done.stderr and done.stderr.count("\n") == 1, done.output


def test_no_judge_there_is_exit_code_1():
    with FaultyJudge() as judge:
        url = judge.url
    done = run("--judge-url", url, "--start-timeout-s", "0.1")
    assert done.exit_code == 1 and f"no judge was ready within 0.1 s ({url}: ConnectionError" in done.stderr


def test_a_judge_that_refuses_our_token_is_a_users_mistake(tmp_path):
    with FaultyJudge(status(401)) as judge:
        done = run("--judge-url", judge.url)
    assert done.exit_code == 2 and "judge.token_file" in done.stderr


def test_a_judge_that_goes_away_ends_the_audit(tmp_path):
    def leaves(judge: FaultyJudge, http: Any, body: Any) -> None:
        if judge.asked > 8:
            judge.healthy = False
            http.connection.close()
            return
        good(judge, http, body)

    with FaultyJudge(leaves) as judge:
        done = run(
            "--judge-url", judge.url, "--timeout-s", "0.5", "--concurrency", "4", "--output", tmp_path / "a.json"
        )
    assert done.exit_code == 1 and "the judge went away after " in done.stderr
    assert not (tmp_path / "a.json").exists()


# ── The command ──


def test_an_audit_needs_no_training_stack():
    heavy = ("torch", "ray", "vllm", "openrlhf", "deepspeed", "transformers")
    program = f"import sys, openrlhf_medical.judge.audit.audit; print([n for n in {heavy!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_audits_a_reference_judge_of_its_own(tmp_path):
    rows = generate("unseen_conditions", num_vignettes=6)
    (tmp_path / "medec").mkdir()
    write_csv(rows, tmp_path / "medec" / "notes.csv")
    words = ["judge-audit", "--medec", tmp_path / "medec", "--output", tmp_path / "audit.json"]
    command = [sys.executable, "-m", "openrlhf_medical", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and "Judge: reference " in done.stdout and str(tmp_path / "audit.json") in done.stdout
    told = json.loads((tmp_path / "audit.json").read_text())
    assert told["judge"]["own_backend"] == "reference" and told["environment"]["cpu_cores"] >= 1
    assert told["command"][1:] == command[3:]
    assert value(told, "balanced_accuracy") > 0.9 and value(told, "accuracy", "identical") == 1
    assert 0.6 < value(told, "balanced_accuracy", "hard") <= 1
