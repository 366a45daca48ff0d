"""From a note's text to the words that count.

``canonical`` gives a sentence as a tuple of tokens in which every harmless choice of writing is gone:
case, punctuation, mojibake, plural, tense, spelling on either side of the Atlantic, abbreviations, brand
names, number words, units, fillers. Two notes with the same tokens say the same thing.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from openrlhf_medical.judge.rules import drugs, synonyms, tables, words
from openrlhf_medical.judge.rules.amounts import in_full, in_moles, in_pieces
from openrlhf_medical.judge.rules.units import plain_number, with_amounts

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_TOKEN = re.compile(
    r"\d+(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+\.\d+|(?<![\w.])\.\d+|\d+(?:st|nd|rd|th)\b|\d+"
    r"|mm3|m2|[^\W\d_]+(?:\d+[^\W_]*)*|[%/<>+]"
)
_INCH = re.compile(r"(?<=\d)\s*-?\s*(?:in(?=[).,;]|$| tall)|inches\b|\"|″)")
_NEGATIVE_NUMBER = re.compile(r"(?<=[\s(])-(?=\d)")
_NOT = re.compile(r"n't\b")
_CLOCK = re.compile(r"\b([01]?\d|2[0-3]):([0-5]\d)(?!\d)(?:\s*([ap])\.?m\b\.?)?")
_EVERY_HOURS = re.compile(r"\bq\s?(\d+)\s?(?:h|hrs?|hours?)\b")
_SHORT_GENUS = re.compile(rf"\b([a-z])\.\s*(?=(?:{'|'.join(sorted(drugs.SPECIES))})\b)")  # no end of a sentence
_POSSESSIVE = re.compile(r"'s?\b|'(?=\s|$)")
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019`", "'"),
        **dict.fromkeys("\u201c\u201d", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
        "\u00b5": "\u03bc",  # the micro sign is the Greek letter mu
    }
)
_SYMBOLS = {"%": "percent", "<": "below", ">": "above", "+": "plus", "&": "and", "per": "/"}
_ORDINALS = {"1st": "first", "2nd": "second", "3rd": "third", "4th": "fourth", "5th": "fifth", "6th": "sixth"}
_NUMBERS = {word: str(value) for value, word in enumerate(tables.NUMBER_WORDS.split())}
_SPELLING = (
    ("aemia", "emia"), ("haem", "hem"), ("oedema", "edema"), ("oesoph", "esoph"), ("rrhoea", "rrhea"),
    ("anaesth", "anesth"), ("paed", "ped"), ("foet", "fet"), ("gynaec", "gynec"), ("leuk", "leuk"),
    ("leuco", "leuko"), ("orthopaed", "orthoped"), ("tumour", "tumor"), ("colour", "color"), ("labour", "labor"),
    ("caesar", "cesar"), ("ischaem", "ischem"), ("faec", "fec"), ("isation", "ization"), ("ised", "ized"),
    ("behaviour", "behavior"), ("centre", "center"), ("sulph", "sulf"), ("dyspnoea", "dyspnea"), ("grey", "gray"),
)  # fmt: skip


def _verb_forms() -> dict[str, str]:
    forms: dict[str, str] = {}
    for verb in words.VERBS:
        stem = verb[:-1] if verb.endswith("e") else verb
        forms |= {f"{stem}ed": verb, f"{stem}ing": verb, f"{verb}s": verb, f"{verb}es": verb}
        forms |= {f"{verb}{verb[-1]}ed": verb, f"{verb}{verb[-1]}ing": verb}
        if verb.endswith("y"):
            forms |= {f"{verb[:-1]}ies": verb, f"{verb[:-1]}ied": verb}
    for pair in words.IRREGULAR.split():
        form, _, verb = pair.partition(":")
        forms[form] = verb
    return forms


_VERB_FORMS = _verb_forms()


def _singular(word: str) -> str:
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("ches", "shes", "sses", "xes")) else word[:-1]


@lru_cache(maxsize=100_000)
def _word(raw: str) -> tuple[str, ...]:
    """One raw token in its plain form; ``nonbloody`` is two, ``no bloody``."""
    if raw[0].isdigit() or raw[0] == ".":
        if raw[-1].isalpha():
            return (_ORDINALS.get(raw, raw),)
        return (plain_number(raw),)
    if raw in _SYMBOLS:
        return (_SYMBOLS[raw],)
    if raw in _NUMBERS:
        return (_NUMBERS[raw],)
    if raw in words.FILLERS:
        return (raw,)
    if raw in _VERB_FORMS:
        raw = _VERB_FORMS[raw]
    if raw in words.NEGATIONS or raw == "non":
        return (words.NEGATION,)
    if raw.startswith("non") and len(raw) > 6:
        return (words.NEGATION, *_word(raw[3:]))
    for british, american in _SPELLING:
        if british in raw:
            raw = raw.replace(british, american)
    return ({"ii": "2", "iii": "3"}.get(raw) or _singular(raw),)


def _misread(character: str) -> str:
    """UTF-8 read as Windows-1252, byte by byte: ``’`` becomes ``â€™``."""
    out = ""
    for byte in character.encode():
        try:
            out += bytes([byte]).decode("cp1252")
        except UnicodeError:
            out += chr(byte)
    return out.lower()


# MEDEC holds such text (facts/medec.md). Lower case on both sides: a note may have been put in capitals.
_MOJIBAKE = {
    _misread(chr(c)): chr(c).lower() for c in (*range(0xA0, 0x100), *range(0x370, 0x400), *range(0x2010, 0x2270))
}
_MOJIBAKE[_misread("\u02da")] = " "  # the ring that MEDEC writes for degrees
_MOJIBAKE["\u00e2\u20ac"] = '"'  # a closing quote whose last byte, undefined in that code page, got lost
_MISREAD = re.compile("|".join(map(re.escape, sorted(_MOJIBAKE, key=len, reverse=True))))


@lru_cache(maxsize=64)  # a comparison cleans both of its texts several times
def clean(text: str) -> str:
    """Lower case, plain quotes and dashes, single blanks, mended mojibake."""
    text = text.lower()
    if not text.isascii():
        text = _MISREAD.sub(lambda match: _MOJIBAKE[match.group()], text).translate(_PLAIN)
        text = unicodedata.normalize("NFKC", text).translate(_PLAIN)
    return " ".join(_SHORT_GENUS.sub(r"\1 ", text).split())


def split_sentences(text: str) -> list[str]:
    """Sentences of a cleaned text. Line ends do not count: rewrapping a note changes nothing."""
    return _SENTENCE_END.split(text) if text else []


def _on_24_hours(match: re.Match[str]) -> str:
    """``9:30 p.m.`` is ``21:30``, one word."""
    hour, minute, half = int(match[1]), match[2], match[3]
    if half and 1 <= hour <= 12:
        hour = hour % 12 + (12 if half == "p" else 0)
    return f" clock{hour:02}{minute} "


def raw_tokens(text: str) -> list[str]:
    """Words, numbers and the few signs that count of a cleaned text, each in its plain form."""
    if "'" in text:
        text = _POSSESSIVE.sub(" ", _NOT.sub(" not", text))
    if "-" in text:
        text = _NEGATIVE_NUMBER.sub("minus ", text)
    if ":" in text:
        text = _CLOCK.sub(_on_24_hours, text)
    if "q" in text:
        text = _EVERY_HOURS.sub(r"every \1 hours", text)
    text = _INCH.sub(" inch ", text)
    out: list[str] = []
    for token in _TOKEN.findall(text):
        out.extend(_word(token))
    return out


_Phrases = dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]]


def _phrase_table() -> _Phrases:
    """First word -> (phrase, what it is read as), longest first; replacements are themselves read."""
    pairs: dict[tuple[str, ...], tuple[str, ...]] = {}
    for block in (tables.ABBREVIATIONS, tables.EXPRESSIONS, *synonyms.BLOCKS, synonyms.paired_entries(), drugs.BRANDS):
        for meaning, ways in tables.entries(block):
            target = (meaning,) if "-" in meaning else tuple(raw_tokens(meaning))
            for way in ways:
                phrase = tuple(raw_tokens(way))
                if phrase and phrase != target:
                    pairs[phrase] = target
    for target in set(pairs.values()):
        # The full form stands for itself: else a part of it would be expanded once more, in every pass.
        pairs.setdefault(target, target)
    table: _Phrases = {}
    for phrase, target in pairs.items():
        table.setdefault(phrase[0], []).append((phrase, target))
    for choices in table.values():
        choices.sort(key=lambda choice: -len(choice[0]))
    return table


def _replace_phrases(tokens: list[str], table: _Phrases) -> list[str]:
    # Most words begin no phrase: what lies between those that do is copied whole.
    out: list[str] = []
    done = 0
    for i in [i for i, token in enumerate(tokens) if token in table]:
        if i < done:  # inside the phrase before
            continue
        for phrase, target in table[tokens[i]]:
            size = len(phrase)
            if size == 1 or tuple(tokens[i : i + size]) == phrase:
                out += tokens[done:i]
                out += target
                done = i + size
                break
    out += tokens[done:]
    return out


_PHRASES = _phrase_table()
_FILLERS = words.FILLERS | {"/"}
_GENERICS = frozenset(generic for generic, _ in tables.entries(drugs.BRANDS))


@lru_cache(maxsize=100_000)
def canonical(sentence: str) -> tuple[str, ...]:
    """The tokens that count of one cleaned sentence (or of any cleaned text)."""
    tokens = raw_tokens(sentence)
    for _ in range(3):  # an abbreviation may be read as a phrase that is itself in the table
        replaced = _replace_phrases(tokens, _PHRASES)
        if replaced == tokens:
            break
        tokens = replaced
    tokens = in_moles(in_pieces(with_amounts(_number_ranges(in_full(tokens)))))
    kept = [token for token in tokens if token not in _FILLERS]
    # A brand beside its generic name, "Lovenox (enoxaparin)", is one drug.
    return tuple(token for i, token in enumerate(kept) if not (i and token == kept[i - 1] and token in _GENERICS))


def _number_ranges(tokens: list[str]) -> list[str]:
    """``120/80`` and ``120 over 80``, ``3-5`` and ``3 to 5`` are the same pairs of numbers."""
    last = len(tokens) - 1
    return [
        token
        for i, token in enumerate(tokens)
        if not (
            token in ("over", "to", "/") and 0 < i < last and tokens[i - 1][0].isdigit() and tokens[i + 1][0].isdigit()
        )
    ]
