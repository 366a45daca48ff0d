"""YAML as people mean it: ``1e-6`` is a number, ``off`` a word, and a key given twice is a mistake.

PyYAML follows YAML 1.1, where ``1e-6`` is text and ``off`` (a value of an upstream option) is false.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_RESOLVERS: list[tuple[str, str, str]] = [
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", "~nN"),
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("tag:yaml.org,2002:int", r"^[-+]?[0-9]+$", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
]


class Loader(yaml.SafeLoader):
    """Reads YAML 1.2's null, bool, int and float; everything else is text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own attribute)


class Dumper(yaml.SafeDumper):
    """Writes what this dialect and PyYAML's own both read as the same thing; lists on one line."""

    yaml_implicit_resolvers: dict[str, Any] = {k: list(v) for k, v in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012


for _tag, _pattern, _first in _RESOLVERS:
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(_tag, re.compile(_pattern), [*_first, ""] if "null" in _tag else list(_first))


def _decimal(loader: Loader, node: yaml.ScalarNode) -> int:
    """PyYAML reads 010 as octal 8."""
    return int(loader.construct_scalar(node))


Loader.add_constructor("tag:yaml.org,2002:int", _decimal)
Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)


def parse_scalar(text: str) -> Any:
    """The value of one word of a command line; text that is no YAML is text."""
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError:
        return text


def dump(data: Any) -> str:
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
