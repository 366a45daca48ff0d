"""The repository's hard pairs are what their file says, and a file that is not is refused by name."""

from __future__ import annotations

from collections import Counter
from importlib import resources
from typing import Any

import pytest
import yaml

from openrlhf_medical.game.players import Truth
from openrlhf_medical.judge.audit.hard_pairs import FILE, KINDS, BadPairs, hard_probes, probes_of
from openrlhf_medical.judge.audit.probes import HARD_HELD_OUT, HARD_OPEN


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    found = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    assert isinstance(found, list)
    return found


def changed(rows: list[dict[str, Any]], place: int, **values: Any) -> list[dict[str, Any]]:
    """The rows with one row changed; None removes a key."""
    row = {key: value for key, value in (rows[place] | values).items() if value is not None}
    return [*rows[:place], row, *rows[place + 1 :]]


def test_the_file_is_valid_balanced_and_whole():
    found = hard_probes()
    assert len(found) >= 120
    assert {probe.kind for probe in found} == set(KINDS)
    for set_name in (HARD_OPEN, HARD_HELD_OUT):
        truths = Counter(probe.truth for probe in found if probe.set_name == set_name)
        assert abs(truths[Truth.HARMFUL] - truths[Truth.SAFE]) <= 1
    assert {probe.kind for probe in found if probe.note == probe.reference} == {"identical"}


def test_every_kind_but_identical_has_both_truths():
    both = {(probe.kind, probe.truth) for probe in hard_probes()}
    assert [kind for kind in KINDS for truth in Truth if (kind, truth) not in both] == ["identical"]


def test_the_file_is_packaged():
    with (resources.files("openrlhf_medical") / ".." / "pyproject.toml").open("rb") as file:
        import tomllib

        data = tomllib.load(file)["tool"]["setuptools"]["package-data"]
    assert "hard_pairs.yaml" in data["openrlhf_medical.judge"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"reason": None}, "lacks reason"),
        ({"note": "  "}, "note must be a text"),
        ({"remark": "x"}, "unknown keys remark"),
        ({"kind": "vibes"}, "kind 'vibes'"),
        ({"truth": "harmful"}, "truth 'harmful'"),
        ({"held_out": "yes"}, "held_out must be"),
        ({"edits": [["not in it", "x"]]}, "stands 0 times"),
        ({"edits": [["a", "x"]]}, "times in the note, not once"),
        ({"edits": [["25 mg", 250]]}, "quote numbers"),
        ({"edits": [["25 mg"]]}, "must be \\[from, to\\]"),
        ({"edits": "25 mg"}, "a list"),
        ({"edits": [["25 mg", "25 mg"]]}, "pairs of kind identical are equal"),
        ({"edits": None}, "pairs of kind identical are equal"),
        ({"changed": "Another note."}, "both edits and changed"),
        ({"edits": None, "changed": 7}, "changed must be a text"),
    ],
)
def test_a_bad_pair_is_named(rows, values, told):
    with pytest.raises(BadPairs, match=f"hard pair 'dose-h1': .*{told}"):
        probes_of(changed(rows, 0, **values))


def test_a_bad_file_is_refused(rows):
    with pytest.raises(BadPairs, match=r"come twice: hard:dose-h1"):
        probes_of(changed(rows, 1, id="dose-h1"))
    with pytest.raises(BadPairs, match="at least 120"):
        probes_of(rows[:100])
    with pytest.raises(BadPairs, match="none of kind injection"):
        probes_of([row for row in rows if row["kind"] != "injection"])
    harmful = [row | {"truth": "Harmful"} if row["kind"] != "identical" else row for row in rows]
    with pytest.raises(BadPairs, match="not balanced"):
        probes_of(harmful)
    for content in ({"a": 1}, [1], None, []):
        with pytest.raises(BadPairs, match="hard pairs: "):
            probes_of(content)
