"""The result of an evaluation on a console of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table

from openrlhf_medical.evaluation.medec import ALWAYS_FLAG, NEVER_FLAG

ROWS = {
    "flag_accuracy": "flag accuracy",
    "sentence_accuracy": "sentence accuracy",
    "rouge1_f1": "ROUGE-1 F1",
    "composite_rouge1": "composite ROUGE-1",
    "bertscore": "BERTScore",
    "composite_bertscore": "composite BERTScore",
    "bleurt": "BLEURT",
    "composite_bleurt": "composite BLEURT",
    "aggregate": "aggregate",
    "composite_aggregate": "composite aggregate",
    "balanced_accuracy": "balanced accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "false_positive_rate": "false-positive rate",
    "missing_rate": "no verdict",
}
"""``accuracy`` is not repeated: it is the flag accuracy."""

_NAME_WIDTH = 17
_PUBLISHED_SETS = {"full": "test set (925 texts)", "MS": "test set, MS part (597 texts)"}

Figure = Mapping[str, float | None]


def tables(result: Mapping[str, Any]) -> list[Table]:
    """The figures beside the baselines; a comparison, where there is one; the error types."""
    shown = [_beside_baselines(result)]
    if result["compared"]:
        shown.append(_comparison(result))
    if result["error_types"]:
        shown.append(_types(result))
    return shown


def closing_lines(result: Mapping[str, Any]) -> list[str]:
    """What stands under the tables, a line each."""
    lines = []
    if answers := result["answers"]:
        told = ", ".join(f"{answers[name]} {word}" for name, word in _OUTCOMES.items() if answers[name])
        lines.append(f"Replies: {told}. Without a verdict a text counts as wrong.")
        if answers["cut"]:
            limit = result["asked"].get("max_new_tokens", "so many")
            lines.append(f"{answers['cut']} replies were cut at {limit} tokens: see --rollout.max_new_tokens.")
    told = ", ".join(f"{name}: {what}" for name, what in result["learned_scores"].items() if what != "computed")
    if told:
        lines.append(f"Not computed: {told}.")
    lines += [f"Published on MEDEC's {where}: {_published(result, key)}." for key, where in _PUBLISHED_SETS.items()]
    return lines


_OUTCOMES = {
    "verdict": "with a verdict",
    "refusal": "refused",
    "unparsable": "unparsable",
    "too_long": "not asked, too long",
}


def heading(data: Mapping[str, Any]) -> str:
    of = f" of {data['texts_in_source']}" if data["texts"] != data["texts_in_source"] else ""
    return f"{data['texts']}{of} texts, {data['errors']} with an error, {data['vignettes']} vignettes"


def _beside_baselines(result: Mapping[str, Any]) -> Table:
    columns = {result["name"]: result["metrics"]}
    columns |= {name.replace("_", " "): result["baselines"][name]["metrics"] for name in (ALWAYS_FLAG, NEVER_FLAG)}
    table = _table(f"{heading(result['data'])}; 95 % intervals over vignettes", columns)
    for metric, title in ROWS.items():
        if metric in result["metrics"]:
            table.add_row(title, *(figure(metrics.get(metric)) for metrics in columns.values()))
    return table


def _comparison(result: Mapping[str, Any]) -> Table:
    other = result["compared"]
    table = _table("Paired, on the same vignettes", [result["name"], other["name"], "difference"])
    for metric, title in ROWS.items():
        if metric in other["difference"]:
            sides = (result["metrics"][metric], other["metrics"][metric])
            table.add_row(title, *map(figure, sides), figure(other["difference"][metric], signed=True))
    return table


def _types(result: Mapping[str, Any]) -> Table:
    table = _table("Error notes by type", ["recall", "sentence accuracy", "ROUGE-1 F1"])
    for kind, found in result["error_types"].items():
        metrics = found["metrics"]
        cells = (figure(metrics[name]) for name in ("recall", "sentence_accuracy", "rouge1_f1"))
        table.add_row(f"{kind} ({found['texts']})", *cells)
    return table


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
                  show_edge=False)  # fmt: skip
    table.add_column("", no_wrap=True)
    for name in columns:
        short = name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…"
        table.add_column(short, justify="right", no_wrap=True)
    return table


def figure(found: Figure | None, *, signed: bool = False) -> str:
    """``0.52 [0.45, 0.58]``, or ``-`` where it is undefined."""
    if found is None or found["value"] is None:
        return "-"
    value, low, high = found["value"], found["low"], found["high"]
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]" if signed else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _published(result: Mapping[str, Any], which: str) -> str:
    told = []
    for row in result["published"]:
        if row["set"] == which:
            setting = f" ({row['setting']})" if "setting" in row else ""
            numbers = [row[name] for name in ("flag_accuracy", "sentence_accuracy") if name in row]
            told.append(f"{row['system']}{setting} {' / '.join(f'{number:.3f}' for number in numbers)}")
    return ", ".join(told)
