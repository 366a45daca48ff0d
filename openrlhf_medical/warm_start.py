"""The supervised warm start: before self-play, each policy learns form and task from annotated notes.

It ends in a checkpoint from which policy, KL reference, engines and frozen opponents all start: a reference
left at the base model would outweigh the reward.
"""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

from openrlhf_medical import assembly, layout
from openrlhf_medical.config import RunConfig
from openrlhf_medical.console import Console
from openrlhf_medical.game.players import Role
from openrlhf_medical.learner.policy import Learner, Supervision
from openrlhf_medical.learner.supervised import SupervisedExamples
from openrlhf_medical.run_directory import RunDirectory, write_whole

CHUNK = 5
"""Optimizer steps between two lines of warm_start.jsonl."""


def warm_start(
    config: RunConfig,
    pad_token_id: int,
    notes: SupervisedExamples,
    examples: SupervisedExamples,
    directory: RunDirectory,
    console: Console,
) -> dict[Role, str]:
    """``train.sft_note_steps`` optimizer steps on writing ``notes``, then ``train.sft_warmup_steps`` on
    playing, of every policy that plays. Returns each role's start folder.

    Workers of its own, ended afterwards: self-play begins with fresh optimizers and its own schedule.
    """
    roles = set(config.trained_roles) | (set(layout.frozen_roles(config)) if config.roles.met == "base" else set())
    done = directory.checkpoints / "warm_start"
    if (found := finished_warm_start(directory)) is not None:
        console.phase(f"the warm start is done already: {done}")
        return found
    shutil.rmtree(done, ignore_errors=True)
    console.phase("starting workers for the warm start")
    pupils = assembly.start_pupils(config, roles, pad_token_id)
    starts = dict.fromkeys(Role, layout.model_of(config))
    try:
        with ThreadPoolExecutor(len(pupils)) as pool:
            list(pool.map(lambda pupil: _teach(config, pupil, notes, examples, directory, console), pupils))
        for pupil in pupils:
            folder = done / pupil.name
            folder.parent.mkdir(parents=True, exist_ok=True)
            pupil.save(folder, merged=True)
            starts |= dict.fromkeys(pupil.roles, str(folder))
    finally:
        for pupil in pupils:
            pupil.stop()
    write_whole(directory.starts_file, json.dumps(starts) + "\n")  # last: it says that all folders are whole
    return starts


def finished_warm_start(directory: RunDirectory) -> dict[Role, str] | None:
    """Each role's start folder, where an earlier process of this run finished the warm start."""
    if not directory.starts_file.exists():
        return None
    starts = json.loads(directory.starts_file.read_text(encoding="utf-8"))
    return {role: starts[role.value] for role in Role}


def _teach(
    config: RunConfig,
    pupil: Learner,
    notes: SupervisedExamples,
    examples: SupervisedExamples,
    directory: RunDirectory,
    console: Console,
) -> None:
    started, done = time.monotonic(), 0
    lessons = (
        ("writing notes", notes, config.train.sft_note_steps),
        ("playing", examples, config.train.sft_warmup_steps),
    )
    total = sum(steps for _, _, steps in lessons)
    for title, material, steps in lessons:
        pupil.supervision = Supervision(material, config.train.sft_batch_size, 1.0)
        for first in range(0, steps, CHUNK):
            chunk = range(first, min(first + CHUNK, steps))
            metrics = pupil.supervise(chunk)
            done += len(chunk)
            seconds = time.monotonic() - started
            directory.add_warm_start(done, {**metrics, "time/warm_start_s": seconds})
            loss = next(value for name, value in metrics.items() if name.endswith("sft_loss"))
            console.progress(f"warm start of {pupil.name}, {title}", done, total, seconds, f"loss {loss:.2f}")
