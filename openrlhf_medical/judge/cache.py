"""Findings kept on disk, found again by content, judge and wording: a ``Backend`` around any other.

One SQLite file, which several processes may share. Only hashes of notes are in it, and what the judge said of them,
which may quote them: nobody but its owner can read it. Failures are never kept. A cache that fails costs the time it
would have saved, and no label.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Truth
from openrlhf_medical.judge.backends import Backend
from openrlhf_medical.judge.findings import BlindPair, Finding

logger = logging.getLogger(__name__)

FILE_NAME = "judge-findings.sqlite"
_BUSY_S = 10.0  # for other processes that are writing
_AT_ONCE = 500  # below SQLite's limit of values in one statement
_KEPT = ("ok", "abstain")
_TABLE = "CREATE TABLE IF NOT EXISTS findings (key BLOB PRIMARY KEY, finding TEXT NOT NULL, made REAL NOT NULL)"


class Cached:
    """What was found before has ``cached`` true in its row.

    Args:
        folder: made where it does not exist.

    Raises:
        UserError: on ``load``, a folder or file that cannot be used.
    """

    def __init__(self, backend: Backend, folder: Path) -> None:
        self._backend = backend
        self._file = folder / FILE_NAME
        self._identity = ""

    @property
    def model_name(self) -> str:
        return self._backend.model_name

    @property
    def identity(self) -> dict[str, Any]:
        return self._backend.identity

    def load(self) -> None:
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Before SQLite makes it: so there is no moment in which others can open it, and its journals follow suit.
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.fchmod(descriptor, 0o600)
            finally:
                os.close(descriptor)
            with self._open() as connection:
                connection.execute(_TABLE)
                connection.execute("SELECT key, finding, made FROM findings LIMIT 1")
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"the cache {self._file} cannot be used ({error}): give another --cache-dir, or move "
                            "that file away") from None  # fmt: skip
        self._backend.load()
        # Taken once: weights that are replaced on disk are not those that were loaded.
        self._identity = json.dumps(self._backend.identity, sort_keys=True)

    def judge(self, pairs: Sequence[BlindPair]) -> list[Finding]:
        keys = {pair: key_of(self._identity, pair) for pair in pairs}
        known = self._read(list(keys.values()))
        missing = [pair for pair, key in keys.items() if key not in known]
        found = dict(zip(missing, self._backend.judge(missing) if missing else [], strict=True))
        self._write({keys[pair]: finding for pair, finding in found.items() if finding.status in _KEPT})
        return [known[keys[pair]] if keys[pair] in known else found[pair] for pair in pairs]

    def close(self) -> None:
        if (close := getattr(self._backend, "close", None)) is not None:
            close()

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One for each use: nothing is held between batches, and none crosses threads. One transaction."""
        with contextlib.closing(sqlite3.connect(self._file, timeout=_BUSY_S)) as connection, connection:
            yield connection

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, Finding]:
        rows: list[tuple[bytes, str]] = []
        try:
            with self._open() as connection:
                for i in range(0, len(keys), _AT_ONCE):
                    some = keys[i : i + _AT_ONCE]
                    query = f"SELECT key, finding FROM findings WHERE key IN ({','.join('?' * len(some))})"
                    rows += connection.execute(query, some).fetchall()
        except sqlite3.Error as error:
            logger.warning("the cache cannot be read: %s", error)
        return {key: finding for key, text in rows if (finding := _from_json(text)) is not None}

    def _write(self, findings: Mapping[bytes, Finding]) -> None:
        if not findings:
            return
        now = time.time()
        try:
            with self._open() as connection:
                connection.executemany(
                    "INSERT OR REPLACE INTO findings VALUES (?, ?, ?)",
                    [(key, _to_json(finding), now) for key, finding in findings.items()],
                )
        except (sqlite3.Error, ValueError) as error:
            logger.warning("the cache cannot be written: %s", type(error).__name__)


def key_of(identity: str, pair: BlindPair) -> bytes:
    """Of JSON, in which no two different lists of texts look alike."""
    return hashlib.sha256(json.dumps([identity, pair.original_note, pair.medical_note]).encode()).digest()


def _to_json(finding: Finding) -> str:
    return json.dumps(
        {
            "status": finding.status,
            "actual_harm": finding.actual_harm,
            "kind": finding.kind,
            "reasoning": finding.reasoning,
            "note_valid": finding.note_valid,
            "error_realistic": finding.error_realistic,
            "details": dict(finding.details),
        }
    )


def _from_json(text: str) -> Finding | None:
    """None for what this program did not write."""
    try:
        row = json.loads(text)
        if row["status"] not in _KEPT:
            return None
        truth = None if row["actual_harm"] is None else Truth(row["actual_harm"])
        return Finding(
            row["status"], truth, row["kind"], row["reasoning"], row["note_valid"], row["error_realistic"],
            row["details"] | {"cached": True},
        )  # fmt: skip
    except (ValueError, KeyError, TypeError):
        return None
