"""Errors that are told in one line, without a traceback."""

from __future__ import annotations

import signal


class UserError(Exception):
    """A mistake in what the user gave: a file, a key, a value, an address.

    The message says what was found, what is allowed and what to change. The command line prints it
    on one line, without a traceback, and ends with exit code 2.
    """


class RunError(RuntimeError):
    """A run that cannot go on, though nothing the user gave was wrong. Exit code 1."""


class StuckError(RunError):
    """A deadline passed; the message names who did not answer, in which phase, after how long."""


class Interrupted(Exception):
    """A signal asked the run to end. Exit code 128 + its number; the message says what was saved."""

    def __init__(self, number: signal.Signals, message: str = "nothing was trained yet") -> None:
        super().__init__(message)
        self.number = number
