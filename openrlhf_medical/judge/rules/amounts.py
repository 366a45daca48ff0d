"""Amounts whose meaning hangs on the words beside them: ions, laboratory values, tablets, millions."""

from __future__ import annotations

from decimal import Decimal

from openrlhf_medical.judge.rules.units import amount_token, is_number

_NEAR = 5  # tokens back to the substance whose level or dose it is
_MONOVALENT = frozenset(["potassium", "sodium", "chloride", "bicarbonate", "hco3", "lithium"])
# Grams a mole (IUPAC atomic weights; urea nitrogen: its two nitrogen atoms).
_MOLAR_MASS = {
    "glucose": "180.16",
    "creatinine": "113.12",
    "cholesterol": "386.65",
    "ldl": "386.65",
    "hdl": "386.65",
    "triglyceride": "885.4",
    "calcium": "40.08",
    "magnesium": "24.305",
    "phosphate": "30.974",
    "phosphorus": "30.974",
    "bilirubin": "584.66",
    "uric": "168.11",
    "nitrogen": "28.014",
    "lactate": "90.08",
    "iron": "55.845",
}
_MANY = {"thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_PIECES = ("tablet", "capsule", "pill")
_MOST_PIECES = 12


def in_full(tokens: list[str]) -> list[str]:
    """``2.4 million`` is ``2400000``."""
    if _MANY.keys().isdisjoint(tokens):
        return tokens
    out: list[str] = []
    for token in tokens:
        if token in _MANY and out and is_number(out[-1]):
            out[-1] = format((Decimal(out[-1]) * _MANY[token]).normalize(), "f")
        else:
            out.append(token)
    return out


def in_moles(tokens: list[str]) -> list[str]:
    """Levels in one unit: *potassium 4.9 mEq/L* is 4.9 mmol/L, *glucose 126 mg/dL* is 6.99 mmol/L.

    A level that was converted from grams says so by ``~`` before its unit: the other writing is rounded.
    """
    out = list(tokens)
    for i in [i for i, token in enumerate(tokens) if token.startswith("q|")]:
        token = tokens[i]
        near = tokens[max(0, i - _NEAR) : i]
        if "|eq" in token and _MONOVALENT.intersection((*near, *tokens[i + 1 : i + 3])):
            out[i] = token.replace("|eq", "|mol")
        elif token.endswith("|g/l"):
            mass = next((_MOLAR_MASS[word] for word in reversed(near) if word in _MOLAR_MASS), None)
            if mass is not None:
                moles = Decimal(token.split("|")[1]) / Decimal(mass)
                out[i] = amount_token(Decimal(f"{moles:.6g}"), "~mol/l")
    return out


def in_pieces(tokens: list[str]) -> list[str]:
    """*Two 500 mg tablets* and *two tablets of 500 mg* are 1 g."""
    if not any(pieces in tokens for pieces in _PIECES):
        return tokens
    out: list[str] = []
    i = 0
    while i < len(tokens):
        mass, used = _pieces(tokens, i)
        out.append(mass or tokens[i])
        i += used
    return out


def _pieces(tokens: list[str], i: int) -> tuple[str | None, int]:
    """The mass of the tablets that are counted at token i, and how many tokens say so."""
    if not (tokens[i].isdigit() and 1 <= int(tokens[i]) <= _MOST_PIECES):
        return None, 1
    end = i + 1
    found: dict[bool, str] = {}  # by whether it is the mass
    while end < len(tokens) and len(found) < 2:
        token = tokens[end]
        if token in _PIECES or (token.startswith("q|") and token.endswith("|g")):
            found.setdefault(token not in _PIECES, token)
        elif token != "of":
            break
        end += 1
    if len(found) < 2:
        return None, 1
    return amount_token(int(tokens[i]) * Decimal(found[True].split("|")[1]), "g"), end - i
