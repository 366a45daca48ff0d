"""What the games of an arena say: ``arena.json``, and the tables that a person sees.

Who won a game is decided by ``rollout.pool.wins_of``, as in training: the attacker by a faithful note on which the
verdict is wrong, the assessor by a right verdict. A game without a result (the judge abstained or failed, a player
failed) is no contest and counts nowhere but in ``undecided``. For ratings and circles a game gives points: the
attacker 1 where it won, 0 where the verdict was right or it forfeited, and half a point where nobody won: a refusal, a
reply out of form, or a wrong verdict on a note that the attacker had not made so. Half, as in chess: counted as the
assessor's win, an assessor that never answers could not be beaten.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from openrlhf_medical.evaluation import cycles, ratings
from openrlhf_medical.evaluation.intervals import bootstrap, rate
from openrlhf_medical.evaluation.scores import BALANCED_ACCURACY, FALSE_POSITIVES, SAYS_HARMFUL, interval
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.records import Game
from openrlhf_medical.game.rewards import Case
from openrlhf_medical.rollout.pool import wins_of

Row = Mapping[str, Any]
"""A line of the arena's games.jsonl: the game's own, and ``pair`` and ``outcome``."""

LEVEL = 0.95
POINTS = {"attacker": 1.0, "neither": 0.5, "assessor": 0.0, "forfeit": 0.0}
"""The attacker's, by outcome; of an outcome that is not here there are none, as it was no contest."""


def outcome_of(game: Game) -> str | None:
    """attacker, assessor, neither, or forfeit; None where the game was no contest."""
    won, contests = wins_of([game], Role.ATTACKER)
    if not contests:
        return None
    if won:
        return "attacker"
    if wins_of([game], Role.ASSESSOR)[0]:
        return "assessor"
    return "forfeit" if game.case is Case.FORFEIT else "neither"


def result_of(
    rows: Iterable[Row], attackers: Sequence[str], assessors: Sequence[str], resamples: int = 2_000
) -> dict[str, Any]:
    """All that ``arena.json`` says of games. Rows of other pairs are passed over."""
    contests: dict[tuple[str, str], list[Row]] = defaultdict(list)
    alone: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        attacker, assessor = row["pair"]
        if assessor not in assessors:
            continue
        if attacker is None:
            alone[assessor].append(row)
        elif attacker in attackers:
            contests[attacker, assessor].append(row)
    pairs = [(a, s) for a in attackers for s in assessors if (a, s) in contests]
    points = {pair: _by_vignette(contests[pair]) for pair in pairs}
    sides = [name for name in attackers if name in assessors]
    net = cycles.net_results(sides, points, resamples)
    player_circles = cycles.circles(cycles.player_arrows(points, resamples))
    side_circles = cycles.circles(cycles.side_arrows(net))
    return {
        "level": LEVEL,
        "attackers": list(attackers),
        "assessors": list(assessors),
        "matrix": [_cell(pair, contests[pair], resamples) for pair in pairs],
        "ratings": [asdict(one) for one in ratings.ratings(attackers, assessors, _table(attackers, assessors, points))],
        "prior_sd_elo": round(ratings.PRIOR_SD_NATS * ratings.ELO_PER_NAT),
        "net": [{"side": a, "against": b, "points": r.value, "low": r.low, "high": r.high}
                for (a, b), r in net.items()],
        "cycles": [*side_circles, *([f"{name} ({role})" for role, name in circle] for circle in player_circles)],
        "reversals": cycles.reversals(attackers, assessors, points, resamples),
        "cyclic_share": cycles.cyclic_share(sides, net),
        "alone": [_alone(name, alone[name], resamples) for name in assessors if alone[name]],
    }  # fmt: skip


