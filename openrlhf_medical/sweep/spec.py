"""sweep.yaml: what it may say, and one clear sentence for each mistake in it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from openrlhf_medical.config import yaml_dialect
from openrlhf_medical.config.base import Count, Positive, Section
from openrlhf_medical.errors import UserError

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, Field(pattern=NAME)]
Words = tuple[str, ...]
Changes = dict[str, Any]
"""Keys of a run configuration, dotted or nested, and their values."""

METRICS = (
    *("assessor/balanced_accuracy", "assessor/accuracy", "assessor/false_positive_rate"),
    *("attacker/success_rate", "format/assessor/violation_rate", "format/attacker/violation_rate"),
)

_WHAT = {
    "missing": "is required",
    "string_pattern_mismatch": "a value of another form",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text (put it in quotes)",
    "dict_type": "a mapping of keys to values",
    "tuple_type": "a list",
    "bool_type": "true or false",
    "none_required": "nothing",
    "model_type": "a mapping of keys to values",
    "path_type": "a file",
}


class Prepare(Section):
    """The options of ``openrlhf-medical prepare-data``; the files go to the sweep's own folder, once."""

    source: str = Field(default="synthetic", description="synthetic, a MEDEC CSV, or a folder of them")
    num_samples: Count | None = Field(default=None, description="seeds of both files together")
    train_ratio: float = Field(default=0.9, gt=0, lt=1, description="share of seeds for training")
    seed: int = Field(default=0, ge=0, description="the same seed writes the same bytes")
    families: Words = Field(default=(), description="parts of the embedded corpus; none: all")
    vignettes: Count | None = Field(default=None, description="vignettes of the embedded corpus for training")
    wording: str = Field(default="all", description="ways of saying things: all, first or second")


class SharedJudge(Section):
    """One judge for all runs: servers that are there, or one that the sweep starts and keeps running."""

    urls: Words = Field(default=(), description="judge servers; none: the sweep starts one on this machine")
    backend: str = Field(default="reference", description="of the judge that the sweep starts")
    options: Words = Field(default=(), description="further options of serve-judge, as words of a command line")
    start_timeout_s: Positive = Field(default=600.0, description="deadline for that judge to load")

    @model_validator(mode="after")
    def _one_of_both(self) -> SharedJudge:
        if self.urls and (self.options or self.backend != "reference"):
            raise ValueError("judge.urls names judges that are there; judge.backend and judge.options are for one that "
                             "the sweep starts: keep one of the two")  # fmt: skip
        return self


