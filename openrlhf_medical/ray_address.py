"""The cluster that RAY_ADDRESS names, looked at without Ray."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")
"""Where ``ray start`` notes the address that RAY_ADDRESS=auto stands for."""
ANSWER_TIMEOUT_S = 5.0


def address_of(environment: Mapping[str, str] = os.environ, current: Path = CURRENT_CLUSTER) -> str:
    """``HOST:PORT``, with a scheme where it was given one; empty where nothing is named, or no cluster is noted."""
    named = environment.get("RAY_ADDRESS", "")
    return noted(current) if named == "auto" else named


def noted(current: Path = CURRENT_CLUSTER) -> str:
    """The cluster that was started on this machine last; it may be gone."""
    return current.read_text().strip() if current.exists() else ""


def answers(address: str, timeout_s: float = ANSWER_TIMEOUT_S) -> bool:
    """Whether somebody listens at ``HOST:PORT``, with or without a scheme."""
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        with socket.create_connection((parts.hostname, parts.port or 6379), timeout=timeout_s):
            return True
    except (OSError, ValueError):
        return False
