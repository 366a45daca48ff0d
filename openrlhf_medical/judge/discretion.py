"""What may be written to a log. Clinical text is sensitive."""

from __future__ import annotations

import traceback


class Discreet(Exception):
    """Its message quotes no note."""


def shown(error: BaseException, *, whole: bool) -> str:
    """An exception for the log. Its message may quote a note, so it is left out unless ``whole``."""
    if whole:
        return "".join(traceback.format_exception(error))
    if isinstance(error, Discreet):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1:]
    return type(error).__name__ + "".join(f" at {frame.filename}:{frame.lineno}" for frame in where)
