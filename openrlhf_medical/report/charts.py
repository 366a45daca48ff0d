"""A chart as data: what it shows, in which words, and how a series is told from the others without colour.

The page draws it (assets/charts.js) and has the same numbers as a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Style = Literal["line", "points", "level"]
"""``line`` a curve over steps, ``points`` single measurements (held-out games), ``level`` a constant."""

Tone = Literal["attacker", "assessor", "a", "b", "c", "d", "e", "f", "quiet"]
"""Which colour; the page has one for light and one for dark."""


Figures = Mapping[int, Mapping[str, float]]
"""step → name → value."""


@dataclass(frozen=True, slots=True)
class Series:
    name: str
    x: list[float]
    y: list[float]
    tone: Tone = "a"
    style: Style = "line"
    dash: int = 0
    """0 solid, 1 dashed, 2 dotted, 3 dash-dot; the marker's shape goes with it."""
    run: str = ""
    """Of which run, where several are compared."""


@dataclass(frozen=True, slots=True)
class Chart:
    """``unit`` is written at the y axis; ``share`` makes that axis 0 to 1; ``log`` a logarithmic one."""

    id: str
    title: str
    series: list[Series]
    note: str = ""
    unit: str = ""
    share: bool = False
    kind: Literal["lines", "stacked"] = "lines"
    x_title: str = "step"
    zero: bool = False
    wide: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"summary": self.summary()}

    def summary(self) -> str:
        """The chart in a sentence for each series, for those who do not see it."""
        if not self.series:
            return "Nothing to show."
        return " ".join(_sentence(series, self.unit) for series in self.series)


@dataclass(frozen=True, slots=True)
class Group:
    """A heading with charts under it."""

    id: str
    title: str
    charts: list[Chart] = field(default_factory=list)


def curve(figures: Figures, metric: str, name: str, tone: Tone, style: Style = "line", dash: int = 0) -> Series | None:
    """A metric over steps; None where no step has it. Held-out games before training (step -1) stand at 0, which is
    how many updates those weights have seen."""
    points = [(max(0, step), row[metric]) for step, row in figures.items() if metric in row]
    if not points:
        return None
    return Series(name, [x for x, _ in points], [y for _, y in points], tone, style, dash)


def level(name: str, value: float, series: Sequence[Series | None]) -> Series | None:
    """A constant over the steps that the other series span; None where there is no other."""
    xs = [x for one in series if one for x in one.x]
    return Series(name, [min(xs), max(xs)], [value, value], "quiet", "level", 2) if xs else None


def present(series: Iterable[Series | None]) -> list[Series]:
    return [one for one in series if one is not None]


def _sentence(series: Series, unit: str) -> str:
    unit = f" {unit}" if unit and unit != "share" else ""
    if series.style == "level":
        return f"{series.name}: {series.y[0]:.3g}{unit} throughout."
    if len(series.y) == 1:
        return f"{series.name}: {series.y[0]:.3g}{unit} at step {series.x[0]:g}."
    return (
        f"{series.name}: from {series.y[0]:.3g} at step {series.x[0]:g} to {series.y[-1]:.3g}{unit} at step "
        f"{series.x[-1]:g}, lowest {min(series.y):.3g}, highest {max(series.y):.3g}."
    )
