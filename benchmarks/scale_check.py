"""The scale model held against what really happened: the games of a run on this machine.

run directory ─► batches of games: tokens of every turn, seconds ─► rates from all but one ─► seconds of that one
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scale_model import GameWork, Service, play_step
from simulated_engine import Rates

from openrlhf_medical.yardstick import HELD_OUT

KEPT = Path(__file__).parent / "runs"
"""What is needed of real runs, committed: one file each, as ``check`` reads it."""

CHARS_PER_TOKEN = 4.0
"""Only for prompts: replies are counted by the engine (throughput/tokens_per_s)."""

READ_AS_FAST_AS_WRITTEN = 5.0
"""Prompt tokens in the time of one new token where the batch is full: 994 against 200 tokens/s (facts/cpu-stack.md)."""


@dataclass(frozen=True, slots=True)
class Played:
    """One batch of games of a run: a step's, or held-out ones. ``turns``: of each game, the attacker's (prompt, reply)
    tokens or None, and the assessor's or None."""

    name: str
    seconds: float
    turns: list[tuple[tuple[int, int] | None, tuple[int, int] | None]]

    def work(self) -> list[GameWork]:
        return [GameWork(attacker, assessor) for attacker, assessor in self.turns]


@dataclass(frozen=True, slots=True)
class Check:
    """Seconds by batch of games. The first ``warm_up`` ones are left out: an engine's first replies take longer. Each
    of the others is predicted with rates that were fitted without it; ``rates`` are fitted on all of them."""

    run: str
    engines: int
    warm_up: int
    rates: dict[str, float]
    names: list[str]
    games: list[int]
    measured_s: list[float]
    predicted_s: list[float]

    @property
    def worst(self) -> float:
        """The largest factor, either way, between a prediction and what was measured."""
        pairs = list(zip(self.measured_s, self.predicted_s, strict=True))[self.warm_up :]
        return max(max(a / b, b / a) for a, b in pairs)

    @property
    def note(self) -> str:
        return f"largest factor of {len(self.names) - self.warm_up} batches of games, each predicted from the others"

    def markdown(self) -> str:
        lines = [
            f"\n## Against a real run: {self.run}\n",
            f"{self.engines} engine(s) a pool. Each batch of games is predicted with rates fitted on the rest; those\n"
            f"of all are {self.rates['alone']:.0f} tokens/s for one reply and {self.rates['full']:.0f} at most. The\n"
            f"first {self.warm_up} batches are left out: a new engine's first replies take longer.\n",
            "| games of | games | measured s | predicted s | games/s measured | predicted |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for i, name in enumerate(self.names):
            measured, predicted, games = self.measured_s[i], self.predicted_s[i], self.games[i]
            left_out = " (left out)" if i < self.warm_up else ""
            lines.append(f"| {name}{left_out} | {games} | {measured:.1f} | {predicted:.1f} | {games / measured:.2f} "
                         f"| {games / predicted:.2f} |")  # fmt: skip
        return "\n".join(lines) + "\n"

    def show(self) -> None:
        print(self.markdown())


# --- from a run directory to batches of games -------------------------------------------------------------


def read_run(folder: Path) -> tuple[int, list[Played]]:
    """(engines, batches of games in the order in which they were played) of a run's directory."""
    import yaml

    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in (folder / "games.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows[row["step"]].append(row)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    batches = []
    for line in metrics:
        for prefix, step in (("", line["step"]), (HELD_OUT, _held_out_step(line["step"], config))):
            seconds, per_s = line.get(f"{prefix}time/games_s"), line.get(f"{prefix}throughput/tokens_per_s")
            if seconds and per_s and rows.get(step):
                batches.append(
                    Played(
                        f"{'held-out games after' if prefix else 'step'} {line['step']}",
                        seconds,
                        _turns(rows[step], seconds * per_s),
                    )
                )
    return config["vllm"]["num_engines"], batches


def _held_out_step(steps_done: int, config: dict[str, Any]) -> int:
    """The step number of held-out games (``trainer.games_step``) by the number of their line in metrics.jsonl."""
    if steps_done == config["run"]["steps"]:
        return steps_done
    return -1 if steps_done < 0 else -1 - steps_done


def _turns(rows: Sequence[dict[str, Any]], tokens: float) -> list[tuple[Any, Any]]:
    """Tokens of each turn: their sum is known from the metrics, and the texts say how they are shared out."""
    chars = sum(_written(row[role]) for row in rows for role in ("attacker", "assessor") if row[role])
    share = tokens / chars

    def turn(row: dict[str, Any], role: str, note: str | None) -> tuple[int, int] | None:
        if not row[role]:
            return None
        return round(len(note or "") / CHARS_PER_TOKEN), max(1, round(_written(row[role]) * share))

    return [(turn(row, "attacker", row["seed_note"]), turn(row, "assessor", row["presented_note"])) for row in rows]


def _written(turn: dict[str, Any]) -> int:
    return len(turn["thinking"]) + len(turn["answer"] or "") + 20  # tags


# --- fitting and predicting -------------------------------------------------------------------------------


def predict(batch: Played, engines: int, rates: Rates) -> float:
    """Seconds of these games; controller, judge and network as good as free, as they are on one machine."""
    service = Service(rates, rates.full * READ_AS_FAST_AS_WRITTEN, 2e-3, 0.0, 2e-4, 1000.0, 1, 0.0, 0.0, 1.0, 0.0, 0.0)
    return play_step(batch.work(), engines, service).play_s


def fit(batches: Sequence[Played], engines: int, slots: int = 256) -> Rates:
    """The two rates with the least sum of squared relative errors, from a grid with steps of an eighth."""
    grid = [2 ** (i / 6) for i in range(18, 90)]  # 8 to 30,000 tokens/s

    def error(alone: float, full: float) -> float:
        return sum((predict(b, engines, Rates(slots, alone, full)) / b.seconds - 1) ** 2 for b in batches)

    # One after the other, and again: the valley is flat where only one of them limits.
    alone, full = 50.0, 200.0
    for _ in range(4):
        full = min((f for f in grid if f >= alone), key=lambda f: error(alone, f))
        alone = min((a for a in grid if a <= full), key=lambda a: error(a, full))
    return Rates(slots, alone, full)


def check(path: Path, warm_up: int = 2) -> Check:
    """A run directory, or a file of ``KEPT``.

    Raises ValueError where there are too few batches of games."""
    if path.is_dir():
        engines, batches = read_run(path)
        name = path.name
    else:
        found = json.loads(path.read_text(encoding="utf-8"))
        engines, name = found["engines"], path.stem
        batches = [Played(b["name"], b["seconds"], b["turns"]) for b in found["batches"]]
    warm = batches[warm_up:]
    if len(warm) < 2:
        raise ValueError(f"{path} has {len(batches)} batches of games; {warm_up} to warm up and 2 more are needed")
    rates = fit(warm, engines)
    predicted = [predict(batch, engines, rates) for batch in batches[:warm_up]]
    for batch in warm:
        predicted.append(predict(batch, engines, fit([other for other in warm if other is not batch], engines)))
    return Check(name, engines, warm_up, asdict(rates), [b.name for b in batches], [len(b.turns) for b in batches],
                 [b.seconds for b in batches], predicted)  # fmt: skip


def keep(folder: Path) -> Path:
    """What ``check`` needs of a run directory, as a small file that can be committed: no text of any note."""
    engines, batches = read_run(folder)
    KEPT.mkdir(exist_ok=True)
    path = KEPT / f"{folder.name}.json"
    path.write_text(json.dumps({"engines": engines, "batches": [asdict(b) for b in batches]}) + "\n", encoding="utf-8")
    return path
