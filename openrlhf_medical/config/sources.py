"""Where settings come from: a YAML or JSON file, and the command line. Both become flat dotted keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_origin

import yaml
from pydantic.fields import FieldInfo

from openrlhf_medical.config import yaml_dialect
from openrlhf_medical.config.schema import alternatives, config_schema_keys, explain_unknown, sections
from openrlhf_medical.errors import UserError


class Given(NamedTuple):
    """A value somebody wrote, and where."""

    value: Any
    where: str


Settings = dict[str, Given]
"""Dotted key to what was given for it."""


def read_file(path: Path) -> Settings:
    """The settings of a file; keys may be nested or dotted.

    Raises:
        UserError: no such file, not YAML or JSON, a key twice, a key that does not exist.
    """
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise UserError(f"{path}: a configuration is a .yaml, .yml or .json file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    pairs = _json_pairs(text, str(path)) if path.suffix == ".json" else _yaml_pairs(text, str(path))
    settings: Settings = {}
    for key, given in pairs:
        if key in settings:
            raise UserError(f"{given.where}: {key} is given twice, first at {settings[key].where}: keep one")
        settings[key] = given
    refuse_unknown(settings)
    return settings


def _yaml_pairs(text: str, name: str) -> Iterator[tuple[str, Given]]:
    loader = yaml_dialect.Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{name}: a configuration is a mapping of keys to values")
        yield from _walk_yaml(loader, root, name, "")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{name}:{line}: not valid YAML: {error.problem}") from None
    finally:
        loader.dispose()


def _walk_yaml(loader: Any, node: yaml.MappingNode, name: str, prefix: str) -> Iterator[tuple[str, Given]]:
    for key_node, value_node in node.value:
        key, where = f"{prefix}{key_node.value}", f"{name}:{key_node.start_mark.line + 1}"
        if isinstance(value_node, yaml.MappingNode) and key not in config_schema_keys():
            yield from _walk_yaml(loader, value_node, name, key + ".")
            continue
        value = loader.construct_object(value_node, deep=True)
        if not (key in sections() and value is None):  # a section whose lines are all commented out
            yield key, Given(value, where)


def _json_pairs(text: str, name: str) -> Iterator[tuple[str, Given]]:
    try:
        root = json.loads(text, object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise UserError(f"{name}:{error.lineno}: not valid JSON: {error.msg}") from None
    if not isinstance(root, _Pairs):
        raise UserError(f"{name}: a configuration is a mapping of keys to values")
    yield from _walk_json(root, name, "")


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its duplicates."""


def _walk_json(pairs: _Pairs, name: str, prefix: str) -> Iterator[tuple[str, Given]]:
    for key, value in pairs:
        if isinstance(value, _Pairs):
            yield from _walk_json(value, name, f"{prefix}{key}.")
        else:
            yield prefix + key, Given(value, name)


def read_overrides(words: Sequence[str]) -> Settings:
    """``--section.key value``, ``--section.key=value``, ``--section.key`` (true), or several values for a list.

    Raises:
        UserError: a word that is no option, a key that does not exist, a missing or superfluous value.
    """
    settings: Settings = {}
    for option, values in _split(words):
        info = config_schema_keys().get(option)
        if info is None:
            raise UserError(f"command line: {explain_unknown(option)}")
        settings[option] = Given(_value(option, info, values), "command line")
    return settings


def _split(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    option: str | None = None
    values: list[str] = []
    for word in words:
        if not word.startswith("--"):
            if option is None:
                raise UserError(f"command line: {word!r} belongs to no option; write --section.key value")
            values.append(word)
            continue
        if option is not None:
            yield option, values
        option, equals, value = word[2:].partition("=")
        values = [value] if equals else []
    if option is not None:
        yield option, values


def _value(option: str, info: FieldInfo, words: list[str]) -> Any:
    kinds = list(alternatives(info.annotation))
    is_list = any(get_origin(kind) is tuple for kind in kinds)
    if not words and bool in kinds:
        return True
    if not words:
        raise UserError(f"command line: --{option} needs a value ({info.description})")
    if is_list:
        parsed = [yaml_dialect.parse_scalar(word) for word in words]
        nothing_or_list = len(parsed) == 1 and (parsed[0] is None or isinstance(parsed[0], list))
        return parsed[0] if nothing_or_list else parsed
    if len(words) > 1:
        raise UserError(f"command line: --{option} takes one value, found {' '.join(words)}")
    if any(kind in (str, Path) for kind in kinds):  # a run may be named 007
        return None if words[0] == "null" and type(None) in kinds else words[0]
    return yaml_dialect.parse_scalar(words[0])


def refuse_unknown(settings: Settings) -> None:
    """Raises UserError that names every unknown key, and what to write instead."""
    unknown = {key: given.where for key, given in settings.items() if key not in config_schema_keys()}
    if unknown:
        raise UserError("; ".join(f"{where}: {explain_unknown(key)}" for key, where in unknown.items()))
