"""The dotted keys that exist, and what to say about one that does not."""

from __future__ import annotations

import difflib
import functools
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from openrlhf_medical.config.flat_keys import FLAT_KEYS
from openrlhf_medical.config.run_config import RunConfig
from openrlhf_medical.config.upstream import NOT_OFFERED


@functools.cache
def config_schema_keys() -> dict[str, FieldInfo]:
    """Every key that can be set, in order, with pydantic's description of it (default, description)."""
    return dict(_leaves(RunConfig, ""))


@functools.cache
def sections() -> frozenset[str]:
    """Dotted names of all groups of keys."""
    return frozenset(key[:i] for key in config_schema_keys() for i, letter in enumerate(key) if letter == ".")


def _leaves(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _leaves(info.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, info


def alternatives(annotation: Any) -> Iterator[Any]:
    """The plain types that an annotation allows: ``float | None`` gives float and NoneType."""
    if get_origin(annotation) is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from alternatives(member)
    else:
        yield annotation


def explain_unknown(key: str) -> str:
    """One clause about a key that is not in the schema: its new name, why it is missing, or the nearest."""
    first, last = key.split(".")[0], key.split(".")[-1]
    if key in NOT_OFFERED:
        return f"{key} is an OpenRLHF option that is not offered here: {NOT_OFFERED[key].why}"
    if first in FLAT_KEYS:
        new = FLAT_KEYS.get(last, FLAT_KEYS[first])
        instead = new.replace("no key:", "remove it:") if new.startswith("no key:") else f"write {new}"
        return f"{key} is a flat key of the seed repository; {instead}"
    return f"unknown key {key}{_nearest(key)}"


def _nearest(key: str) -> str:
    key = key.replace("-", "_")
    keys = config_schema_keys()
    if key in sections():
        within = [known for known in keys if known.startswith(key + ".")]
        return f"; it is a section with {', '.join(within[:6])}{' …' if len(within) > 6 else ''}"
    by_name = [known for known in keys if known.split(".")[-1] == key.split(".")[-1]]
    found = difflib.get_close_matches(key, keys, n=1, cutoff=0.75) or by_name
    found = found or difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    if found:
        return f"; nearest: {', '.join(found[:3])}"
    return f"; sections are {', '.join(RunConfig.model_fields)}"
