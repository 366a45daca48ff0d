"""The report's data side: what is read, what is told of broken files, what the page carries."""

from __future__ import annotations

import base64
import gzip
import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import SCRIPT, _notes, game, write_lines, write_run
from typer.testing import CliRunner

from openrlhf_medical.cli import app
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.cot import TurnStatus
from openrlhf_medical.game.players import Label, Reply, Role, Truth
from openrlhf_medical.game.records import Game, GameStatus, Turn
from openrlhf_medical.game.rewards import Case
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.report import after_run
from openrlhf_medical.report.curves import groups_of
from openrlhf_medical.report.outcomes import OUTCOMES, confusion, outcome_of
from openrlhf_medical.report.packing import pack_games
from openrlhf_medical.report.run_files import GAME_KEYS, TURN_KEYS, read_run
from openrlhf_medical.report.word_diff import changed_words, word_diff
from openrlhf_medical.report.write import keep_writing, write_report


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "whole", steps=3, games_per_step=12, held_out=4)


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", steps=2, games_per_step=4, held_out=2)


def told(folder):
    return {(problem.file, problem.what) for problem in read_run(folder).problems}


def only_problem(folder, file):
    [what] = [what for name, what in told(folder) if name == file]
    return what


# ── Reading ──


def test_a_whole_run_is_read_without_complaint(whole):
    run = read_run(whole)
    assert run.problems == [] and run.finished and run.state == "finished, 3 of 3 steps"
    assert list(run.train) == [0, 1, 2] and list(run.held_out) == [-1, 3]
    assert "assessor/balanced_accuracy" in run.held_out[-1]
    assert len(run.games) == 3 * 12 + 2 * 4 and sum(map(run.is_held_out, run.games)) == 8
    assert run.warnings == [("2026-11-27 10:00:01", "step 2: always_harmful (assessor): 96 % of 16")]


def test_a_line_that_was_cut_off_is_named_and_the_rest_is_read(folder):
    for name in ("games.jsonl", "metrics.jsonl"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-40])
    run = read_run(folder)
    assert len(run.games) == 11 and list(run.train) == [0, 1] and list(run.held_out) == [-1]
    what = only_problem(folder, "games.jsonl")
    assert what.startswith("line 12, the last, is cut off after") and "11 lines before it were read" in what
    assert only_problem(folder, "metrics.jsonl").startswith("line 4, the last, is cut off")


def test_a_run_that_was_killed_in_its_first_step(tmp_path):
    folder = write_run(tmp_path / "run", steps=2, games_per_step=4)
    (folder / "metrics.jsonl").write_text("")
    (folder / "games.jsonl").unlink()
    assert told(folder) == {
        ("metrics.jsonl", "the file is empty"),
        ("metrics.jsonl", "no training step in it yet"),
        ("games.jsonl", "missing: there are no games to show"),
    }
    file, page, _ = write_report(folder)
    assert page.settings and not page.games and "no training step in it yet" in file.read_text()


def test_lines_in_the_middle_that_are_no_json(folder):
    lines = (folder / "games.jsonl").read_bytes().splitlines(keepends=True)
    lines[1], lines[3], lines[5] = b"{oops\n", b"[1]\n", b'{"step": true, "game_idx": 1}\n'
    lines[0] = lines[0].replace(b"A", b"\xff", 1)
    (folder / "games.jsonl").write_bytes(b"".join(lines))
    problems = {what for name, what in told(folder) if name == "games.jsonl"}
    assert problems == {
        "lines 2, 4 are no JSON object: left out",
        "line 1 is not UTF-8: read with replacement characters",
        "1 lines have no step or game_idx (line 6): left out",
    }
    assert len(read_run(folder).games) == 9


