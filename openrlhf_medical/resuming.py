"""``train --resume``: where a run goes on, and whether it may with this configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from openrlhf_medical.config import RunConfig, load_config
from openrlhf_medical.errors import UserError
from openrlhf_medical.run_directory import RunDirectory
from openrlhf_medical.state_store import Damaged, State, StateStore

AUTO = "auto"

MAY_CHANGE = {
    "run.steps": "a run may be made longer",
    "run.dir": "the folder of all runs may have moved",
    "run.start_timeout_s": "a deadline",
    "run.placement_timeout_s": "a deadline",
    "run.generate_timeout_s": "a deadline",
    "run.update_timeout_s": "a deadline",
    "run.sync_timeout_s": "a deadline",
    "judge.urls": "judges move",
    "judge.token_file": "and so do their keys",
    "judge.timeout_s": "a deadline",
    "judge.attempt_timeout_s": "a deadline",
    "judge.recovery_timeout_s": "a deadline",
    "judge.max_failed_fraction": "how patient a run is",
    "judge.batch_size": "speed",
    "judge.max_wait_s": "speed",
    "judge.max_requests": "speed",
    "vllm.gpu_memory_utilization": "another GPU",
    "ckpt.save_steps": "what is kept",
    "ckpt.resume_steps": "what is kept",
    "ckpt.max_num": "what is kept",
    "logger.": "what is told",
}
"""Keys, or beginnings of keys, that a resumed run may change, and why. All others decide what is trained."""


def starting_point(
    config: RunConfig, directory: RunDirectory, wanted: str, tell: Callable[[str], None]
) -> tuple[State | None, bool]:
    """(state to go on from, whether the run is finished already). The state is None where a run is to begin.

    ``wanted``: ``auto``, or the folder of one of the run's states. Reads only.

    Raises:
        UserError: the configuration is another one, or ``wanted`` is no good state of this run.
    """
    store = StateStore(directory.folder, config.ckpt.max_num)
    if directory.config_file.exists():
        _same_training(load_config(directory.config_file), config, directory.config_file)
    status = directory.status.read()
    state: State | None
    if wanted != AUTO:
        state = _named(store, Path(wanted).resolve())
    elif status.get("state") == "finished" and status["steps_done"] >= config.run.steps:
        return None, True
    else:
        state = store.newest_good(tell)
        if state is None and status.get("state") == "finished":
            raise UserError(
                f"{directory.folder} is finished after {status['steps_done']} steps and holds no good state to go on "
                f"from to run.steps {config.run.steps}: start a new run under another run.name"
            )
    if state is None:
        tell(f"{directory.folder} holds no state to go on from: the run starts from the beginning")
    elif state.steps_done > config.run.steps:
        raise UserError(
            f"{state.folder} has {state.steps_done} steps done, run.steps is {config.run.steps}: set run.steps to more"
        )
    else:
        tell(f"going on from {state.folder}: {state.steps_done} of {config.run.steps} steps are done")
    return state, False


def _named(store: StateStore, folder: Path) -> State:
    if folder not in store.folders():
        known = ", ".join(str(each) for each in store.folders()) or "none"
        raise UserError(f"--resume {folder} is no state of this run; allowed: {AUTO}, or one of its states ({known})")
    try:
        return store.read(folder)
    except Damaged as error:
        raise UserError(f"--resume {folder} is damaged: {error}; take another one, or {AUTO}") from None


def _same_training(before: RunConfig, now: RunConfig, file: Path) -> None:
    if changed := differences(before, now):
        raise UserError(
            f"a run goes on with the configuration that it began with ({file}), but {'; '.join(changed)}: set them "
            "back, or start a new run under another run.name"
        )


def differences(before: RunConfig, now: RunConfig) -> list[str]:
    """What decides the training and is not the same, as one clause for each key."""
    old, new = (dict(_flat(config.model_dump(mode="json"))) for config in (before, now))
    return [
        f"{key} was {old[key]!r} and is {new[key]!r}"
        for key in old
        if old[key] != new[key] and not any(key.startswith(may) if may[-1] == "." else key == may for may in MAY_CHANGE)
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Any:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
