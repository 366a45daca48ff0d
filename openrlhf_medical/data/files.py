"""Reading and writing files so that a failure says what to change and leaves nothing half written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from openrlhf_medical.errors import UserError


def read_bytes(path: Path, wanted: str) -> bytes:
    """The bytes of a file. Raises UserError, telling the reader to name ``wanted``, where it has none."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Name {wanted}.") from error


def decode_utf8(data: bytes, path: Path) -> str:
    """The text of a file. Raises UserError with the line of the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8, the only encoding allowed. "
            "Fetch the file again or convert it to UTF-8."
        ) from error


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files so that a failure leaves none of them half written and the old ones in place.

    All are first written under a temporary name beside their goal, then renamed. Raises UserError.
    """
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in contents}
    try:
        for path, data in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder")
            parts[path].write_bytes(data)
        for path, part in parts.items():
            part.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {', '.join(map(str, contents))}: {error}. Choose another folder.") from error
    finally:
        for part in parts.values():
            if part.parent.is_dir():
                part.unlink(missing_ok=True)