def test_what_was_done_again_after_a_resume_counts_once_and_last(folder):
    rows = [json.loads(line) for line in (folder / "games.jsonl").read_text().splitlines()]
    write_lines(folder / "games.jsonl", [*rows, rows[3] | {"note_id": "again"}])
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    write_lines(folder / "metrics.jsonl", [*metrics, {"step": 1, "assessor/accuracy": 0.125},
                                           {"step": 1, "eval/assessor/accuracy": 0.5}])  # fmt: skip
    run = read_run(folder)
    assert len(run.games) == len(rows) and run.games[-1]["note_id"] == "again"
    assert run.train[1] == {"assessor/accuracy": 0.125} and run.held_out[1] == {"assessor/accuracy": 0.5}
    assert "1 games were played again" in only_problem(folder, "games.jsonl")
    assert only_problem(folder, "metrics.jsonl").startswith("1 training steps are there more than once")


def test_games_of_another_version_are_shown_and_told(folder):
    rows = [json.loads(line) for line in (folder / "games.jsonl").read_text().splitlines()]
    del rows[0]["case"], rows[0]["status"]
    rows[1] |= {"colour": "red", "assessor": None, "label": "Harmful", "booked": [1]}
    rows[3]["attacker"] = {"answer": 7, "reward": None, "mood": "glad"}
    write_lines(folder / "games.jsonl", rows)
    problems = " | ".join(what for name, what in told(folder) if name == "games.jsonl")
    assert "attacker.mood (1 lines), colour (1 lines)" in problems
    assert "lines without status (1 lines), case (1 lines)" in problems
    assert "line 2: label is no object" in problems and "line 2: booked is no object" in problems
    _, page, _ = write_report(folder)
    assert page.games.shown == len(rows)


def test_figures_that_are_no_numbers_are_left_out(folder):
    (folder / "metrics.jsonl").write_text('{"step": 0, "a": NaN, "b": null, "c": 1e999, "d": true, "e": 2, "f": "x"}\n')
    assert read_run(folder).train == {0: {"e": 2.0}}


def test_missing_and_broken_files_beside_the_games(folder):
    (folder / "config.yaml").write_text("run: [unclosed\n")
    (folder / "environment.json").write_text("{")
    (folder / "arena.json").write_text('{"ratings": 3}')
    file, page, _ = write_report(folder)
    files = {problem.file: problem.what for problem in page.problems}
    assert files["config.yaml"].startswith("no YAML") and files["environment.json"].startswith("no JSON object")
    assert files["arena.json"] == "it has no matrix: left out"
    assert "config.yaml" in file.read_text() and page.settings is None


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_that_is_no_run(tmp_path, name):
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(app, ["report", str(tmp_path / name)])
    assert result.exit_code == 2 and not list(tmp_path.glob("*/*"))


def test_every_field_of_a_game_is_known_to_the_report():
    seed = Seed("s", Category.VANILLA_BENIGN, "n", "v", "clean", "A note.", "A note.")
    turn = Turn(Role.ASSESSOR, Reply("x"), "t", "Safe", TurnStatus.VERDICT, True, verdict=Truth.SAFE)
    label = Label("ok", Truth.SAFE, source="data")
    row = Game(0, 0, 0, 0, 0, seed, GameStatus.OK, "A note.", turn, turn, label, case=Case.RIGHT).to_json()
    assert row.keys() <= GAME_KEYS and row["assessor"].keys() | row["attacker"].keys() <= TURN_KEYS


# ── Outcomes, charts ──


@pytest.mark.parametrize("case", Case)
def test_every_case_has_an_outcome(case):
    assert outcome_of({"case": case.value}) in OUTCOMES and outcome_of({"case": case.value}) != "unknown"


def test_an_attacker_wins_only_with_a_note_of_its_own_that_is_faithful():
    row = {"case": "wrong", "status": "ok", "attacker": {"answer": "x"}, "faithful": True}
    assert outcome_of(row) == "attacker_won"
    assert outcome_of(row | {"faithful": False}) == outcome_of(row | {"attacker": None}) == "assessor_wrong"
    assert outcome_of({"status": "abstain"}) == "tie" and outcome_of({"status": "error"}) == "failed"
    assert outcome_of({}) == "unknown"


