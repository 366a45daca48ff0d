"""What a run keeps of itself: model folders, states that it resumes from, states that it rolls back to.

::

    checkpoints/step_N/<policy>, final/…   Hugging Face folders
    checkpoints/pool/step_N/<policy>       the same, of past opponents
    checkpoints/state/step_N/              all that training goes on from (``state_store``):
        parts.json                         by name, what each part of the run says of its state
        played_ahead.pickle                games that the next step learns from (train.async_enable)
        driver.random, <policy>/…          random states; DeepSpeed's files and the random states of every rank
    good_states/step_N/<policy>            run.on_collapse rollback
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from openrlhf_medical.config import RunConfig
from openrlhf_medical.console import Console
from openrlhf_medical.health import HealthMonitor
from openrlhf_medical.learner.policy import Learner
from openrlhf_medical.learner.random_states import load_random_states, save_random_states
from openrlhf_medical.learner.together import side_by_side
from openrlhf_medical.rollout.opponents import League
from openrlhf_medical.run_directory import RunDirectory
from openrlhf_medical.state_store import State, StateStore

PARTS, PLAYED_AHEAD, DRIVER = "parts.json", "played_ahead.pickle", "driver.random"


class Stateful(Protocol):
    """A part of a run with a memory: what it says of itself as JSON is what it can go on from."""

    def state(self) -> dict[str, Any]: ...

    def load(self, state: Mapping[str, Any]) -> None: ...


class Checkpoints:
    """Writes and reads the folders. A ``Stateful`` itself: it remembers the state to roll back to.

    ``parts``: everything else with a memory beside the policies' workers, by name.
    """

    def __init__(
        self,
        config: RunConfig,
        learners: Sequence[Learner],
        league: League,
        monitor: HealthMonitor,
        directory: RunDirectory,
        console: Console,
        parts: Mapping[str, Stateful],
    ) -> None:
        self._config, self._learners, self._league, self._monitor = config, learners, league, monitor
        self._directory, self._console = directory, console
        own: dict[str, Stateful] = {f"policy {learner.name}": learner for learner in learners}
        self._parts: dict[str, Stateful] = {"checkpoints": self, "health": monitor, "league": league, **own, **parts}
        self._store = StateStore(directory.folder, config.ckpt.max_num)
        self._good: int | None = None
        self._good_health = monitor.state()

    def keep(self, steps_done: int, logs: Mapping[str, int], played_ahead: Any) -> None:
        """Model folders, members of the pool, and states to go on from or back to, as far as each is due now.
        ``logs`` and ``played_ahead``: see ``keep_state``."""
        ckpt, run = self._config.ckpt, self._config.run
        last = steps_done == run.steps
        if steps_done and ckpt.save_steps > 0 and steps_done % ckpt.save_steps == 0:
            self.save(f"step_{steps_done}")
        if self._league.wants(steps_done):
            self._league.add(steps_done, self.save(f"pool/step_{steps_done}"))
        if run.on_collapse == "rollback" and not self._monitor.suspicious and steps_done % run.good_every == 0:
            self._directory.replace(self._good_folder(steps_done), self._save_workers)
            self._good, self._good_health = steps_done, self._monitor.state()
        if steps_done and ckpt.resume_steps and (last or steps_done % ckpt.resume_steps == 0):
            self.keep_state(steps_done, logs, played_ahead)
        if last:
            self._store.rotate(1)
        self._tidy()
        self._directory.status.running(steps_done, run.steps)

    def save(self, name: str) -> str:
        """``checkpoints/<name>/<policy>``: folders that transformers and vLLM open. Returns the folder."""
        self._console.phase("saving")

        def write(folder: Path) -> None:
            folder.mkdir(parents=True)
            for learner in self._learners:
                learner.save(folder / learner.name)

        self._directory.replace(self._directory.checkpoints / name, write)
        return str(self._directory.checkpoints / name)

    # ── Resuming ──

    def keep_state(self, steps_done: int, logs: Mapping[str, int], played_ahead: Any) -> Path:
        """All that training goes on from, ``steps_done`` whole steps being done.

        ``logs``: bytes of each log that belong to them; ``played_ahead``: games of the next step, or None.

        Raises:
            DiskFull: nothing older was removed.
        """
        self._console.phase("saving")

        def fill(folder: Path) -> None:
            states = {name: part.state() for name, part in self._parts.items()}
            (folder / PARTS).write_text(json.dumps(states), encoding="utf-8")
            if played_ahead is not None:
                (folder / PLAYED_AHEAD).write_bytes(pickle.dumps(played_ahead))
            save_random_states(folder / DRIVER)
            self._save_workers(folder)

        return self._store.write(steps_done, fill, needs=self._needs(), logs=logs)

    def resume(self, state: State) -> Any:
        """Go on where the state was written. Returns the games that were played ahead, or None."""
        self._console.phase("loading the state")
        states = json.loads((state.folder / PARTS).read_text(encoding="utf-8"))
        for name, part in self._parts.items():
            part.load(states[name])
        self._load_workers(state.folder)
        self._directory.cut_logs(state.logs)
        self._store.discard_after(state.steps_done)
        for folder in self._directory.checkpoints.glob("step_*"):
            number = folder.name.removeprefix("step_")
            if not number.isdecimal() or int(number) > state.steps_done:
                shutil.rmtree(folder)
        load_random_states(state.folder / DRIVER)
        played_ahead = state.folder / PLAYED_AHEAD
        return pickle.loads(played_ahead.read_bytes()) if played_ahead.exists() else None

    # ── Rolling back ──

    def roll_back(self) -> None:
        """To the last good state; the weights are a version of their own."""
        assert self._good is not None, "one is kept before the first step"
        self._load_workers(self._good_folder(self._good))
        self._monitor.load(self._good_health)

    def state(self) -> dict[str, Any]:
        return {"good": self._good, "good_health": self._good_health}

    def load(self, state: Mapping[str, Any]) -> None:
        self._good, self._good_health = state["good"], state["good_health"]

    # ── Folders ──

    def _save_workers(self, folder: Path) -> None:
        side_by_side(self._learners, lambda learner: learner.save_state(folder / learner.name))

    def _load_workers(self, folder: Path) -> None:
        """Engines hold the same weights afterwards."""
        side_by_side(self._learners, lambda learner: learner.load_state(folder / learner.name))
        side_by_side(self._learners, Learner.sync)

    def _good_folder(self, steps_done: int) -> Path:
        return self._directory.good_states / f"step_{steps_done}"

    def _needs(self) -> set[str]:
        """Folders that the run reads again, relative to its own: opponents, the good state, the warm start."""
        needed = self._league.folders()
        if self._good is not None:
            needed.append(self._good_folder(self._good))
        if self._directory.starts_file.exists():
            needed.append(self._directory.checkpoints / "warm_start")
        return set(map(self._name, needed))

    def _tidy(self) -> None:
        """Remove opponents and good states that neither the run nor one of its states needs any more."""
        needed = self._store.needed() | self._needs()
        for parent in (self._directory.checkpoints / "pool", self._directory.good_states):
            for folder in parent.iterdir() if parent.exists() else ():
                if self._name(folder) not in needed:
                    shutil.rmtree(folder)

    def _name(self, folder: Path) -> str:
        return str(folder.relative_to(self._directory.folder))
