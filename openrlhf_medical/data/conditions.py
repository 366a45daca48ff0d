"""The hand-written conditions of the embedded corpus. Synthetic; not for care. See ``conditions/README.md``."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import yaml

from openrlhf_medical.errors import UserError

SLOTS = {
    "diagnosis": "diagnosis",
    "organism": "causalOrganism",
    "drug": "pharmacotherapy",
    "measure": "treatment",
    "next_step": "management",
}
"""What of a condition can be wrong in a note: our name, MEDEC's kind of error."""

MIN_PHRASINGS = 3
"""Of presentation and findings; the last is kept for the split ``unseen_renderings``."""


@dataclass(frozen=True, slots=True)
class Condition:
    name: str
    family: str
    sex: str
    age: tuple[int, int]
    presentation: tuple[str, ...]
    findings: tuple[str, ...]
    values: dict[str, str]
    """slot → its right value; ``organism`` only where there is one."""
    evidence: str = ""
    generic: tuple[str, ...] = ()
    also_right: dict[str, tuple[str, ...]] = field(default_factory=dict)
    held_out: bool = False

    def can_be_wrong(self, slot: str) -> bool:
        return slot in self.values and slot not in self.generic


@cache
def load_conditions() -> tuple[Condition, ...]:
    """All conditions, in the order of files and within them. Raises UserError naming file and condition."""
    folder = importlib.resources.files(__package__) / "conditions"
    found: list[Condition] = []
    for file in sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for row in content["conditions"]:
            found.append(
                _condition(row, content["family"], f"{file.name}, {row.get('name', 'a condition without name')}")
            )
    names = {condition.name for condition in found}
    if len(names) < len(found):
        raise UserError(f"{folder}: {sorted(c.name for c in found if [d.name for d in found].count(c.name) > 1)} twice")
    for condition in found:
        for others in condition.also_right.values():
            if not set(others) <= names:
                raise UserError(f"{condition.name}: also_right names {sorted(set(others) - names)}, which is nowhere")
    return tuple(found)


def _condition(row: dict[str, Any], family: str, where: str) -> Condition:
    required = {"name", "sex", "age", "presentation", "findings", "diagnosis", "drug", "measure", "next_step"}
    allowed = required | {"organism", "evidence", "generic", "also_right", "held_out"}
    missing, unknown = required - row.keys(), row.keys() - allowed
    if missing or unknown:
        raise UserError(f"{where}: missing {sorted(missing)}, unknown {sorted(unknown)}; allowed: {sorted(allowed)}")
    if ("organism" in row) != ("evidence" in row):
        raise UserError(f"{where}: organism and evidence go together")
    if row["sex"] not in ("any", "female", "male"):
        raise UserError(f"{where}: sex is {row['sex']!r}; allowed: any, female, male")
    named = {*row.get("generic", ()), *row.get("also_right", {})}
    if not named <= {slot for slot in SLOTS if slot in row}:
        raise UserError(f"{where}: generic and also_right name {sorted(named - row.keys())}; allowed: {list(SLOTS)}")
    for key in ("presentation", "findings"):
        if len(row[key]) < MIN_PHRASINGS:
            raise UserError(f"{where}: {key} has {len(row[key])} phrasings; at least {MIN_PHRASINGS} are needed")
    return Condition(
        name=row["name"],
        family=family,
        sex=row["sex"],
        age=(row["age"][0], row["age"][1]),
        presentation=tuple(row["presentation"]),
        findings=tuple(row["findings"]),
        values={slot: row[slot] for slot in SLOTS if slot in row},
        evidence=row.get("evidence", ""),
        generic=tuple(row.get("generic", ())),
        also_right={slot: tuple(others) for slot, others in row.get("also_right", {}).items()},
        held_out=row.get("held_out", False),
    )


def wrong_values(condition: Condition, slot: str) -> list[str]:
    """Values that would be wrong in this condition's note, each right for another condition of its
    family that is not held out; sorted. Empty where the slot cannot be made wrong."""
    if not condition.can_be_wrong(slot):
        return []
    return sorted(
        {
            other.values[slot]
            for other in load_conditions()
            if other.family == condition.family
            and not other.held_out
            and other.can_be_wrong(slot)
            and other.name not in condition.also_right.get(slot, ())
            and condition.name not in other.also_right.get(slot, ())
            and other.values[slot] != condition.values[slot]
        }
    )