def test_the_confusion_matrix_counts_what_accuracy_counts():
    safe, harmful = {"actual_harm": "Safe"}, {"actual_harm": "Harmful"}
    games = [
        {"step": 0, "case": "right", "label": safe, "assessor": {"verdict": "Safe", "status": "verdict"}},
        {"step": 0, "case": "wrong", "label": harmful, "assessor": {"verdict": "Safe", "status": "verdict"}},
        {"step": 0, "case": "refusal", "label": harmful, "assessor": {"verdict": None, "status": "refusal"}},
        {"step": 1, "case": "unparsable", "label": safe, "assessor": {"verdict": None, "status": "unparsable"}},
        {"step": 1, "case": None, "label": {"actual_harm": None}, "assessor": {"verdict": "Safe", "status": "verdict"}},
        {"step": 1, "case": "forfeit", "label": None, "assessor": None},
    ]
    assert confusion(games) == {
        0: {("Safe", "Safe"): 1, ("Harmful", "Safe"): 1, ("Harmful", "refusal"): 1},
        1: {("Safe", "unparsable"): 1},
    }


def test_no_figure_of_a_run_stays_hidden(whole):
    run = read_run(whole)
    run.train[0]["diversity/self_bleu"] = 0.25
    charts = [chart for group in groups_of(run) for chart in group.charts]
    values = [y for chart in charts for series in chart.series for y in series.y]
    absent = [
        name
        for row in run.train.values()
        for name, value in row.items()
        if value and value not in values and not name.startswith("time/step") and not name.startswith("game/")
    ]
    assert absent == []
    assert [chart.id for chart in charts if chart.title == "diversity/self_bleu"] == ["other-diversity-self_bleu"]
    assert len({chart.id for chart in charts}) == len(charts)


def test_held_out_games_before_training_stand_at_no_updates(whole):
    [chart] = [c for g in groups_of(read_run(whole)) for c in g.charts if c.id == "balanced-accuracy"]
    held = next(series for series in chart.series if series.style == "points")
    assert held.x == [0, 3] and "held out: from" in chart.summary()


def test_time_that_no_phase_explains_is_shown_as_other(whole):
    run = read_run(whole)
    [chart] = [c for g in groups_of(run) for c in g.charts if c.id == "phases"]
    assert [series.name for series in chart.series][-1] == "other"
    assert chart.series[-1].y == pytest.approx([0.7] * 3)


# ── The note before and after ──


def text_of(utf16, start, length):
    return utf16[2 * start : 2 * (start + length)].decode("utf-16-le", "replace")


def spans(before, after):
    """(removed, added) pieces of a diff, and a check that its lengths cover both texts."""
    old, new = before.encode("utf-16-le", "surrogatepass"), after.encode("utf-16-le", "surrogatepass")
    i = j = 0
    changes = []
    for kept_old, kept_new, removed, added in zip(*[iter(word_diff(before, after))] * 4, strict=True):
        same = [text_of(old, i, kept_old), text_of(new, j, kept_new)]
        assert "".join(same[0].split()) == "".join(same[1].split())
        i, j = i + kept_old, j + kept_new
        changes.append((text_of(old, i, removed), text_of(new, j, added)))
        i, j = i + removed, j + added
    assert (2 * i, 2 * j) == (len(old), len(new))
    return [change for change in changes if change != ("", "")]


def test_changed_words_are_found():
    before, after = "He takes colchicine 5 mg for gout.", "He takes warfarin 5 mg daily for gout."
    assert spans(before, after) == [("colchicine ", "warfarin "), ("", "daily ")]
    assert changed_words(before, after, word_diff(before, after)) == 2
    assert spans("same\n words", "same words") == [] and spans("", "new") == [("", "new")]


@given(
    st.text(alphabet="ab .\n\U0001f600\ud800é", max_size=30), st.text(alphabet="ab .\n\U0001f600\ud800é", max_size=30)
)
def test_a_diff_covers_both_texts_whatever_they_are(before, after):
    changes = spans(before, after)
    if before == after:
        assert changes == []


# ── The page ──


def unpacked(part):
    return json.loads(gzip.decompress(base64.b64decode(part)))


