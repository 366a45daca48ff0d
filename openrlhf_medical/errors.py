"""The one kind of mistake that a user can mend, and how it is told."""


class UserError(Exception):
    """A mistake in what the user gave: a file, a key, a value, an address.

    The message says what was found, what is allowed and what to change. The command line prints it
    on one line, without a traceback, and ends with exit code 2.
    """
