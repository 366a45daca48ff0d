"""What a few seeds say: quantiles, intervals, paired differences, and where a run's figures come from."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from openrlhf_medical.sweep.folder import Record, State, SweepFolder
from openrlhf_medical.sweep.page import render_page
from openrlhf_medical.sweep.plan import plan
from openrlhf_medical.sweep.spec import read_sweep
from openrlhf_medical.sweep.statistics import Estimate, estimate, final_figures, paired_difference, t_975
from openrlhf_medical.sweep.summary import as_csv, read_rows, summarise, write_summary

ROOT = Path(__file__).parents[2]
A, B = "assessor/balanced_accuracy", "assessor/accuracy"


@pytest.mark.parametrize("degrees", [*range(1, 60), 100, 1000, 10**6])
def test_quantiles_are_those_of_scipy(degrees: int) -> None:
    assert t_975(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-4)


def test_no_quantile_without_degrees_of_freedom() -> None:
    with pytest.raises(ValueError):
        t_975(0)


def test_intervals_by_hand() -> None:
    # mean 0.5, standard deviation 0.1, 2 degrees: half width 4.3027 * 0.1 / sqrt(3)
    found = estimate([0.4, 0.5, 0.6])
    assert found is not None and found.low is not None and found.high is not None
    assert (found.mean, found.n) == (pytest.approx(0.5), 3)
    assert (found.high - found.low) / 2 == pytest.approx(4.3027 * 0.1 / math.sqrt(3))
    assert estimate([0.4]) == Estimate(0.4, None, None, 1)
    assert estimate([]) is None


def test_differences_are_paired_by_seed() -> None:
    # Seeds differ by 0.4, variants by 0.1 in each: paired, nothing is left to be unsure of.
    found = paired_difference({1: 0.2, 2: 0.6, 3: 0.9}, {2: 0.5, 1: 0.1, 4: 0.0})
    assert found is not None and found.low is not None
    assert (found.mean, found.n) == (pytest.approx(0.1), 2)
    assert found.high - found.low == pytest.approx(0, abs=1e-9)
    assert paired_difference({1: 0.2}, {2: 0.2}) is None


def test_held_out_games_after_training_come_first() -> None:
    rows = [
        {"step": -1, f"eval/{A}": 0.1},
        {"step": 0, A: 0.9},
        {"step": 1, A: 0.7, B: None},
        {"step": 2, f"eval/{A}": 0.4},
    ]
    assert final_figures(rows, [A, B]) == ({A: 0.4}, "held-out games")
    assert final_figures(rows[:-1], [A, B]) == ({A: pytest.approx(0.8)}, "mean of the last 2 steps")
    assert final_figures(rows[:1], [A]) == ({}, "no metrics")
    assert final_figures([], [A]) == ({}, "no metrics")


def test_last_steps_count_once_each_and_no_more_than_five() -> None:
    rows = [{"step": step, A: float(step)} for step in range(8)]
    assert final_figures([*rows, {"step": 7, A: 2.0}], [A])[0] == {A: pytest.approx((3 + 4 + 5 + 6 + 2) / 5)}


def test_half_a_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"st')
    assert read_rows(tmp_path) == [{"step": 0}]
    assert read_rows(tmp_path / "none") == []


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    """Variants a and <b> with seeds 1 to 3; <b>'s third failed, and c was refused."""
    sweep = {"name": "s", "dir": str(tmp_path), "base": str(ROOT / "configs" / "tiny.yaml"), "seeds": [1, 2, 3],
             "metrics": [A, B], "variants": {"a": {}, "b": {"game.cot": False}, "c": {"game.cott": 1}}}  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep))
    folder = SweepFolder(tmp_path / "s")
    runs = plan(read_sweep(tmp_path / "sweep.yaml"), {})
    records = {}
    for run in runs:
        records[run.name] = Record(State.FINISHED, "local", "1:1", 1, 100.0, 160.0)
        if run.variant.name == "c":
            records[run.name] = Record(State.INVALID, reason="unknown key")
        elif run.name == "b-seed3":
            records[run.name] = Record(State.FAILED, reason="<script>alert(1)</script>")
        value = run.seed / 10 + (0.2 if run.variant.name == "b" else 0)
        folder.run_folder(run.name).mkdir(parents=True)
        row = {
            "step": 2,
            f"eval/{A}": value,
            f"eval/{B}": value / 2,
            "eval/assessor/harmful_share": 0.7 + run.seed / 100,
        }
        (folder.run_folder(run.name) / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    told = summarise("s", runs, records, folder, [A, B], "a")
    write_summary(told, folder)
    return told


def test_summary_counts_means_and_differences(found: dict[str, Any], tmp_path: Path) -> None:
    a, b, c = found["variants"]
    assert [(v["finished"], v["failed"], v["runs"]) for v in (a, b, c)] == [(3, 0, 3), (2, 1, 3), (0, 3, 3)]
    assert a["figures"][A]["mean"] == pytest.approx(0.2) and a["figures"][A]["n"] == 3
    assert a["figures"][A]["always_harmful"] == 0.5
    assert a["figures"][B]["always_harmful"] == pytest.approx(0.72), "the truths of its own held-out games"
    assert b["figures"][A]["mean"] == pytest.approx(0.35), "what failed has no figures"
    assert b["difference"][A]["mean"] == pytest.approx(0.2) and b["difference"][A]["n"] == 2
    assert a["difference"] == {} and c["figures"] == {} and c["difference"] == {}
    assert {run["name"]: run["seconds"] for run in found["runs"]}["a-seed1"] == 60
    assert json.loads((tmp_path / "s" / "sweep.json").read_text()) == found


def test_csv_has_a_row_for_every_variant_and_metric(found: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [(row["variant"], row["metric"]) for row in rows] == [(v, m) for v in "abc" for m in (A, B)]
    assert float(rows[2]["difference"]) == pytest.approx(0.2) and rows[2]["pairs"] == "2"
    assert rows[4]["mean"] == "" and rows[4]["failed"] == "3"


def test_the_page_needs_nothing_else_and_escapes_what_it_is_given(found: dict[str, Any]) -> None:
    page = render_page(found)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=|https?://", page)
    assert "0.20 [" in page and "+0.20 [" in page and "game.cot false" in page
