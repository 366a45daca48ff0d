"""Which words of a note were changed, as lengths that a browser can cut strings by."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

_TOKEN = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")


def word_diff(before: str, after: str) -> list[int]:
    """[kept, kept, removed, added, kept, kept, removed, …]: four lengths a piece, the first two the same words in
    ``before`` and in ``after`` (white space may differ). Lengths are UTF-16 units, as JavaScript counts."""
    old, new = _TOKEN.findall(before), _TOKEN.findall(after)
    old_words, new_words = [token.strip() for token in old], [token.strip() for token in new]
    # What two versions of a note share at both ends needs no search, and is most of it.
    start = 0
    while start < min(len(old), len(new)) and old_words[start] == new_words[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old_words[-1 - end] == new_words[-1 - end]:
        end += 1
    matcher = SequenceMatcher(
        None, old_words[start : len(old) - end], new_words[start : len(new) - end], autojunk=False
    )
    pieces = [[_units(old[:start]), _units(new[:start]), 0, 0]]
    for operation, i1, i2, j1, j2 in matcher.get_opcodes():
        i1, i2, j1, j2 = i1 + start, i2 + start, j1 + start, j2 + start
        if operation == "equal":
            pieces.append([_units(old[i1:i2]), _units(new[j1:j2]), 0, 0])
        else:
            pieces[-1][2] += _units(old[i1:i2])
            pieces[-1][3] += _units(new[j1:j2])
    pieces.append([_units(old[len(old) - end :]), _units(new[len(new) - end :]), 0, 0])
    return [length for piece in pieces if any(piece) for length in piece]


def changed_words(before: str, after: str, diff: list[int]) -> int:
    """How many words were removed or added, whichever is more, piece by piece."""
    old, new = before.encode("utf-16-le", "surrogatepass"), after.encode("utf-16-le", "surrogatepass")
    i = j = count = 0
    for kept_old, kept_new, removed, added in zip(*[iter(diff)] * 4, strict=True):
        i, j = i + 2 * kept_old, j + 2 * kept_new
        count += max(_words(old[i : i + 2 * removed]), _words(new[j : j + 2 * added]))
        i, j = i + 2 * removed, j + 2 * added
    return count


def _words(utf16: bytes) -> int:
    return sum(any(letter.isalnum() for letter in word) for word in utf16.decode("utf-16-le", "replace").split())


def _units(tokens: list[str]) -> int:
    text = "".join(tokens)
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2
