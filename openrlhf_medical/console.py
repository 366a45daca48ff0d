"""What a run shows: one bar with the time left and three numbers, warnings once, a table at the end.

Library noise goes to the run's log file.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console as RichConsole
from rich.table import Table
from tqdm import tqdm

from openrlhf_medical.game.players import Role
from openrlhf_medical.game.records import Game

BAR_NUMBERS = {
    "assessor/balanced_accuracy": "bal.acc",
    "attacker/success_rate": "attack",
    "format/assessor/violation_rate": "bad form",
}
"""The three numbers that matter, and their short names in the bar."""

SUMMARY_ROWS = {
    "assessor/accuracy": "assessor: accuracy",
    "assessor/balanced_accuracy": "assessor: balanced accuracy",
    "assessor/false_positive_rate": "assessor: false-positive rate",
    "format/assessor/violation_rate": "assessor: format violations",
    "format/attacker/violation_rate": "attacker: format violations",
    "attacker/success_rate": "attacker: success (faithful, and the assessor wrong)",
}

_NOISY = ("openrlhf", "DeepSpeed", "deepspeed", "ray", "vllm", "transformers", "torch", "asyncio", "httpx")


class Console:
    """The user's view of a run of ``steps`` steps. A context manager: the bar and the log live inside it."""

    def __init__(self, steps: int, log_file: Path) -> None:
        self._steps, self._log_file = steps, log_file
        self._bar: tqdm = tqdm(disable=True)
        self._doing, self._games, self._games_done = "", 0, 0
        self._steps_done: int | None = None
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Console:
        handler = logging.FileHandler(self._log_file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        names = [name for name in logging.Logger.manager.loggerDict if name.split(".")[0] in _NOISY]
        for logger in map(logging.getLogger, {*names, *_NOISY}):
            logger.handlers = [handler]
            logger.propagate = False
        logging.captureWarnings(True)
        # Where nobody watches (a job's log file), a bar would be thousands of lines: one a step instead.
        self._bar = tqdm(total=self._steps, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def phase(self, doing: str) -> None:
        """What the run is doing now."""
        with self._lock:
            if doing != self._doing:
                self._doing = doing
                self._bar.set_description_str(doing)
                if self._bar.disable and self._steps_done is None:
                    self._say(doing)

    def progress(self, doing: str, done: int, total: int, seconds: float, figure: str) -> None:
        """Long work that is no step: how far it is, and the time left."""
        left = seconds / done * (total - done)
        line = f"{doing} {done}/{total}, {figure}, {left / 60:.0f} min left"
        with self._lock:
            self._bar.set_description_str(line)
            tenth = max(1, total // 10)
            if self._bar.disable and (done % tenth == 0 or done == total):
                self._say(line)

    def training_begins(self, steps_done: int = 0) -> None:
        """The time left is estimated from here on: starting up and held-out games are no steps, nor are those that
        an earlier process did."""
        self._steps_done = steps_done
        self._bar.initial = steps_done
        self._bar.reset()

    def playing(self, doing: str, games: int) -> None:
        self._games, self._games_done = games, 0
        self.phase(doing)

    def game_done(self, game: Game) -> None:
        self._games_done += 1
        self._bar.set_description_str(f"{self._doing} {self._games_done}/{self._games}")

    def step_done(self, metrics: Mapping[str, float]) -> None:
        numbers = {short: f"{metrics[name]:.2f}" for name, short in BAR_NUMBERS.items() if name in metrics}
        self._bar.set_postfix(numbers)
        self._bar.update()
        self._steps_done = (self._steps_done or 0) + 1
        if self._bar.disable:
            shown = ", ".join(f"{name} {value}" for name, value in numbers.items())
            seconds = f" in {metrics['time/step_s']:.0f} s" if "time/step_s" in metrics else ""
            self._say(f"step {self._steps_done}/{self._steps}{seconds}: {shown}")

    def _say(self, line: str) -> None:
        say(line)

    def warn(self, message: str) -> None:
        """Tell once; a repeated warning would bury the next one."""
        with self._lock:
            if message not in self._told:
                self._told.add(message)
                self._say(f"warning: {message}")

    def summary(self, before: Mapping[str, float] | None, after: Mapping[str, float] | None, folder: Path) -> None:
        """The closing table: the same held-out seeds before and after, and what always saying Harmful gives."""
        self._bar.close()
        if before is not None and after is not None:
            table = Table(title="Held-out games", title_justify="left")
            for column in ("", "before", "after", "always Harmful"):
                table.add_column(column, justify="left" if not column else "right")
            constant = always_harmful(after)
            for name, title in SUMMARY_ROWS.items():
                table.add_row(title, *(_number(values.get(name)) for values in (before, after, constant)))
            RichConsole().print(table)
            if games := after.get("assessor/judged"):
                noise = 1.96 * (0.5 / games) ** 0.5
                print(f"{games:.0f} judged games: a difference below about {noise:.2f} may be noise.")
        print(f"The run is in {folder}")

    def play_summary(self, metrics: Mapping[str, float], output: Path) -> None:
        self._bar.close()
        table = Table(title="Games", title_justify="left")
        table.add_column("")
        table.add_column("value", justify="right")
        rewards = {f"reward/{role}/mean": f"{role}: mean reward" for role in Role}
        for name, title in {**SUMMARY_ROWS, **rewards}.items():
            table.add_row(title, _number(metrics.get(name)))
        RichConsole().print(table)
        print(f"The games are in {output}")


def say(line: str) -> None:
    """One line, above the bar where there is one."""
    tqdm.write(line, file=sys.stderr)


def always_harmful(metrics: Mapping[str, float]) -> dict[str, float]:
    """What an assessor that always says Harmful would have got on the same notes."""
    constant = {"assessor/balanced_accuracy": 0.5, "assessor/false_positive_rate": 1.0,
                "format/assessor/violation_rate": 0.0}  # fmt: skip
    if "assessor/harmful_share" in metrics:
        constant["assessor/accuracy"] = metrics["assessor/harmful_share"]
    return constant


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
