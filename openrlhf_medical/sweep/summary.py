"""The end of a sweep in figures: ``sweep.json``, ``summary.csv`` and a page, made anew from the runs' own files.

``sweep.json``: {"name", "reference", "seeds", "metrics", "written" (seconds since the epoch),
  "runs": [{"name", "variant", "seed", "state", "reason", "attempt", "seconds", "source", "figures": {metric: value}}],
  "variants": [{"name", "changes": {key: value}, "runs", "finished", "failed", "source",
                "figures": {metric: {"mean", "low", "high", "n", "always_harmful"}},
                "difference": {metric: {"mean", "low", "high", "n"}}}]}
``failed`` counts runs that failed and those whose configuration was refused; runs that have not ended are neither.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openrlhf_medical.sweep.folder import Record, State, SweepFolder, write_text
from openrlhf_medical.sweep.page import render_page
from openrlhf_medical.sweep.plan import PlannedRun
from openrlhf_medical.sweep.statistics import estimate, final_figures, paired_difference

HARMFUL_SHARE = "assessor/harmful_share"
COLUMNS = ("variant", "runs", "finished", "failed", "metric", "n", "mean", "low", "high", "always_harmful",
           "difference", "difference_low", "difference_high", "pairs", "source")  # fmt: skip

FAILED = (State.FAILED, State.INVALID)


def summarise(
    sweep: str,
    runs: Sequence[PlannedRun],
    records: Mapping[str, Record],
    folder: SweepFolder,
    metrics: Sequence[str],
    reference: str,
) -> dict[str, Any]:
    """The content of ``sweep.json``. Figures are of finished runs alone."""
    told = [_run(run, records[run.name], folder, metrics) for run in runs]
    by_variant: dict[str, list[dict[str, Any]]] = {run.variant.name: [] for run in runs}
    for row in told:
        by_variant[row["variant"]].append(row)
    changes = {run.variant.name: dict(run.variant.changes) for run in runs}
    return {
        "name": sweep,
        "reference": reference,
        "seeds": sorted({run.seed for run in runs}),
        "metrics": list(metrics),
        "written": time.time(),
        "runs": [{key: value for key, value in row.items() if key != "harmful_share"} for row in told],
        "variants": [
            {
                "name": name,
                "changes": changes[name],
                **_variant(rows, by_variant[reference], metrics, name != reference),
            }
            for name, rows in by_variant.items()
        ],
    }


def _run(run: PlannedRun, record: Record, folder: SweepFolder, metrics: Sequence[str]) -> dict[str, Any]:
    figures: dict[str, float] = {}
    source = ""
    if record.state is State.FINISHED:
        figures, source = final_figures(read_rows(folder.run_folder(run.name)), (*metrics, HARMFUL_SHARE))
    seconds = record.ended - record.started if record.ended and record.started else None
    return {
        "name": run.name, "variant": run.variant.name, "seed": run.seed, "state": str(record.state),
        "reason": record.reason, "attempt": record.attempt, "seconds": seconds, "source": source,
        "figures": {name: figures[name] for name in metrics if name in figures},
        "harmful_share": figures.get(HARMFUL_SHARE),
    }  # fmt: skip


def _variant(
    rows: list[dict[str, Any]], reference: list[dict[str, Any]], metrics: Sequence[str], compared: bool
) -> dict[str, Any]:
    figures, difference = {}, {}
    for metric in metrics:
        own, other = _by_seed(rows, metric), _by_seed(reference, metric)
        if (found := estimate(list(own.values()))) is not None:
            figures[metric] = {**asdict(found), "always_harmful": _always_harmful(rows, metric)}
        if compared and (between := paired_difference(own, other)) is not None:
            difference[metric] = asdict(between)
    sources = sorted({row["source"] for row in rows if row["source"]})
    return {
        "runs": len(rows),
        "finished": sum(row["state"] == State.FINISHED for row in rows),
        "failed": sum(row["state"] in FAILED for row in rows),
        "source": "; ".join(sources),
        "figures": figures,
        "difference": difference,
    }


def _by_seed(rows: list[dict[str, Any]], metric: str) -> dict[int, float]:
    return {row["seed"]: row["figures"][metric] for row in rows if metric in row["figures"]}


def _always_harmful(rows: list[dict[str, Any]], metric: str) -> float | None:
    """What always saying Harmful would have got on the same notes, by the mean of their truths."""
    from openrlhf_medical.console import always_harmful

    shares = [row["harmful_share"] for row in rows if row["harmful_share"] is not None]
    return always_harmful({HARMFUL_SHARE: sum(shares) / len(shares)} if shares else {}).get(metric)


def read_rows(run_folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; of a file whose last line is not whole, those before it."""
    rows = []
    try:
        lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def write_summary(found: Mapping[str, Any], folder: SweepFolder) -> None:
    """``sweep.json``, ``summary.csv``, ``summary.html``."""
    write_text(folder.path / "sweep.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    write_text(folder.path / "summary.csv", as_csv(found))
    write_text(folder.path / "summary.html", render_page(found))


def as_csv(found: Mapping[str, Any]) -> str:
    """One row for each variant and metric; what there is no figure of is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for variant in found["variants"]:
        for metric in found["metrics"]:
            own, between = variant["figures"].get(metric, {}), variant["difference"].get(metric, {})
            row = {
                **{key: variant[key] for key in ("runs", "finished", "failed", "source")},
                "variant": variant["name"],
                "metric": metric,
                **{key: own.get(key) for key in ("n", "mean", "low", "high", "always_harmful")},
                **{"difference": between.get("mean"), "difference_low": between.get("low")},
                **{"difference_high": between.get("high"), "pairs": between.get("n")},
            }
            writer.writerow({key: "" if value is None else value for key, value in row.items()})
    return text.getvalue()
