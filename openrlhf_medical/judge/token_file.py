"""The bearer token that a judge and its clients share, kept in a file: command lines and configurations are seen."""

from __future__ import annotations

from pathlib import Path

from openrlhf_medical.errors import UserError


def read_token(path: Path) -> str:
    """The one line of the file. Raises UserError where it cannot be read, or is no token."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the token file {path} cannot be read: {error}") from None
    if not token or any(character.isspace() for character in token):
        raise UserError(f"the token file {path} must hold one token on one line, without white space in it")
    return token
