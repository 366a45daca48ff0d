"""Folders of states that a run goes on from: written whole or not at all, checked on load, old ones rotated.

    checkpoints/state/step_N/
        …               what the trainer writes (``checkpoints``)
        manifest.json   written last: every file's size and checksum, what else the state needs, the logs' lengths

A state is written as ``step_N.partial`` and then renamed. Older ones go only after that. Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_medical.errors import RunError

MANIFEST = "manifest.json"
FORMAT = 2
"""Of the manifest and of what it speaks of; a state of another format is not read."""

_PREFIX, _PARTIAL = "step_", ".partial"
_READERS = 4
_TORCH_WRITE_FAILED = ("PytorchStreamWriter failed", "inline_container")
"""How torch.save says that it could not write; it does not say why."""


class Damaged(Exception):
    """A state that cannot be gone on from; the message says why."""


class DiskFull(RunError):
    """No room for a state. Nothing older was removed."""


@dataclass(frozen=True, slots=True)
class State:
    """A checked state. ``needs``: folders beside it, relative to the run's; ``logs``: bytes of each log, by file name,
    that belong to the steps done."""

    folder: Path
    steps_done: int
    needs: tuple[str, ...]
    logs: dict[str, int]


class StateStore:
    """The states of one run. ``keep``: how many are left after a new one is complete."""

    def __init__(self, run_folder: Path, keep: int) -> None:
        self._run, self._keep = run_folder, keep
        self.folder = run_folder / "checkpoints" / "state"

    def folders(self) -> list[Path]:
        """Every state by its name, newest first; whether one is whole, ``read`` tells."""
        found = {}
        for path in self.folder.glob(f"{_PREFIX}*"):
            if (number := path.name.removeprefix(_PREFIX)).isdecimal():
                found[int(number)] = path
        return [found[steps] for steps in sorted(found, reverse=True)]

    def write(
        self, steps_done: int, fill: Callable[[Path], None], *, needs: Iterable[str] = (), logs: Mapping[str, int] = {}
    ) -> Path:
        """Let ``fill`` write a state into a folder, and put it in its place.

        Raises:
            DiskFull: before or while it is written.
        """
        target = self.folder / f"{_PREFIX}{steps_done}"
        if target.exists():
            with contextlib.suppress(Damaged):
                return self.read(target).folder
            shutil.rmtree(target)
        partial = target.with_name(target.name + _PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        expected = self._expected_bytes()
        self._check_room(expected)
        try:
            partial.mkdir(parents=True)
            fill(partial)
            files = dict(_facts_of_files(partial))
            manifest = {"format": FORMAT, "steps_done": steps_done, "needs": sorted(needs), "logs": dict(logs),
                        "files": files}  # fmt: skip
            _write_through(partial / MANIFEST, json.dumps(manifest, indent=1) + "\n")
            partial.rename(target)
        except BaseException as error:
            free, written = shutil.disk_usage(self._run).free, _bytes_in(partial)
            shutil.rmtree(partial, ignore_errors=True)
            if _says_disk_full(error, free, max(expected - written, 0)):
                raise self._disk_full(expected, free + written, written) from error
            raise
        _sync_folder(self.folder)
        self.rotate(self._keep)
        return target

    def read(self, folder: Path) -> State:
        """A state, with every byte checked.

        Raises:
            Damaged: it is not whole, or something that it needs is gone.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            files: dict[str, Any] = manifest["files"]
            state = State(folder, manifest["steps_done"], tuple(manifest["needs"]), dict(manifest["logs"]))
            if manifest["format"] != FORMAT:
                raise Damaged(f"it has format {manifest['format']}, this version reads {FORMAT}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{MANIFEST} cannot be read ({type(error).__name__})") from None
        for name, facts in files.items():
            path = folder / name
            if not path.is_file():
                raise Damaged(f"{name} is missing")
            if path.stat().st_size != facts["bytes"]:
                raise Damaged(f"{name} has {path.stat().st_size} bytes, {facts['bytes']} were written")
        for name, facts in _facts_of_files(folder):
            if name in files and facts != files[name]:
                raise Damaged(f"{name} is not what was written (checksum)")
        for name in state.needs:
            if not (self._run / name).is_dir():
                raise Damaged(f"it needs {name}, which is gone")
        for name, size in state.logs.items():
            held = (self._run / name).stat().st_size if (self._run / name).exists() else 0
            if held < size:
                raise Damaged(f"{name} has {held} bytes, fewer than the {size} that belong to this state")
        return state

    def newest_good(self, warn: Callable[[str], None]) -> State | None:
        """The newest state that is whole; ``warn`` is told of every newer one that is not. None without any."""
        for folder in self.folders():
            try:
                return self.read(folder)
            except Damaged as error:
                warn(f"{folder} is damaged and not used: {error}")
        return None

    def rotate(self, keep: int) -> None:
        """Remove all but the newest ``keep``."""
        for folder in self.folders()[keep:]:
            shutil.rmtree(folder)

    def discard_after(self, steps_done: int) -> None:
        """Remove what was written later than a state that is gone back to: another future begins there."""
        for folder in self.folders():
            if int(folder.name.removeprefix(_PREFIX)) > steps_done:
                shutil.rmtree(folder)
        for leftover in self.folder.glob(f"*{_PARTIAL}"):
            shutil.rmtree(leftover)

    def needed(self) -> set[str]:
        """Folders, relative to the run's, that some state needs."""
        found: set[str] = set()
        for folder in self.folders():
            with contextlib.suppress(OSError, ValueError, KeyError):  # a damaged one needs nothing more
                found |= set(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["needs"])
        return found

    def _expected_bytes(self) -> int:
        """As many as the newest state has; 0 before the first."""
        return next((_bytes_in(folder) for folder in self.folders()), 0)

    def _check_room(self, expected: int) -> None:
        free = shutil.disk_usage(self._run).free
        if free < expected:
            raise self._disk_full(expected, free, 0)

    def _disk_full(self, expected: int, free: int, written: int) -> DiskFull:
        needed = f"{expected} bytes are needed" if expected else f"more than the {written} bytes written are needed"
        held = self.folders()
        left = f"; the newest state is {held[0]}" if held else ""
        return DiskFull(f"no room for a checkpoint in {self.folder}: {needed}, {free} bytes are free{left}. Make room "
                        "and go on with --resume auto")  # fmt: skip


def _facts_of_files(folder: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """(name, size and checksum) of every file but the manifest, side by side; written through to the disk."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)

    def facts(name: str) -> tuple[str, dict[str, Any]]:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return name, {"bytes": file.tell(), "sha256": digest}

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(facts, names))


def _write_through(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _says_disk_full(error: BaseException, free: int, still_needed: int) -> bool:
    """Whether a failed write means a full disk. An error of a worker comes as Ray's, with the worker's words."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    if os.strerror(errno.ENOSPC) in text or os.strerror(errno.EDQUOT) in text:
        return True
    return any(words in text for words in _TORCH_WRITE_FAILED) and free <= max(still_needed, 1 << 20)
