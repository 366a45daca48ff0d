"""Folders of states: whole or not there, checked, rotated, and a full disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from openrlhf_medical.state_store import MANIFEST, DiskFull, StateStore

Usage = namedtuple("Usage", "total used free")


def fill(text: str = "weights"):
    def write(folder: Path) -> None:
        (folder / "policy").mkdir()
        (folder / "policy" / "shard").write_text(text)
        (folder / "parts.json").write_text("{}")

    return write


@pytest.fixture
def store(tmp_path) -> StateStore:
    return StateStore(tmp_path, 2)


def names(store: StateStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_a_state_is_whole_and_says_what_is_in_it(store, tmp_path):
    (tmp_path / "games.jsonl").write_text("123456")
    (tmp_path / "checkpoints" / "pool" / "step_0").mkdir(parents=True)
    folder = store.write(3, fill(), needs=["checkpoints/pool/step_0"], logs={"games.jsonl": 6})
    manifest = json.loads((folder / MANIFEST).read_text())
    assert sorted(manifest["files"]) == ["parts.json", "policy/shard"]
    assert manifest["files"]["policy/shard"]["bytes"] == 7
    state = store.read(folder)
    assert (state.steps_done, state.needs, state.logs) == (3, ("checkpoints/pool/step_0",), {"games.jsonl": 6})
    assert store.needed() == {"checkpoints/pool/step_0"}


def test_the_oldest_goes_after_the_newest_is_complete(store):
    store.write(1, fill())
    store.write(2, fill())

    def looks(folder: Path) -> None:
        assert set(names(store)) == {"step_1", "step_2", "step_10.partial"}
        fill()(folder)

    store.write(10, looks)
    assert [path.name for path in store.folders()] == ["step_10", "step_2"], "by number, newest first"


def test_a_write_that_fails_leaves_the_older_ones_and_no_half(store):
    store.write(1, fill())
    with pytest.raises(ValueError, match="no"):
        store.write(2, lambda folder: (_ for _ in ()).throw(ValueError("no")))
    assert names(store) == ["step_1"]


def damage(kind: str, run: Path, newest: Path) -> None:
    shard = newest / "policy" / "shard"
    match kind:
        case "shorter":
            shard.write_text("wei")
        case "changed":
            shard.write_text("weighty")
        case "missing":
            shard.unlink()
        case "no manifest":
            (newest / MANIFEST).unlink()
        case "half a manifest":
            text = (newest / MANIFEST).read_text()
            (newest / MANIFEST).write_text(text[: len(text) // 2])
        case "another format":
            row = json.loads((newest / MANIFEST).read_text()) | {"format": 99}
            (newest / MANIFEST).write_text(json.dumps(row))
        case "an opponent gone":
            (run / "checkpoints" / "pool").rmdir()
        case "a log cut":
            (run / "games.jsonl").write_text("1")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("shorter", "policy/shard has 3 bytes, 7 were written"),
        ("changed", "policy/shard is not what was written"),
        ("missing", "policy/shard is missing"),
        ("no manifest", "manifest.json cannot be read"),
        ("half a manifest", "manifest.json cannot be read"),
        ("another format", "format 99"),
        ("an opponent gone", "needs checkpoints/pool, which is gone"),
        ("a log cut", "games.jsonl has 1 bytes, fewer than the 6"),
    ],
)
def test_a_damaged_one_is_named_and_the_one_before_taken(store, tmp_path, kind, words):
    (tmp_path / "games.jsonl").write_text("123456")
    (tmp_path / "checkpoints" / "pool").mkdir(parents=True)
    store.write(1, fill(), logs={"games.jsonl": 1})
    newest = store.write(2, fill(), needs=["checkpoints/pool"], logs={"games.jsonl": 6})
    damage(kind, tmp_path, newest)
    warned: list[str] = []
    state = store.newest_good(warned.append)
    assert state is not None and state.steps_done == 1
    [warning] = warned
    assert warning.startswith(str(newest)) and words in warning


def test_none_where_none_is_good(store):
    assert store.newest_good(pytest.fail) is None
    (store.write(1, fill()) / MANIFEST).unlink()
    warned: list[str] = []
    assert store.newest_good(warned.append) is None and len(warned) == 1


def test_a_half_written_one_is_none(store):
    store.write(1, fill())
    shutil.copytree(store.folder / "step_1", store.folder / "step_2.partial")
    state = store.newest_good(pytest.fail)
    assert state is not None and state.steps_done == 1
    store.discard_after(1)
    assert names(store) == ["step_1"]


def test_what_was_written_later_goes_with_going_back(store):
    for steps in (1, 2):
        store.write(steps, fill())
    store.discard_after(1)
    assert names(store) == ["step_1"]


def test_the_same_step_is_not_written_twice_unless_damaged(store):
    folder = store.write(1, fill())
    assert store.write(1, pytest.fail) == folder
    (folder / "policy" / "shard").write_text("x")
    store.write(1, fill())
    assert store.read(folder).steps_done == 1


# ── A full disk ──


def test_no_room_is_told_before_anything_is_written_or_removed(store, monkeypatch):
    store.write(1, fill())
    store.write(2, fill())
    size = sum(path.stat().st_size for path in (store.folder / "step_2").rglob("*") if path.is_file())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - size + 1, size - 1))
    with pytest.raises(DiskFull, match=rf"{size} bytes are needed, {size - 1} bytes are free.*step_2.*--resume auto"):
        store.write(3, pytest.fail)
    assert names(store) == ["step_1", "step_2"]


@pytest.mark.parametrize(
    ("error", "free"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 10**9),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), 10**9),
        (RuntimeError("ray::PolicyWorker.save_state() OSError: [Errno 28] No space left on device"), 10**9),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), 100),
        (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), 100),
    ],
)
def test_a_disk_that_fills_up_meanwhile(store, monkeypatch, error, free):
    store.write(1, fill())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, max(free, 10**6)))

    def fails(folder: Path) -> None:
        fill()(folder)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, free))
        raise error

    with pytest.raises(DiskFull, match=r"no room for a checkpoint in .*\d+ bytes are needed, \d+ bytes are free"):
        store.write(2, fails)
    assert names(store) == ["step_1"], "and the half that was written is gone"


def test_the_first_one_tells_how_far_it_came(store):
    def fails(folder: Path) -> None:
        fill()(folder)
        raise OSError(errno.ENOSPC, "no")

    with pytest.raises(DiskFull, match="more than the 9 bytes written are needed"):
        store.write(1, fails)


def test_another_failure_of_torch_is_no_full_disk(store):
    def fails(folder: Path) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    with pytest.raises(RuntimeError) as found:
        store.write(1, fails)
    assert not isinstance(found.value, DiskFull)
