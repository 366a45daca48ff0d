"""From a sweep to its runs: names, settings, checked configurations. Pure, but for reading configuration files."""

from __future__ import annotations

import functools
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openrlhf_medical.config import RunConfig, config_from, config_schema_keys
from openrlhf_medical.config.schema import explain_unknown
from openrlhf_medical.config.sources import Given, Settings, read_file, refuse_unknown
from openrlhf_medical.errors import UserError
from openrlhf_medical.sweep.spec import SweepFile, Words

RESERVED = {
    "run.name": "the sweep names its runs",
    "run.dir": "the sweep's own key dir says where the runs go",
    "train.seed": "the sweep's own key seeds is the list of seeds",
}
_PLACE = re.compile(r"\{(config|name|folder|seed|python)\}")


@dataclass(frozen=True, slots=True)
class Variant:
    """What the runs of one line of the summary have in common. ``named``: the entry of ``variants`` that it comes
    from; ``changes``: what was written for it, for readers; ``problem``: why its file cannot be read."""

    name: str
    named: str
    changes: Mapping[str, Any]
    settings: Settings = field(repr=False)
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run: a variant with a seed. Without ``config`` it cannot be started, and ``problem`` says why."""

    name: str
    variant: Variant
    seed: int
    config: RunConfig | None
    problem: str | None
    command: Words | None
    """Instead of train."""

    def words(self, config_file: Path, folder: Path) -> list[str]:
        """What to call, with the interpreter that runs the sweep."""
        if self.command is None:
            train = [sys.executable, "-m", "openrlhf_medical", "train"]
            return [*train, "--config", str(config_file), "--resume", "auto"]
        places = {"config": config_file, "name": self.name, "folder": folder, "seed": self.seed,
                  "python": sys.executable}  # fmt: skip
        return [_PLACE.sub(lambda found: str(places[found[1]]), word) for word in self.command]


def plan(
    file: SweepFile,
    shared: Mapping[str, Any],
    check: Callable[[RunConfig], None] = lambda config: None,
) -> list[PlannedRun]:
    """All runs, variant by variant.

    Args:
        shared: keys that the sweep itself sets for all runs (its data, its judge), beneath what variants say.
        check: raises UserError for a configuration that cannot run here.

    Raises:
        UserError: a mistake that concerns the whole sweep. One of a single variant is in its runs' ``problem``.
    """
    variants = expand(file, shared)
    runs = [_run(file, variant, seed, check) for variant in variants for seed in file.spec.seeds]
    known = {*(v.named for v in variants), *(v.name for v in variants), *(run.name for run in runs)}
    if unknown := [name for name in file.spec.commands if name not in known]:
        raise UserError(f"{file.where('commands', unknown[0])}: commands names {unknown[0]}, which is no variant "
                        f"and no run of this sweep; they are {', '.join(v.name for v in variants)}")  # fmt: skip
    reference(file, variants)
    if all(run.problem for run in runs):
        raise UserError(f"no run of {file.path} can be started: {runs[0].problem}")
    return runs


def reference(file: SweepFile, variants: Sequence[Variant]) -> str:
    """Name of the variant that the others are compared with. Raises UserError for one that does not exist."""
    names = [variant.name for variant in variants]
    wanted = file.spec.reference or names[0]
    if wanted not in names:
        raise UserError(f"{file.where('reference')}: reference is {wanted}; allowed: {', '.join(names)}")
    return wanted


def expand(file: SweepFile, shared: Mapping[str, Any]) -> list[Variant]:
    """Named variants times the grid, in the order of the file; the last axis turns fastest."""
    spec = file.spec
    base = read_file(spec.base)
    common = _settings(file, spec.common, "common")
    beneath = {key: Given(value, "the sweep") for key, value in shared.items()}
    for where, keys in (("common", common), ("axes", spec.axes)):
        for key in keys:
            _refuse_reserved(file, key, where)
    if wrong := [key for key in spec.axes if key not in config_schema_keys()]:
        raise UserError(f"{file.where('axes', wrong[0])}: axes: {explain_unknown(wrong[0])}")
    refuse_unknown(common)
    if both := spec.axes.keys() & common.keys():
        raise UserError(f"{file.where('axes', min(both))}: {min(both)} is in axes and in common: keep one")
    grid = list(_grid(file))
    variants: list[Variant] = []
    for named, given in (spec.variants or {"": None}).items():
        changed, own, start, problem = _named(file, named, given, base)
        told = {key: value.value for key, value in changed.items() if key not in common}
        for labels, values in grid:
            name = "-".join([*([named] if named else []), *labels]) or "base"
            on_axes = {key: Given(value, file.where("axes", key)) for key, value in values.items()}
            settings = {**start, **beneath, **common, **own, **on_axes}
            variants.append(Variant(name, named or name, told | values, settings, problem))
    _refuse_twice(file, variants)
    return variants


def _named(file: SweepFile, name: str, given: Any, base: Settings) -> tuple[Settings, Settings, Settings, str | None]:
    """(how it differs from base, what it sets above ``common``, what it starts from, why it cannot be read).

    A file takes the place of base, so that ``common`` changes it too.
    """
    if isinstance(given, Path):
        try:
            start = read_file(given)
        except UserError as error:
            return {}, {}, base, str(error)
        ours = {key: value for key, value in start.items() if key not in RESERVED}
        kept = base.keys() - RESERVED.keys()
        differs = {k: v for k, v in ours.items() if k not in base or base[k].value != v.value}
        removed = {k: Given(_default(k), str(given)) for k in sorted(kept - ours.keys()) if _default(k) is not ...}
        return differs | removed, {}, start, None
    own = _settings(file, given or {}, "variants", name)
    for key in own:
        _refuse_reserved(file, key, "variants", name)
        if key in file.spec.axes:
            raise UserError(f"{file.where('variants', name)}: variant {name} sets {key}, which is in axes: keep one")
    return own, own, base, None


def _default(key: str) -> Any:
    info = config_schema_keys()[key]
    return ... if info.is_required() else info.get_default(call_default_factory=True)


def _settings(file: SweepFile, given: Mapping[str, Any], *at: str) -> Settings:
    """Dotted keys of a mapping whose keys may be nested or dotted."""

    def walk(values: Mapping[str, Any], prefix: str, keys: tuple[str, ...]) -> Iterator[tuple[str, Given]]:
        for key, value in values.items():
            if isinstance(value, dict) and prefix + key not in config_schema_keys():
                yield from walk(value, f"{prefix}{key}.", (*keys, key))
            else:
                yield prefix + key, Given(value, file.where(*keys, key))

    found: Settings = {}
    for key, value in walk(given, "", at):
        if key in found:
            raise UserError(f"{value.where}: {key} is given twice, first at {found[key].where}: keep one")
        found[key] = value
    return found


def _refuse_reserved(file: SweepFile, key: str, *at: str) -> None:
    if key in RESERVED:
        raise UserError(f"{file.where(*at, key)}: {'.'.join(at)} cannot set {key}: {RESERVED[key]}")


def _refuse_twice(file: SweepFile, variants: Sequence[Variant]) -> None:
    # Folders are told apart also on file systems that do not tell A from a.
    counts = Counter(variant.name.lower() for variant in variants)
    if twice := [variant.name for variant in variants if counts[variant.name.lower()] > 1]:
        raise UserError(f"{file.path}: two variants would be called {twice[0]}: rename one of them in variants")


def _grid(file: SweepFile) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """(labels, values) of each point; without axes the one point where nothing is set."""
    axes = file.spec.axes
    short = _short_names(list(axes))
    labelled = [[(f"{short[key]}_{label}", key, value) for label, value in zip(_labels(values), values, strict=True)]
                for key, values in axes.items()]  # fmt: skip
    for point in itertools.product(*labelled):
        yield [label for label, _, _ in point], {key: value for _, key, value in point}


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, or as many parts as tell it from the others: ``lr``, ``actor.adam.lr``."""
    found: dict[str, str] = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            ending = ".".join(parts[-count:])
            if not any(other != key and f".{other}".endswith("." + ending) for other in keys):
                break
        found[key] = ending
    return found


