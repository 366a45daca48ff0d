"""Loading and writing a configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from openrlhf_medical.config import yaml_dialect
from openrlhf_medical.config.run_config import RunConfig
from openrlhf_medical.config.schema import config_schema_keys, sections
from openrlhf_medical.config.sources import Settings, read_file, read_overrides
from openrlhf_medical.errors import UserError

_PYDANTIC_ALLOWED = "Input should be "
_PYDANTIC_OWN = "Value error, "
_ALLOWED = {
    "missing": "more values",
    "too_long": "fewer values",
    "string_pattern_mismatch": "a name of another form",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "string_type": "text (put it in quotes)",
    "none_required": "null",
}
"""pydantic's kinds of error, for those whose own words speak of Python."""


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a file (or of the defaults), changed by the words of a command line.

    Raises:
        UserError: naming every mistake, where it stands, what is allowed.
    """
    return config_from((read_file(path) if path is not None else {}) | read_overrides(overrides))


def config_from(settings: Settings) -> RunConfig:
    """The configuration of settings that were read already. Raises UserError as ``load_config`` does."""
    nested: dict[str, Any] = {}
    for key, given in settings.items():
        *groups, name = key.split(".")
        group = nested
        for part in groups:
            group = group.setdefault(part, {})
        group[name] = given.value
    for section in ("run", "actor"):  # so that a missing key is named, not only its section
        nested.setdefault(section, {})
    try:
        # As strict JSON: 1 is no boolean and true is no number, but lists become tuples.
        return RunConfig.model_validate_json(json.dumps(nested, default=str), strict=True)
    except ValidationError as error:
        raise UserError(_explain(error, settings)) from None


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that ``load_config`` reads back to an equal one."""
    return yaml_dialect.dump(config.model_dump(mode="json"))


def _explain(error: ValidationError, settings: Settings) -> str:
    """One sentence per mistake. A value that fits no member of a union fails once for each: joined by "or"."""
    plain: list[str] = []
    allowed: dict[str, list[str]] = {}
    for detail in error.errors(include_url=False):
        key = _key_of(detail["loc"])
        if key not in config_schema_keys():
            plain.append(detail["msg"].removeprefix(_PYDANTIC_OWN))
        elif key not in settings:
            plain.append(f"{key} is required: {config_schema_keys()[key].description}")
        else:
            sentences = allowed.setdefault(key, [])
            message = _ALLOWED.get(detail["type"]) or detail["msg"].removeprefix(_PYDANTIC_OWN)
            message = message.removeprefix(_PYDANTIC_ALLOWED)
            sentences += [message] if message not in sentences else []
    return "; ".join([*(_refusal(key, messages, settings) for key, messages in allowed.items()), *plain])


def _refusal(key: str, messages: list[str], settings: Settings) -> str:
    given = settings[key]
    found = f"{given.where}: {key} is {json.dumps(given.value, ensure_ascii=False, default=str)}"
    return f"{found}; allowed: {' or '.join(messages)} ({config_schema_keys()[key].description})"


def _key_of(location: tuple[int | str, ...]) -> str:
    """The longest beginning of pydantic's location that is a key or section: the rest are list positions
    and names of union members."""
    for end in range(len(location), 0, -1):
        key = ".".join(str(part) for part in location[:end])
        if key in config_schema_keys() or key in sections():
            return key
    return ""