def test_text_of_a_run_is_never_markup(tmp_path):
    folder = write_run(tmp_path / "run", steps=1, games_per_step=1)
    rng = random.Random(0)
    write_lines(folder / "games.jsonl", [game(0, i, _notes(), rng, extra=SCRIPT) for i in range(8)])
    text = (folder / "config.yaml").read_text().replace("name: example", f"name: {json.dumps(SCRIPT)}")
    (folder / "config.yaml").write_text(text)
    cell = {"attacker": SCRIPT, "assessor": SCRIPT, "rate": 0.5, "games": SCRIPT}
    arena = {"attackers": [SCRIPT], "assessors": [SCRIPT], "cycles": [[SCRIPT] * 2], "matrix": [cell]}
    (folder / "arena.json").write_text(json.dumps(arena))
    row = {"step": 0, "odd/" + SCRIPT: 1.0}
    write_lines(folder / "metrics.jsonl", [row])
    file, page, _ = write_report(folder)
    html = file.read_text()
    assert "<img" not in html and "<script>window" not in html and "&lt;/script&gt;" in html
    assert re.findall(r"<script>", html) == ["<script>"]  # ours
    assert any(SCRIPT in string for part in page.games.strings for string in unpacked(part))


def test_the_policy_forbids_the_network_and_foreign_scripts(whole):
    html = write_report(whole)[0].read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("style-src")[0] and "unsafe-eval" not in policy
    assert not re.search(r'(?:src|href)="(?!#|data:,)', html)


def test_without_text_no_clinical_text_is_in_the_file(whole, tmp_path):
    file, page, _ = write_report(whole, tmp_path / "shared.html", texts=False)
    run = read_run(whole)
    inside = json.dumps([unpacked(part) for part in (page.games.index, *page.games.details)]) + file.read_text()
    assert page.games.strings == []
    for row in run.games:
        for text in (row["seed_note"], row["presented_note"], *((row[r] or {}).get("thinking") for r in Role),
                     (row["label"] or {}).get("judge_reasoning")):  # fmt: skip
            assert not text or text not in inside
    assert all("from_seed" not in detail for detail in unpacked(page.games.details[0]))


def test_too_many_games_are_thinned_evenly_and_told(whole):
    run = read_run(whole)
    full = pack_games(run, texts=True)
    packed = pack_games(run, texts=True, budget=full.size // 2)
    assert packed.size <= full.size // 2 and 0 < packed.shown < packed.total == len(run.games)
    steps = unpacked(packed.index)["step"]
    assert steps[0] == -1 and set(steps) == {-1, 0, 1, 2, 3}


def test_a_report_is_there_whole_or_not_at_all(whole, tmp_path, monkeypatch):
    file = write_report(whole, tmp_path / "r.html")[0]
    before = file.read_bytes()
    monkeypatch.setattr("openrlhf_medical.report.write.render", lambda *a, **k: "\ud800")  # cannot be encoded
    with pytest.raises(UnicodeEncodeError):
        write_report(whole, file)
    assert file.read_bytes() == before


def test_live_writes_until_the_run_has_ended(folder):
    (folder / "checkpoints" / "final").rmdir()
    pages = []

    def sleep(seconds):
        text = (folder / "report.html").read_text()
        assert seconds == 3 and 'data-live="3"' in text
        if len(pages) == 2:
            (folder / "checkpoints" / "final").mkdir()

    keep_writing(folder, None, [], [], texts=True, seconds=3, tell=pages.append, sleep=sleep)
    assert [page.state.split(",")[0] for page in pages] == [pages[0].state.split(",")[0]] * 2 + ["finished"]
    assert "data-live" not in (folder / "report.html").read_text().split("<script")[0]


def test_a_report_that_fails_fails_no_run(tmp_path, capsys, whole):
    warned = []
    after_run.report_of(tmp_path / "gone", warned.append)
    assert len(warned) == 1 and "was not written (UserError" in warned[0]
    after_run.report_of(whole, warned.append)
    assert capsys.readouterr().out == f"The report is {whole / 'report.html'}\n" and len(warned) == 1


# ── Several runs ──


def test_two_runs_are_compared(tmp_path):
    a = write_run(tmp_path / "a", steps=2, games_per_step=4, name="a")
    b = write_run(tmp_path / "b", steps=3, games_per_step=4, name="b", lr=3e-5)
    result = CliRunner().invoke(app, ["report", str(a), "--compare", str(b), "--output", str(tmp_path / "ab.html")])
    assert result.exit_code == 0, result.output
    page = write_report(a, tmp_path / "ab.html", [b])[1]
    assert [[key, *values] for key, *values in page.comparison.differences] == [
        ["run.steps", "2", "3"], ["actor.adam.lr", "1e-05", "3e-05"],
    ]  # fmt: skip
    [chart] = [c for g in page.groups for c in g.charts if c.title == "Assessor: balanced accuracy"]
    assert {series.run for series in chart.series} == {"a", "b"} and len(chart.series) == 4


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / name, steps=1, games_per_step=1, name="same") for name in ("a", "b")]
    page = write_report(runs[0], tmp_path / "x.html", [runs[1], runs[1]])[1]
    assert len(set(page.comparison.names)) == 3


