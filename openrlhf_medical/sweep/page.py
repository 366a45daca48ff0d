"""The summary of a sweep as one HTML file that needs nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2


def render_page(found: Mapping[str, Any]) -> str:
    """The content of ``sweep.json`` as a page. Everything that comes from a file is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"figure": figure, "signed": lambda value: figure(value, "+"), "words": words}
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime(found["written"]))
    return environment.get_template("page.html.j2").render(sweep=found, written=written)


def figure(given: Mapping[str, Any] | None, sign: str = "") -> str:
    """``0.71 [0.62, 0.80]``; of one seed the mean alone."""
    if not given:
        return "-"
    if given["low"] is None:
        return f"{given['mean']:{sign}.2f} (one seed)"
    return f"{given['mean']:{sign}.2f} [{given['low']:{sign}.2f}, {given['high']:{sign}.2f}]"


def words(changes: Mapping[str, Any]) -> str:
    """``game.cot false, …`` of what a variant changes."""
    return ", ".join(f"{key} {json.dumps(value, ensure_ascii=False, default=str)}" for key, value in changes.items())
