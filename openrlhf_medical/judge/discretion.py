"""What may be written to a log. Clinical text is sensitive."""

from __future__ import annotations

import traceback

from openrlhf_medical.errors import UserError


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


def why_not_loaded(error: BaseException) -> str:
    """No note has been seen yet, so all of it can be told; what is written for users stands for itself."""
    return str(error) if isinstance(error, (Discreet, UserError)) else f"{type(error).__name__}: {error}"
