"""The result of an audit as lines of plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FIGURE_TITLES = {
    "balanced_accuracy": "balanced accuracy (of the decided)",
    "balanced_share_right": "the same, undecided = wrong",
    "accuracy": "accuracy (of the decided)",
    "kappa": "Cohen's kappa",
    "abstain_share": "abstained",
    "error_share": "failed",
}
MISSES_SHOWN = 20

Result = Mapping[str, Any]


def render(told: Result, output: Path | None) -> str:
    """Everything that an audit found, less the ids of most misses."""
    return "\n".join(_lines(told, output))


def _lines(told: Result, output: Path | None) -> Iterator[str]:
    replicas = ", ".join(
        f"{each['model']} {each['version']} at {url}" for url, each in told["judge"]["replicas"].items()
    )
    notes = told["notes"]
    yield f"Judge: {replicas}"
    yield (f"Notes: {notes['notes']}, {notes['with_error']} of them with an error, of {notes['vignettes']} vignettes "
           f"({notes['source']})")  # fmt: skip
    for name, section in told["sets"].items():
        yield ""
        yield from _section(name, section)
    if told["games"] is not None:
        yield ""
        yield from _games(told["games"])
    yield ""
    yield "In brackets: 95 % intervals over vignettes. One of no width says that all or none were right, not more."
    if told["first_error"]:
        yield f"The first failure: {told['first_error']}"
    yield from _misses(told["misses"], output)
    if output is not None:
        yield f"Everything is in {output}"


def _section(name: str, section: Result) -> Iterator[str]:
    head = f"{name}: {section['probes']} pairs of {section['vignettes']} vignettes"
    if section["latency"]:
        head += (
            f", {1000 * section['latency']['p50_s']:.0f} ms a query (95 %: {1000 * section['latency']['p95_s']:.0f})"
        )
    yield head[0].upper() + head[1:]
    if not section["probes"]:
        return
    table = section["confusion"]
    yield f"  {'':<16}" + "".join(f"{answer:>10}" for answer in next(iter(table.values())))
    for truth, row in table.items():
        yield f"  {'truly ' + truth:<16}" + "".join(f"{count:>10}" for count in row.values())
    yield f"  {'':<36}{'judge':<21}" + "  ".join(section["baselines"])
    for key, title in FIGURE_TITLES.items():
        others = (_value(figures[key]).ljust(len(name)) for name, figures in section["baselines"].items())
        yield f"  {title:<36}{_interval(section['figures'][key]):<21}" + "  ".join(others)
    if len(section["kinds"]) > 1:
        yield f"  {'by kind':<36}{'right of decided':<21}right  abstained  failed  of"
        for row in section["kinds"]:
            title = f"{row['kind']} ({row['truth']})"
            counts = f"{row['right']:>5}{row['abstained']:>11}{row['failed']:>8}{row['probes']:>4}"
            yield f"    {title:<34}{_interval(row['accuracy']):<21}{counts}"


def _games(games: Result) -> Iterator[str]:
    first, last = games["steps"]
    yield f"Notes that the attacker wrote in steps {first} to {last} ({games['file']}); nobody knows their truth"
    yield f"  {'':<24}{'notes':>6}  {'abstained':<21}{'failed':<21}Harmful of decided"
    for name, row in games["groups"].items():
        shares = "".join(f"{_interval(row[key]):<21}" for key in ("abstain_share", "error_share", "harmful_of_decided"))
        yield f"  {name:<24}{row['notes']:>6}  {shares}".rstrip()


def _misses(misses: list[Result], output: Path | None) -> Iterator[str]:
    if not misses:
        return
    yield f"Missed or undecided, held-out pairs aside: {len(misses)}"
    shows_text = "changed" in misses[0]
    shown = misses if shows_text else misses[:MISSES_SHOWN]
    for miss in shown:
        yield f"  {miss['id']} ({miss['kind']}): {miss['truth']}, answered {miss['answer']}"
        if shows_text:
            yield from (f"      {passage}" for passage in miss["changed"])
            yield f"      the judge: {miss['reason']}"
    if len(shown) < len(misses):
        where = output or "--output FILE"
        yield f"  and {len(misses) - len(shown)} more: {where} has them all, --show-misses shows what differs"


def _value(figure: Mapping[str, float] | None) -> str:
    return "-" if figure is None else f"{figure['value']:.3f}"


def _interval(figure: Mapping[str, float] | None) -> str:
    return "-" if figure is None else f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
