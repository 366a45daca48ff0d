"""A run's configuration as flat keys, beside the program's defaults and beside other runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticUndefined, to_jsonable_python

from openrlhf_medical.config.schema import config_schema_keys


@dataclass(frozen=True, slots=True)
class Setting:
    """One key. ``default`` is None for a key without one, or one that this version does not know."""

    key: str
    value: str
    default: str | None
    changed: bool
    description: str


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"run": {"steps": 4}}`` as ``{"run.steps": 4}``."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def settings_of(config: Mapping[str, Any]) -> list[Setting]:
    """Every key of a resolved configuration, with what the program's default is."""
    keys = config_schema_keys()
    rows = []
    for key, value in config.items():
        info, default = keys.get(key), None
        if info is None:
            description = "not known to this version"
        else:
            description = info.description or ""
            given = info.get_default(call_default_factory=True, validated_data={})
            if given is not PydanticUndefined:
                default = shown(to_jsonable_python(given, fallback=str))
        rows.append(Setting(key, shown(value), default, default is None or shown(value) != default, description))
    return rows


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Keys that are not equal in all runs, in the order of the first; ``run.name`` differs always."""
    keys = dict.fromkeys(key for config in configs for key in config if key != "run.name")
    rows = [(key, [shown(config[key]) if key in config else "-" for config in configs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def shown(value: Any) -> str:
    if isinstance(value, float) and value == int(value) and abs(value) < 1e15:
        value = int(value)  # 1.0 and 1 are the same setting
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