class SweepSpec(Section):
    """A sweep: variants times axes times seeds."""

    name: Name = Field(description="names the sweep's folder")
    dir: Path = Field(default=Path("runs"), description="folder of all sweeps: the runs go to dir/name")
    base: Path = Field(description="configuration file of a run; what a variant does not change comes from it")
    common: Changes = Field(default={}, description="keys that all runs change")
    axes: dict[str, tuple[Any, ...]] = Field(default={}, description="a grid: key of a run to the values that it takes")
    variants: dict[Name, Changes | Path | None] = Field(
        default={}, description="name to the keys that it changes, or to a configuration file instead of base"
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        min_length=1, description="train.seed of the runs of each variant"
    )
    reference: str | None = Field(default=None, description="variant to compare the others with; null: the first")
    concurrency: Count = Field(default=1, description="runs under way at the same time")
    prepare: Prepare | None = Field(default=None, description="one data set for all runs, prepared by the sweep")
    judge: SharedJudge | None = Field(default=None, description="one judge for all runs; null: as the runs' files say")
    metrics: Words = Field(default=METRICS, min_length=1, description="figures of the summary")
    command: Words | None = Field(
        default=None,
        min_length=1,
        description="what a run calls instead of train; {config} {name} {folder} {seed} {python} are filled in",
    )
    commands: dict[str, Words | None] = Field(
        default={}, description="the same for one variant or one run, by its name; null: train"
    )
    run_timeout_s: Positive | None = Field(default=None, description="a run that takes longer is stopped, and failed")
    stop_grace_s: Positive = Field(default=120.0, description="time for a run to save its state when it is stopped")
    poll_s: Positive | None = Field(
        default=None, description="seconds between two looks at the runs; null: 0.5 here, 5 with Ray and Slurm"
    )
    ray_address: str = Field(
        default="http://127.0.0.1:8265", pattern=r"^https?://", description="dashboard of the Ray cluster, for ray"
    )
    slurm_script: Path = Field(default=Path("launch/slurm.sbatch"), description="what --submit slurm gives to sbatch")
    sbatch_options: Words = Field(default=(), description="options of sbatch, such as --partition=gpu, --nodes=2")

    @property
    def folder(self) -> Path:
        """``<dir>/<name>``."""
        return self.dir / self.name

    @field_validator("seeds", "metrics")
    @classmethod
    def _once(cls, given: tuple[Any, ...]) -> tuple[Any, ...]:
        if twice := sorted({value for value in given if given.count(value) > 1}):
            raise ValueError(f"each of them once, but {twice[0]} is there twice")
        return given

    @field_validator("axes")
    @classmethod
    def _values(cls, axes: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        if empty := [key for key, values in axes.items() if not values]:
            raise ValueError(f"a list of values for each key, but {empty[0]} has none")
        return axes


class SweepFile:
    """A sweep.yaml that was read: ``spec``, and where each of its keys stands."""

    def __init__(self, path: Path, spec: SweepSpec, lines: dict[tuple[str, ...], int]) -> None:
        self.path, self.spec, self._lines = path, spec, lines

    def where(self, *keys: str) -> str:
        """``file:line`` of a key, or of the nearest group around it that has one."""
        return _where(self.path, self._lines, keys)


def read_sweep(path: Path) -> SweepFile:
    """Raises UserError: no such file, not YAML, keys that do not exist, values that are not allowed."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    loader = yaml_dialect.Loader(text)
    lines: dict[tuple[str, ...], int] = {}
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{path}: a sweep is a mapping of keys to values")
        data = _plain(loader, root, path, lines, ())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    finally:
        loader.dispose()
    try:
        spec = SweepSpec.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise UserError("; ".join(dict.fromkeys(_explain(error, path, lines, data)))) from None
    return SweepFile(path, spec, lines)


def _plain(loader: Any, node: Any, path: Path, lines: dict[tuple[str, ...], int], at: tuple[str, ...]) -> Any:
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node, deep=True)
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in found:
            raise UserError(f"{path}:{line}: {'.'.join((*at, key))} is given twice, first at line {lines[(*at, key)]}: "
                            "keep one")  # fmt: skip
        lines[(*at, key)] = line
        found[key] = _plain(loader, value_node, path, lines, (*at, key))
    return found


def _where(path: Path, lines: dict[tuple[str, ...], int], keys: tuple[str, ...]) -> str:
    for end in range(len(keys), 0, -1):
        if keys[:end] in lines:
            return f"{path}:{lines[keys[:end]]}"
    return str(path)


def _explain(error: ValidationError, path: Path, lines: dict[tuple[str, ...], int], data: Any) -> Iterator[str]:
    for detail in error.errors(include_url=False):
        keys = _keys_of(detail["loc"], data)
        where, key = _where(path, lines, keys), ".".join(keys)
        if detail["type"] == "extra_forbidden":
            yield f"{where}: unknown key {key}{_nearest(keys)}"
        elif detail["type"] == "missing":
            missing = ".".join(str(part) for part in detail["loc"])
            yield f"{path}: {missing} is required: {SweepSpec.model_fields[missing].description}"
        else:
            given = json.dumps(_value_at(data, keys), ensure_ascii=False, default=str)
            allowed = _WHAT.get(detail["type"]) or detail["msg"].removeprefix("Value error, ")
            about = SweepSpec.model_fields[keys[0]].description if keys else ""
            yield f"{where}: {key} is {given}; allowed: {allowed.removeprefix('Input should be ')} ({about})"


def _keys_of(location: tuple[int | str, ...], data: Any) -> tuple[str, ...]:
    """As much of pydantic's location as stands in the file: the rest are list positions and members of unions."""
    keys: list[str] = []
    for part in location:
        if not isinstance(data, dict) or part not in data:
            break
        keys.append(str(part))
        data = data[part]
    return tuple(keys)


def _value_at(data: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        data = data[key]
    return data


def _nearest(keys: tuple[str, ...]) -> str:
    section: Any = {"prepare": Prepare, "judge": SharedJudge}.get(keys[0]) if len(keys) > 1 else SweepSpec
    known = list((section or SweepSpec).model_fields)
    found = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
    return f"; nearest: {'.'.join([*keys[:-1], found[0]])}" if found else f"; keys are {', '.join(known)}"