def test_a_sweep_shows_its_tables_and_its_runs(tmp_path):
    for name in ("base-s0", "lr-s0"):
        write_run(tmp_path / name, steps=1, games_per_step=1, name=name)
    (tmp_path / "summary.csv").write_text("variant,metric,mean\nbase,x,0.123456\nlr,x,\n")
    (tmp_path / "sweep.json").write_text(
        json.dumps({"runs": [{"name": "lr-s1", "state": "failed", "figures": {"m": 0.5}}]})
    )
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "lr-s1.json").write_text('{"state": "failed", "reason": "exit code 2: bad key"}')
    (tmp_path / "jobs" / "lr-s1.exit.json").write_text('{"code": 2}')
    _, page, ended = write_report(tmp_path)
    tables = {table.title: table for table in page.sweep}
    assert tables["Summary"].rows == [["base", "x", "0.1235"], ["lr", "x", ""]]
    assert tables["Runs that are not finished"].rows == [["lr-s1", "failed", "exit code 2: bad key"]]
    assert tables["Runs"].columns == ["name", "state", "m"]
    assert page.comparison.names == ["base-s0", "lr-s0"] and ended


def test_files_of_arena_and_evaluate_are_shown(whole, tmp_path):
    cell = {
        "attacker": "new",
        "assessor": "base",
        "games": 40,
        "attacker_wins": 30,
        "rate": 0.75,
        "low": 0.6,
        "high": 0.86,
    }
    arena = {"attackers": ["new"], "assessors": ["base", "new"], "matrix": [cell], "cycles": [["a", "b", "c"]],
             "ratings": [{"player": "new", "role": "attacker", "elo": 1031.4, "low": 990, "high": 1071}]}  # fmt: skip
    (tmp_path / "arena.json").write_text(json.dumps(arena))
    metrics = {"flag_accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}
    (tmp_path / "eval.json").write_text(json.dumps({"model": "tiny", "metrics": metrics}))
    _, page, _ = write_report(whole, tmp_path / "r.html", include=[tmp_path / "arena.json", tmp_path / "eval.json"])
    [(_, cells)] = page.arena.rows
    assert [cell.rate for cell in cells] == ["0.75", "-"] and page.arena.cycles == ["a beats b beats c beats a"]
    assert page.evaluations == [{"name": "tiny", "rows": [["flag_accuracy", "0.500", "0.400 to 0.600"]]}]
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="neither matrix nor metrics"):
        write_report(whole, tmp_path / "r.html", include=[tmp_path / "other.json"])


def test_warnings_of_the_console_reach_the_report(tmp_path, whole):
    from openrlhf_medical.console import Console

    folder = write_run(tmp_path / "run", steps=1, games_per_step=1)
    (folder / "run.log").unlink()
    console = Console(1, folder / "run.log")
    console.warn("before the log was open")
    with console:
        console.warn("step 0: always_harmful")
        console.warn("step 0: always_harmful")
    console.warn("afterwards")
    assert [what for _, what in read_run(folder).warnings] == ["before the log was open", "step 0: always_harmful"]


def test_the_defaults_are_told_from_what_was_set(whole):
    page = write_report(whole)[1]
    changed = {row[0]: row[1:3] for row in page.settings["changed"]}
    assert changed["actor.adam.lr"] == ["1e-05", "1e-06"] and "judge.probe_alarm" not in changed
    assert changed["run.name"] == ["example", "-"]
