"""Measured amounts: numbers with units, brought to one form so that equal amounts compare equal.

Metric prefixes convert exactly (500 mg is 0.5 g). Degrees Fahrenheit, pounds, ounces, feet and inches
stay in their own unit, because notes round them: they are compared by rounding (``same_amount``).
"""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache

# unit -> (base unit, factor). Words reach this table in lower case and in the singular.
_METRIC: dict[str, tuple[str, str]] = {
    "kg": ("g", "1000"),
    "g": ("g", "1"),
    "mg": ("g", "0.001"),
    "mcg": ("g", "0.000001"),
    "ng": ("g", "0.000000001"),
    "pg": ("g", "0.000000000001"),
    "l": ("l", "1"),
    "dl": ("l", "0.1"),
    "ml": ("l", "0.001"),
    "mcl": ("l", "0.000001"),
    "fl": ("l", "0.000000000000001"),
    "km": ("m", "1000"),
    "m": ("m", "1"),
    "cm": ("m", "0.01"),
    "mm": ("m", "0.001"),
    "mcm": ("m", "0.000001"),
    "week": ("s", "604800"),
    "day": ("s", "86400"),
    "h": ("s", "3600"),
    "min": ("s", "60"),
    "sec": ("s", "1"),
    "year": ("month", "12"),
    "month": ("month", "1"),
    "mol": ("mol", "1"),
    "mmol": ("mol", "0.001"),
    "mcmol": ("mol", "0.000001"),
    "eq": ("eq", "1"),
    "meq": ("eq", "0.001"),
    "iu": ("iu", "1"),
    "mmhg": ("mmhg", "1"),
    "mm3": ("mm3", "1"),
    "m2": ("m2", "1"),
    "degc": ("degc", "1"),
    "percent": ("percent", "1"),
    "hpf": ("hpf", "1"),
    "mosm": ("mosm", "1"),
}
# Customary units: (metric base unit, factor to it, offset subtracted first).
_CUSTOMARY: dict[str, tuple[str, str, str]] = {
    "degf": ("degc", "0.55555555555555555556", "32"),
    "lb": ("g", "453.59237", "0"),
    "oz": ("g", "28.349523125", "0"),
    "inch": ("m", "0.0254", "0"),
    "mile": ("m", "1609.344", "0"),
}
_ALIASES: dict[str, str] = {
    "kg": "kilogram kilo kilogramme",
    "g": "gram gm gramme",
    "mg": "milligram",
    "mcg": "microgram ug μg µg",
    "ng": "nanogram",
    "l": "liter litre",
    "dl": "deciliter decilitre",
    "ml": "milliliter millilitre cc",
    "mcl": "microliter μl µl ul",
    "km": "kilometer",
    "m": "meter metre",
    "cm": "centimeter centimetre",
    "mm": "millimeter millimetre",
    "mcm": "micrometer micron μm µm um",
    "week": "wk",
    "day": "d",
    "h": "hour hr",
    "min": "minute",
    "sec": "s second",
    "year": "yr",
    "month": "mo mth",
    "mmol": "millimole",
    "mcmol": "micromole μmol µmol umol",
    "meq": "milliequivalent",
    "iu": "u unit",
    "degc": "c celsius",
    "degf": "f fahrenheit",
    "lb": "pound",
    "oz": "ounce",
    "inch": "in",
    "mosm": "milliosmole",
}
_NAME: dict[str, str] = {alias: unit for unit, names in _ALIASES.items() for alias in names.split()}
_NAME.update({unit: unit for unit in (*_METRIC, *_CUSTOMARY)})
# Lone letters and short words that are units only right after a number ("37 C", "5 g").
_FEET = ("ft", "foot", "feet")


def is_number(token: str) -> bool:
    """A plain number: not ``7th``, not an amount with its unit."""
    return token[0].isdigit() and token[-1].isdigit()


def is_amount(token: str) -> bool:
    """A number, with or without a unit: ``12``, ``q|0.5|g``."""
    return token[0].isdigit() or token.startswith("q|")


def plain_number(token: str) -> str:
    """``1,000`` and ``1000.0`` are both ``1000``; ``.5`` is ``0.5``."""
    if token.isdigit():
        return token.lstrip("0") or "0"
    token = token.replace(",", "")
    if "." in token:
        token = token.rstrip("0").rstrip(".")
        if token.startswith("."):
            token = "0" + token
    whole, _, fraction = token.partition(".")
    whole = whole.lstrip("0") or "0"
    return f"{whole}.{fraction}" if fraction else whole


def amount_token(value: Decimal, unit: str) -> str:
    """``q|0.5|g``"""
    text = format(value.normalize(), "f")
    return f"q|{text}|{unit}"


