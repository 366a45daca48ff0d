"""Who enters an arena: folders by name, or all checkpoints of a run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Role

BASE = "base"
"""Name of the model that a run started from."""

_MODEL, _ADAPTER = "config.json", "adapter_config.json"
_PARTIAL = (".partial", ".old")
_STATES = "state"
"""Folder of what a run resumes from: no checkpoints of their own."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """A player of one role. ``folder``: of its weights, or a name of the model hub; ``base``: of an adapter, the model
    that it belongs to."""

    name: str
    role: Role
    folder: str
    base: str | None = None


def named(word: str) -> tuple[str, str]:
    """NAME=FOLDER, or a folder, whose last part is its name. UserError for an empty one."""
    name, found, folder = word.partition("=")
    if not found:
        name, folder = Path(word).name, word
    if not name or not folder:
        raise UserError(f"{word!r} is no player; write NAME=FOLDER, or a folder")
    return name, folder


def entrant(name: str, role: Role, folder: str, base: str | None) -> Entrant:
    """``base``: the model that an adapter's folder belongs to, where its own file does not name one that is here."""
    path = Path(folder)
    if not path.exists():  # a name of the model hub, or a mistake that check_model_folder tells
        return Entrant(name, role, folder)
    if (path / _MODEL).exists():
        return Entrant(name, role, str(path.resolve()))
    if not (path / _ADAPTER).exists():
        below = ", ".join(sorted(p.name for p in path.iterdir() if _is_model(p))[:4])
        hint = f"; its folders {below} are: name one" if below else ""
        raise UserError(f"{folder} is no player: it has neither {_MODEL} nor {_ADAPTER}{hint}")
    own = json.loads((path / _ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    found = base or own
    if not found:
        raise UserError(f"{folder} is an adapter that names no base model: give --actor.model_name_or_path")
    return Entrant(name, role, str(path.resolve()), base=str(Path(found).resolve()) if Path(found).exists() else found)


def of_run(run: Path, base: str, only: Sequence[str] = ()) -> list[Entrant]:
    """Every checkpoint of a run, in the order in which they were made as far as their names tell, behind ``base``.

    A policy folder plays the role that it is named for; a shared one plays both. ``only``: names to keep.

    Raises:
        UserError: the run has no checkpoint, or none of a name in ``only``.
    """
    root = run / "checkpoints"
    found = [entrant(BASE, role, base, None) for role in Role]
    for folder in sorted(_checkpoints(root), key=lambda path: _age(str(path.relative_to(root)))):
        name = str(folder.relative_to(root))
        for policy in sorted(path for path in folder.iterdir() if _is_model(path)):
            for role in Role if policy.name in ("shared", "base") else _roles_named(policy.name):
                found.append(entrant(name, role, str(policy), base))
    if len(found) == len(Role):
        raise UserError(f"{root} holds no checkpoint: give --run the folder of a run that has saved some")
    names = {one.name for one in found}
    if unknown := [name for name in only if name not in names]:
        raise UserError(f"--only {', '.join(unknown)}: {run} has no such checkpoint; it has {', '.join(sorted(names))}")
    return [one for one in found if not only or one.name in only]


def _checkpoints(root: Path) -> set[Path]:
    """Folders that hold policies, one or two levels down (pool/step_4)."""
    if not root.is_dir():
        return set()
    models = [path for pattern in ("*/*", "*/*/*") for path in root.glob(pattern) if _is_model(path)]
    whole = [path for path in models if not any(part.endswith(_PARTIAL) for part in path.parts)]
    return {path.parent for path in whole if path.relative_to(root).parts[0] != _STATES}


def _is_model(path: Path) -> bool:
    return path.is_dir() and ((path / _MODEL).exists() or (path / _ADAPTER).exists())


def _roles_named(policy: str) -> tuple[Role, ...]:
    return (Role(policy),) if policy in tuple(Role) else ()


def _age(name: str) -> tuple[int, int, str]:
    """The warm start, steps by number, then final, best and whatever else, by name."""
    step = re.search(r"step_(\d+)$", name)
    if step:
        return (1, int(step[1]), name)
    return (0 if name == "warm_start" else 2, 0, name)


def check_names(entrants: Iterable[Entrant]) -> tuple[list[Entrant], list[Entrant]]:
    """(attackers, assessors). UserError where a role has nobody, or one name stands for two folders."""
    seen: dict[tuple[Role, str], Entrant] = {}
    for one in entrants:
        other = seen.setdefault((one.role, one.name), one)
        if other != one:
            raise UserError(f"two {one.role}s are called {one.name} ({other.folder} and {one.folder}): "
                            "give them names of their own, NAME=FOLDER")  # fmt: skip
    sides = tuple([one for (own, _), one in seen.items() if own is role] for role in Role)
    for role, own in zip(Role, sides, strict=True):
        if not own:
            raise UserError(f"the arena has no {role}: give --{role} NAME=FOLDER, --player NAME=FOLDER for both roles, "
                            "or --run FOLDER")  # fmt: skip
    return sides[0], sides[1]


def fingerprint(one: Entrant) -> str:
    """Of the bytes that decide how it plays. A name of the model hub stands for itself."""
    digest = hashlib.blake2b(digest_size=16)
    for folder in (one.folder, one.base or ""):
        path = Path(folder)
        if not path.is_dir():
            digest.update(folder.encode())
            continue
        for file in sorted(path.iterdir()):
            if file.suffix in (".safetensors", ".bin", ".json", ".jinja", ".model") and file.is_file():
                digest.update(file.name.encode())
                with file.open("rb") as opened:
                    while block := opened.read(1 << 24):
                        digest.update(block)
    return digest.hexdigest()