def _labels(values: Sequence[Any]) -> list[str]:
    """A readable name for each value, each once; a value that is there twice is numbered."""
    found: list[str] = []
    for value in values:
        label = _label(value)
        same = sum(other == label or other.startswith(f"{label}~") for other in found)
        found.append(f"{label}~{same + 1}" if same else label)
    return [label.replace("~", "_") for label in found]


def _label(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        text = json.dumps(value)
    elif isinstance(value, float):
        text = f"{value:g}"
    elif isinstance(value, (list, tuple)):
        text = "_".join(map(_label, value))
    else:
        text = str(value).rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:40] or "empty"


def _run(file: SweepFile, variant: Variant, seed: int, check: Callable[[RunConfig], None]) -> PlannedRun:
    spec, name = file.spec, f"{variant.name}-seed{seed}"
    command = spec.command
    for key in (variant.named, variant.name, name):  # the nearest wins
        command = spec.commands.get(key, command)
    make = functools.partial(PlannedRun, name, variant, seed, command=command)
    if variant.problem is not None:
        return make(config=None, problem=variant.problem)
    ours = {"run.name": name, "run.dir": str(spec.folder), "train.seed": seed}
    settings = variant.settings | {key: Given(value, "the sweep") for key, value in ours.items()}
    try:
        refuse_unknown(settings)
        config = config_from(settings)
        check(config)
    except UserError as error:
        return make(config=None, problem=str(error))
    return make(config=config, problem=None)