@lru_cache(maxsize=50_000)
def _metric_amount(number: str, unit: str, per: str | None) -> str | None:
    """The token of an amount in base units, or None where the units are not of the table."""
    name = _NAME.get(unit)
    if name is None:
        return None
    value = Decimal(number)
    if name in _CUSTOMARY:
        return None if per else amount_token(value, name)
    base, factor = _METRIC[name]
    value *= Decimal(factor)
    if per is not None:
        below = _NAME.get(per)
        if below is None or below in _CUSTOMARY:
            return None
        per_base, per_factor = _METRIC[below]
        value /= Decimal(per_factor)
        base = f"{base}/{per_base}"
    return amount_token(value, base)


def with_amounts(tokens: list[str]) -> list[str]:
    """Joins each number with the unit after it; a repeat in another unit, ``38 C (100.4 F)``, goes."""
    out: list[str] = []
    done = 0
    for i in [i for i, token in enumerate(tokens) if token[0].isdigit() and token[-1].isdigit()]:  # is_number, inlined
        if i < done:  # part of the amount before
            continue
        out += tokens[done:i]
        amount, used = _read_amount(tokens, i)
        done = i + used
        if amount.startswith("q|") and out and out[-1].startswith("q|") and _is_repeat(out[-1], amount):
            # The metric writing is kept: it is the more precise one.
            if out[-1].rsplit("|", 1)[1] in _CUSTOMARY:
                out[-1] = amount
            continue
        out.append(amount)
    out += tokens[done:]
    return out


def _read_amount(tokens: list[str], i: int) -> tuple[str, int]:
    """The amount that starts at token i, and how many tokens it takes."""
    number, n = tokens[i], len(tokens)
    if i + 1 >= n:
        return number, 1
    unit = tokens[i + 1]
    if unit in _FEET:
        inches = Decimal(number) * 12
        if i + 3 < n and is_number(tokens[i + 2]) and tokens[i + 3] in ("in", "inch"):
            return amount_token(inches + Decimal(tokens[i + 2]), "inch"), 4
        return amount_token(inches, "inch"), 2
    if unit in ("lb", "pound") and i + 3 < n and is_number(tokens[i + 2]) and tokens[i + 3] in ("oz", "ounce"):
        return amount_token(Decimal(number) * 16 + Decimal(tokens[i + 2]), "oz"), 4
    if unit == "in":  # far more often the preposition; inches come marked as "inch"
        return number, 1
    if unit == "/" and i + 2 < n and tokens[i + 2] in ("min", "minute"):
        return f"q|{number}|/min", 3
    if unit == "mm" and i + 2 < n and tokens[i + 2] == "hg":
        return f"q|{number}|mmhg", 3
    if i + 3 < n and tokens[i + 2] == "/":
        ratio = _metric_amount(number, unit, tokens[i + 3])
        if ratio is not None:
            return ratio, 4
    if unit == "/" and i + 2 < n and _NAME.get(tokens[i + 2]) in ("mm3", "mcl"):
        return f"q|{number}|/mcl", 3  # 1 mm3 is 1 microlitre
    return (_metric_amount(number, unit, None) or number), (2 if unit in _NAME else 1)


def _is_repeat(first: str, second: str) -> bool:
    unit, other = first.rsplit("|", 1)[1], second.rsplit("|", 1)[1]
    return (unit in _CUSTOMARY) != (other in _CUSTOMARY) and same_amount(first, second)


def _places(text: str) -> int:
    return len(text.partition(".")[2])


def same_amount(first: str, second: str) -> bool:
    """Whether two amount tokens are one amount, one of them perhaps rounded in a customary unit."""
    if first == second:
        return True
    if not (first.startswith("q|") and second.startswith("q|")):
        return False
    (_, value, unit), (_, other_value, other_unit) = first.split("|"), second.split("|")
    if unit in _CUSTOMARY and other_unit not in _CUSTOMARY:
        value, unit, other_value, other_unit = other_value, other_unit, value, unit
    if {unit, other_unit} == {"mol/l", "~mol/l"}:  # one was rounded when it was written: see amounts
        return abs(Decimal(value) - Decimal(other_value)) <= Decimal("0.01") * Decimal(value)
    if unit in _CUSTOMARY or other_unit not in _CUSTOMARY:
        return False
    base, factor, offset = _CUSTOMARY[other_unit]
    if base != unit:
        return False
    metric, customary = Decimal(value), Decimal(other_value)
    converted = (customary - Decimal(offset)) * Decimal(factor)
    if unit == "degc":
        return abs(converted - metric) <= (Decimal("0.06") if _places(other_value) else Decimal("0.3"))
    # A length or a mass, rounded on either side. Four per cent is half an inch in a foot.
    if metric == 0 or abs(converted - metric) / metric > Decimal("0.04"):
        return False
    back = metric / Decimal(factor)
    return abs(back - customary) <= Decimal("0.51") or abs(converted - metric) / metric <= Decimal("0.01")


def dimension(token: str) -> str:
    """The base unit of an amount, ``""`` for a bare number; customary units count as their metric one."""
    if not token.startswith("q|"):
        return ""
    unit = token.rsplit("|", 1)[1].lstrip("~")
    return _CUSTOMARY[unit][0] if unit in _CUSTOMARY else unit