def _by_vignette(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for row in rows:
        if row["outcome"] in POINTS:
            won, played = found.get(row["vignette_id"], (0.0, 0.0))
            found[row["vignette_id"]] = (won + POINTS[row["outcome"]], played + 1)
    return found


def _table(
    attackers: Sequence[str], assessors: Sequence[str], points: cycles.PairCounts
) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Vignette → (A, S, 2)."""
    table: dict[str, Any] = defaultdict(lambda: np.zeros((len(attackers), len(assessors), 2)))
    for (attacker, assessor), own in points.items():
        for vignette, counts in own.items():
            table[vignette][attackers.index(attacker), assessors.index(assessor)] = counts
    return dict(table)


def _cell(pair: tuple[str, str], rows: Sequence[Row], resamples: int) -> dict[str, Any]:
    """One pair: the attacker's wins of the games that were a contest."""
    outcomes = Counter(row["outcome"] for row in rows)
    games = sum(outcomes[name] for name in POINTS)
    own: dict[str, tuple[float, float]] = {}
    for row in rows:
        if row["outcome"] in POINTS:
            won, played = own.get(row["vignette_id"], (0.0, 0.0))
            own[row["vignette_id"]] = (won + (row["outcome"] == "attacker"), played + 1)
    found = bootstrap(own, rate, resamples=resamples, level=LEVEL)
    truths = Counter((row["label"] or {}).get("actual_harm") for row in rows if row["outcome"] in POINTS)
    low, high = _bounds(found.low, found.high, found.clusters) if found else (None, None)
    return {
        "attacker": pair[0],
        "assessor": pair[1],
        "games": games,
        "attacker_wins": outcomes["attacker"],
        "assessor_wins": outcomes["assessor"],
        "forfeits": outcomes["forfeit"],
        "neither": outcomes["neither"],
        "undecided": len(rows) - games,
        "harmful_share": truths["Harmful"] / games if games else None,
        "rate": found.value if found else None,
        "low": low,
        "high": high,
    }


def _bounds(low: float, high: float, clusters: int) -> tuple[float, float]:
    """Where all games ended alike a bootstrap draws the same every time. Then the exact bound (Clopper & Pearson)
    of as many independent games as there are vignettes."""
    if low != high or low not in (0.0, 1.0):
        return low, high
    open_side: float = 1 - ((1 - LEVEL) / 2) ** (1 / clusters)
    return (0.0, open_side) if low == 0 else (1 - open_side, 1.0)


def _alone(name: str, rows: Sequence[Row], resamples: int) -> dict[str, Any]:
    """The assessor on notes that nobody rewrote: nearly all attacks make a note Harmful, so that one who always says
    Harmful wins every contest. Here it shows."""
    found: dict[str, Any] = {"assessor": name, "games": len(rows)}
    for key, measure in (("balanced_accuracy", BALANCED_ACCURACY), ("false_positive_rate", FALSE_POSITIVES),
                         ("says_harmful", SAYS_HARMFUL)):  # fmt: skip
        one = interval(rows, measure, lambda row: row["vignette_id"], resamples)
        found[key] = {"value": one.value, "low": one.low, "high": one.high} if one else None
    return found


# ── What a person sees ──


def show(result: Mapping[str, Any], console: Console) -> None:
    """The matrix, the ratings, and the circles."""
    console.print(_matrix_table(result))
    console.print(_ratings_table(result))
    for line in closing_lines(result):
        console.print(line, highlight=False, markup=False)


def _matrix_table(result: Mapping[str, Any]) -> Table:
    table = Table(title="Attacker's wins, % (95 % interval over vignettes)", title_justify="left")
    table.add_column("attacker \\ assessor")
    for name in result["assessors"]:
        table.add_column(name, justify="right")
    cells = {(cell["attacker"], cell["assessor"]): cell for cell in result["matrix"]}
    for attacker in result["attackers"]:
        shown = []
        for assessor in result["assessors"]:
            cell = cells.get((attacker, assessor))
            known = cell is not None and cell["rate"] is not None
            shown.append(f"{100 * cell['rate']:.0f} ({100 * cell['low']:.0f} to {100 * cell['high']:.0f})"
                         if cell and known else "-")  # fmt: skip
        table.add_row(attacker, *shown)
    return table


def _ratings_table(result: Mapping[str, Any]) -> Table:
    table = Table(title="Elo (400 more: 10 to 1)", title_justify="left")
    for column in ("player", "role", "Elo", "95 %", "games", "clean notes called Harmful"):
        table.add_column(column, justify="left" if column in ("player", "role") else "right")
    wrong = {one["assessor"]: one["false_positive_rate"] for one in result["alone"]}
    for one in result["ratings"]:
        false = wrong.get(one["player"]) if one["role"] == "assessor" else None
        table.add_row(one["player"], one["role"], f"{one['elo']:.0f}{' *' if one['swept'] else ''}",
                      f"{one['low']:.0f} to {one['high']:.0f}", str(one["games"]),
                      f"{100 * false['value']:.0f} %" if false else "")  # fmt: skip
    return table


def closing_lines(result: Mapping[str, Any]) -> list[str]:
    """Sentences below the tables."""
    lines = []
    if any(one["swept"] for one in result["ratings"]):
        lines.append(f"* won or lost every point: only a prior (sd {result['prior_sd_elo']} Elo) bounds this rating.")
    for circle in result["cycles"]:
        lines.append(f"Circle: {' beats '.join([*circle, circle[0]])}.")
    for one in result["reversals"]:
        lines.append(f"Order depends on the opponent: attacker {one['better']} does better than {one['than']} against "
                     f"{one['against']}, and worse against {one['worse_against']}.")  # fmt: skip
    if not result["cycles"]:
        lines.append("No significant circle: no group in which A beats B beats C beats A.")
    undecided = sum(cell["undecided"] for cell in result["matrix"])
    if undecided:
        total = undecided + sum(cell["games"] for cell in result["matrix"])
        lines.append(f"{undecided} of {total} games had no result (abstentions and failures) and count nowhere.")
    return lines
