"""Fetch MEDEC's public files. The UW sets need a data-use agreement and are never fetched."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from openrlhf_medical.data.files import write_files
from openrlhf_medical.errors import UserError

if TYPE_CHECKING:
    import requests

PUBLIC_URL = "https://raw.githubusercontent.com/abachaa/MEDEC/main/MEDEC-MS/"
"""The folder of the MS sets in the authors' public repository (CC BY 4.0)."""

PUBLIC_FILES = (
    "MEDEC-Full-TrainingSet-with-ErrorType.csv",
    "MEDEC-MS-ValidationSet-with-GroundTruth-and-ErrorType.csv",
    "MEDEC-MS-TestSet-with-GroundTruth-and-ErrorType.csv",
)

MAX_FILE_BYTES = 64 * 2**20
"""Far more than any of MEDEC's files (the validation set has 1.2 MB)."""

_PIECE_BYTES = 1 << 16
_HEADER = b"Text ID"


def fetch_medec(folder: Path, base_url: str = PUBLIC_URL, *, timeout_s: float = 30.0, deadline_s: float = 300.0) -> int:
    """Put MEDEC's public files into ``folder``; returns how many had to be fetched.

    A file that is there already is kept: only files that arrived whole are ever put there.
    ``timeout_s`` bounds each wait for the server, ``deadline_s`` each file.
    Raises UserError when a file cannot be had, is not of the announced size or is not MEDEC's.
    """
    missing = [name for name in PUBLIC_FILES if not (folder / name).is_file()]
    for name in missing:
        data = _fetch(f"{base_url.rstrip('/')}/{name}", timeout_s, time.monotonic() + deadline_s)
        write_files({folder / name: data})
    return len(missing)


def _fetch(url: str, timeout_s: float, deadline: float) -> bytes:
    # Here and not above, so that reading data costs no HTTP stack.
    import requests
    import urllib3

    advice = "Try again, give another address, or fetch the files by hand and name their folder as --source."
    try:
        # Packed content would come in another number of bytes than we keep.
        with requests.get(url, stream=True, timeout=timeout_s, headers={"Accept-Encoding": "identity"}) as response:
            response.raise_for_status()
            data = _body(response, deadline)
    except (OSError, urllib3.exceptions.HTTPError) as error:  # OSError: also every error of requests itself
        raise UserError(f"cannot fetch {url}: {error}. {advice}") from error
    if _HEADER not in data[:200]:
        raise UserError(f"{url}: is not MEDEC's CSV, it begins with {data[:60]!r}. {advice}")
    return data


def _body(response: requests.Response, deadline: float) -> bytes:
    """All bytes of an answer. Raises OSError past the deadline and where its size is wrong or unknown."""
    announced = response.headers.get("Content-Length", "")
    if not announced and response.headers.get("Transfer-Encoding", "").lower() != "chunked":
        raise OSError("the server announces no size, so a cut-off file could not be told from a whole one")
    data = bytearray()
    # read1 hands over what has come; read and iter_content would wait for a whole chunk past any deadline.
    while piece := response.raw.read1(_PIECE_BYTES):
        data += piece
        if len(data) > MAX_FILE_BYTES:
            raise OSError(f"it has more than the allowed {MAX_FILE_BYTES} bytes")
        if time.monotonic() > deadline:
            raise OSError(f"the deadline passed after {len(data)} bytes")
    if announced and str(len(data)) != announced.strip():
        raise OSError(f"{len(data)} bytes came where {announced} were announced")
    return bytes(data)
