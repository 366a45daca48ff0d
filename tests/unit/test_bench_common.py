"""What all benchmarks share: order of alternations, ratios, verdicts, and the page of results. Numbers by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # as `python benchmarks/page.py` has it

import measure  # noqa: E402
import page  # noqa: E402
from measure import Result, Row, alternate, compare  # noqa: E402


def test_higher_is_how_many_times_faster_we_are():
    row = compare("x", ours=[1.0, 2.0, 4.0], other=[3.0, 3.0, 10.0], target=1.5, better="higher")
    assert row.ratio == 1.5  # 3 / 2
    assert row.spread == (1.5, 3.0)  # 3/1, 3/2, 10/4
    assert row.holds


def test_lower_is_how_many_times_the_others_seconds_we_take():
    row = compare("x", ours=[1.0, 2.0, 4.0], other=[2.0, 2.0, 2.0], target=0.9, better="lower")
    assert row.ratio == 1.0 and row.spread == (0.5, 2.0)
    assert not row.holds


@pytest.mark.parametrize(("better", "ratio", "holds"), [
    ("higher", 1.6, True), ("higher", 1.59, False), ("lower", 1.6, True), ("lower", 1.61, False),
])  # fmt: skip
def test_a_target_that_is_just_met_holds(better, ratio, holds):
    assert Row("x", ratio, 1.6, better).holds is holds


def test_sides_take_turns_and_the_order_turns_round(capsys):
    called = []

    def side(name, seconds):
        return lambda: called.append(name) or seconds

    found = alternate({"a": side("a", 1.0), "b": side("b", 2.0)}, runs=2)
    assert found == {"a": [1.0, 1.0], "b": [2.0, 2.0]}  # the round to warm up is not counted
    assert called in (["a", "b", "b", "a", "a", "b"], ["b", "a", "a", "b", "b", "a"])


def test_a_result_is_written_with_its_verdicts(tmp_path, capsys):
    Result("some", [Row("fast", 2.0, 1.6, "higher", spread=(1.5, 2.5))], {"seconds": [1, 2]}).report(tmp_path)
    found = json.loads((tmp_path / "some.json").read_text())
    assert found["rows"] == [{"name": "fast", "ratio": 2.0, "target": 1.6, "better": "higher", "unit": "\u00d7",
                              "spread": [1.5, 2.5], "note": "", "holds": True}]  # fmt: skip
    assert found["samples"] == {"seconds": [1, 2]} and "commit" in found and "cpu" in found["hardware"]
    assert "fast" in capsys.readouterr().out


def test_quick_results_are_not_written(tmp_path, capsys):
    Result("some", [Row("fast", 2.0, 1.6, "higher")]).report(None)
    assert not list(tmp_path.iterdir())


# --- the page -----------------------------------------------------------------------------------------------


def _result(tmp_path, name, *rows, **more):
    (tmp_path / f"{name}.json").write_text(json.dumps({"rows": list(rows), **more}))


def test_the_page_has_every_row_once_with_its_verdict_and_what_was_said_by_hand(tmp_path):
    _result(tmp_path, "zebra", {"name": "last", "ratio": 0.5, "target": 0.8, "better": "higher", "note": "a | b"},
            command="python benchmarks/zebra.py", commit="0123456789abcdef",
            hardware={"cpu": "some CPU", "cpu_cores": 2, "memory_gib": 24, "gpus": []})  # fmt: skip
    _result(tmp_path, "schedule",
            {"name": "first", "ratio": 1.73, "target": 1.6, "better": "higher", "spread": [1.5, 1.9]},
            {"name": "queries", "ratio": 1234.6, "target": 1000, "better": "higher", "unit": "queries/s"})  # fmt: skip
    (tmp_path / "other.json").write_text("[1, 2]")  # not everything in the folder is a result
    _result(tmp_path, "empty")
    text = page.render(page.read_results(tmp_path), "## What was tried\nEverything.")
    assert text.index("### schedule") < text.index("### zebra")  # as in the table, the rest after it
    assert "2 of the 3 targets measured hold" in text
    unmeasured = [name for name in page.ORDER if name != "schedule"]
    assert f"No result yet: {', '.join(unmeasured)}." in text
    assert "| first | 1.73 \u00d7 | 1.5 to 1.9 | \u2265 1.6 \u00d7 | holds |  |" in text
    assert "| queries | 1,235 queries/s |  | \u2265 1,000 queries/s | holds |  |" in text
    assert "| last | 0.5 \u00d7 |  | \u2265 0.8 \u00d7 | **missed** by 38% | a \\| b |" in text
    assert (
        "`python benchmarks/zebra.py` at commit `0123456789ab`" in text
        and "2 cores of some CPU, 24 GiB, no GPU" in text
    )
    assert text.endswith("## What was tried\nEverything.\n")
    assert "empty" not in text


def test_the_committed_results_make_a_page():
    results = page.read_results(measure.RESULTS)
    text = page.render(results, "")
    assert all(row["name"] in text for result in results for row in result["rows"])


@pytest.mark.parametrize(("value", "shown"), [(1.734, "1.73"), (0.0689, "0.0689"), (4432.0, "4,432"), (99.96, "100")])
def test_numbers_have_three_digits_and_no_exponent(value, shown):
    assert page.number(value) == shown


def test_run_all_names_every_benchmark_of_the_page():
    assert set(page.ORDER) == set(_named()) and _named()[-1] == "scale"  # which reads what others wrote


def _named():
    script = (BENCHMARKS / "run_all.sh").read_text()
    [names] = [line for line in script.splitlines() if line.startswith("for name in ")]
    return names.removeprefix("for name in ").removesuffix("; do").split()


@pytest.mark.parametrize(("failing", "options", "code"), [
    ("judge", ["--runs", "1"], 1), ("page", [], 1), ("nothing", ["--quick"], 0),
])  # fmt: skip
def test_run_all_goes_on_after_a_failure_and_says_so_at_the_end(tmp_path, failing, options, code):
    called = tmp_path / "called"
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {called}\necho why >&2\n[ "$(basename $1)" != {failing}.py ]\n')
    fake.chmod(0o755)
    done = subprocess.run([BENCHMARKS / "run_all.sh", *options], capture_output=True, text=True, check=False,
                          env={"PATH": os.environ["PATH"], "PYTHON": str(fake), "TMPDIR": str(tmp_path)})  # fmt: skip
    lines = called.read_text().splitlines()
    own = [f"benchmarks/{name}.py {' '.join(options)}".rstrip() for name in _named()]
    pages = [] if "--quick" in options else ["benchmarks/page.py", "benchmarks/page.py --table"]
    assert lines == own + pages
    assert done.returncode == code
    assert "min" in done.stdout and (f"FAILED: {failing}" in done.stderr) == (code == 1)
    if failing == "judge":
        assert "why" in done.stderr
