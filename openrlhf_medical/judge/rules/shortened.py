"""Names cut short: *RLL* for the right lower lobe, *E. coli* for Escherichia coli.

Letters stand for whatever has these initials, so only the way from the full name to the letters is certain.
Back, one must know what was meant: that is left open.
"""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf_medical.judge.rules.drugs import GENERA

_LONGEST = 5  # letters of an abbreviation
_VOWELS = frozenset("aeiouy")


def is_short_for(short: Sequence[str], full: Sequence[str]) -> bool:
    """Whether ``short`` is one token of the initials of ``full``, or a genus cut to its first letter."""
    if len(short) != 1 or not short[0].isalpha():
        return False
    letters = short[0]
    if len(letters) == 1:
        return len(full) == 1 and full[0].startswith(letters) and full[0] in GENERA
    return 2 <= len(full) == len(letters) <= _LONGEST and all(map(str.startswith, full, letters))


def looks_shortened(token: str) -> bool:
    """Two letters, or a few without a vowel: more likely an abbreviation than a word."""
    return token.isalpha() and (len(token) <= 2 or (len(token) <= _LONGEST and not _VOWELS & set(token)))
