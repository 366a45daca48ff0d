"""What all runs of a sweep share: one prepared data set, and one judge that is kept running."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from openrlhf_medical.data.prepare import prepare_data
from openrlhf_medical.errors import RunError, UserError
from openrlhf_medical.judge.process import PROGRAM, kept_running
from openrlhf_medical.sweep.folder import SweepFolder, read_json, write_text
from openrlhf_medical.sweep.spec import Prepare, SharedJudge

logger = logging.getLogger(__name__)


def data_keys(prepare: Prepare | None, folder: SweepFolder) -> dict[str, str]:
    """The keys of a run that name the shared data."""
    if prepare is None:
        return {}
    return {f"data.{part}": str(folder.path / "data" / f"{part}.jsonl") for part in ("train", "val")}


def prepare_once(prepare: Prepare, folder: SweepFolder) -> str | None:
    """Writes the data set where it is not there yet, and returns what it is; None where it was there.

    Raises UserError where the folder holds one that was prepared otherwise, and what ``prepare_data`` raises.
    """
    output, note = folder.path / "data", folder.path / "data" / "prepared.json"
    asked = prepare.model_dump(mode="json")
    if (found := read_json(note)) is not None:
        if found != asked:
            changed = ", ".join(f"{key} was {found.get(key)}" for key in asked if found.get(key) != asked[key])
            raise UserError(f"{output} was prepared otherwise ({changed}): give the sweep another name, so that "
                            "its runs learn from the same data")  # fmt: skip
        return None
    given = prepare
    summary = prepare_data(given.source, output, given.num_samples, given.train_ratio, given.seed, None,
                           list(given.families), given.vignettes, given.wording)  # fmt: skip
    write_text(note, json.dumps(asked, indent=2) + "\n")
    return summary.render()


@contextlib.contextmanager
def judge_keys(judge: SharedJudge | None, folder: SweepFolder) -> Iterator[dict[str, Any]]:
    """The keys of a run that name the shared judge, which runs as long as this lasts.

    A sweep that goes on finds its judge at the address that it had, if nobody else has taken it meanwhile.

    Raises RunError where the judge does not start.
    """
    if judge is None:
        yield {}
        return
    if judge.urls:
        yield {"judge.urls": list(judge.urls)}
        return
    note, log_file = folder.path / "judge.json", folder.path / "judge.log"
    port = int((read_json(note) or {}).get("port", 0))
    options: dict[str, Any] = {
        "backend": judge.backend, "program": (*PROGRAM, *judge.options), "deadline_s": judge.start_timeout_s,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(kept_running(log_file, port=port, **options))
        except RuntimeError as error:
            if not port:
                raise RunError(str(error)) from None
            logger.warning("the judge does not start at its old port %s: taking another", port)
            try:
                url = stack.enter_context(kept_running(log_file, port=0, **options))
            except RuntimeError as again:
                raise RunError(str(again)) from None
        write_text(note, json.dumps({"port": urlsplit(url).port, "url": url}) + "\n")
        yield {"judge.urls": [url]}
