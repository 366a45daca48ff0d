"""Other writings of a note that say the same: what a judge must call Safe.

Written apart from the ``reference`` backend's rules: the word lists here are this module's own, so that rules and
rewrites cannot agree by sharing a table. Nothing here may import ``judge.rules`` (a test holds this).

What is left out on purpose: putting sentences in another order. In a note the order is a history, and another
order can be another history.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Rewrite = Callable[[str], str]

_SENTENCE_END = re.compile(r"(?<=\.)\s+(?=[A-Z])")

_ABBREVIATIONS = (
    ("blood pressure", "BP"), ("history of", "h/o"), ("hypertension", "HTN"), ("shortness of breath", "SOB"),
    ("-year-old", " y/o"), ("within normal limits", "WNL"), ("emergency department", "ED"), ("MRI", "MR imaging"),
    ("electrocardiogram", "EKG"), ("intravenous", "IV"), ("complete blood count", "CBC"), ("mm Hg", "mmHg"),
    ("type 2 diabetes mellitus", "type 2 DM"), ("urinary tract infection", "UTI"),
)  # fmt: skip

_BRANDS = (
    ("ibuprofen", "Advil"), ("metformin", "Glucophage"), ("lisinopril", "Zestril"), ("lorazepam", "Ativan"),
    ("acetaminophen", "Tylenol"), ("metronidazole", "Flagyl"), ("furosemide", "Lasix"), ("warfarin", "Coumadin"),
    ("atorvastatin", "Lipitor"), ("omeprazole", "Prilosec"), ("sertraline", "Zoloft"), ("fluoxetine", "Prozac"),
    ("naproxen", "Aleve"), ("levothyroxine", "Synthroid"), ("alprazolam", "Xanax"), ("simvastatin", "Zocor"),
)  # fmt: skip

_BRITISH = (
    ("anemia", "anaemia"), ("edema", "oedema"), ("diarrhea", "diarrhoea"), ("hemoglobin", "haemoglobin"),
    ("leukocyte", "leucocyte"), ("tumor", "tumour"), ("estrogen", "oestrogen"), ("center", "centre"),
    ("hemorrhage", "haemorrhage"), ("pediatric", "paediatric"), ("color", "colour"), ("gray", "grey"),
    ("ischemia", "ischaemia"), ("esophageal", "oesophageal"), ("orthopedic", "orthopaedic"), ("odor", "odour"),
)  # fmt: skip

# Everyday and clinical words for one another. Each goes where it stands, whatever comes before and after it.
_SYNONYMS = (
    ("because of", "due to"), ("physician", "doctor"), ("comes to", "presents to"), ("shows", "reveals"),
    ("ultrasonography", "ultrasound"), ("physical examination", "physical exam"), ("twice daily", "two times a day"),
    ("once daily", "one time a day"), ("myocardial infarction", "heart attack"), ("medications", "medicines"),
    ("children", "kids"), ("respirations are", "respiratory rate is"), ("pulse is", "heart rate is"),
    ("laboratory studies", "laboratory tests"), ("no abnormalities", "nothing abnormal"), ("reports that", "says that"),
    ("he appears", "he looks"), ("she appears", "she looks"), ("currently", "at present"),
    ("room air", "ambient air"),
    ("the abdomen", "the belly"), ("subsequently", "later"), ("approximately", "about"),
)  # fmt: skip

# Whole clauses said in another way, as an attacker would that is to disguise a note. (pattern, replacement)
_AGED = r"((?:[^.,]{1,40} )?\d+-(?:year|month|week|day)-old (?:man|woman|boy|girl|infant))"
_PLACE = r"(emergency department|office|clinic|hospital)"
_CLAUSES: tuple[tuple[str, str], ...] = (
    (rf"^An? {_AGED} (?:comes|presents) to the physician", r"The patient is a \1 who sees the physician"),
    (rf"^An? {_AGED} (?:comes|presents) to the {_PLACE}", r"The patient is a \1 who is seen in the \2"),
    (rf"^An? {_AGED} is brought to the (physician|{_PLACE[1:]}", r"The patient is a \1 who has been taken to the \2"),
    (r"^(His|Her) temperature is ([\d.]+)", r"\1 measured body temperature was \2"),
    (r"(?<=, )pulse is (\d+)/min", r"the heart beats \1 times per minute"),
    (r"(?<=, )respirations are (\d+)/min", r"\1 breaths are counted per minute"),
    (r"(?:(?<=, )|(?<= and ))blood pressure is (\d+/\d+) ?mm ?Hg", r"a blood pressure of \1 mm Hg is measured"),
    (r"^(\w+) examination shows", r"On \1 examination, one finds"),
    (r"^There is no\b", r"One finds no"),
    (r"^(He|She) has no history of serious illness", r"\1 has never been seriously ill"),
    (r"^(He|She) takes no medications", r"\1 is not on any medications"),
    (r"^(?:The p|P)atient (was|is) diagnosed with (?![^.]*\bago\b)", r"The diagnosis that \1 made in this patient is "),
    (r"^Current medications include", r"The medications taken at this time include"),
    (r"\bare within normal limits", r"lie in the normal range"),
    (r"\bremainder of the examination", r"rest of the examination"),
    (r"\bbecause of\b", r"on account of"),
)


def _sentences(text: str) -> list[str]:
    return [part for part in _SENTENCE_END.split(text.strip()) if part]


def _replaced(pairs: Sequence[tuple[str, str]]) -> Rewrite:
    """Whole words for whole words; a capital at the beginning stays one."""
    patterns = [(re.compile(rf"(?<![\w-]){re.escape(a)}\b" if a[0] != "-" else rf"{re.escape(a)}\b"), b)
                for a, b in pairs]  # fmt: skip
    patterns += [
        (re.compile(rf"(?<![\w-]){re.escape(a[0].upper() + a[1:])}\b"), b[0].upper() + b[1:])
        for a, b in pairs
        if a[0].islower()
    ]

    def rewrite(text: str) -> str:
        for pattern, to in patterns:
            text = pattern.sub(to, text)
        return text

    return rewrite


def _fillers(text: str) -> str:
    return " ".join(f"Of note, {part}" if i % 3 == 0 else part for i, part in enumerate(_sentences(text)))


def _bullets(text: str) -> str:
    return "\n".join(f"- {part}" for part in _sentences(text))


def _typography(text: str) -> str:
    """Curly quotes, no-break blanks before units, and the dash that word processors put into ranges."""
    text = re.sub(r"(?<=\d) (?=mg|g|kg|mm|cm|mL|C\b|F\b)", "\u00a0", text.replace("'", "\u2019"))
    return re.sub(r"(?<=[a-z])-(?=[a-z])", "\u2010", text)


# A number on its own: no part of another one, and not the end of a range ("2 to 3 weeks").
_ALONE = r"(?<![\w.,/-])(?<!\bto )(?<!\bor )(?<!\band )(?<!- )"


def _units(text: str) -> str:
    """Amounts in another unit, and temperatures in Fahrenheit alone."""
    text = re.sub(rf"{_ALONE}(\d+(?:\.\d+)?) ?mg\b(?!/)", lambda m: f"{float(m[1]) / 1000:g} g", text)
    text = re.sub(rf"{_ALONE}(\d+(?:\.\d+)?) ?kg\b(?!/)", lambda m: f"{float(m[1]) * 1000:.0f} g", text)
    text = re.sub(rf"{_ALONE}(\d+) weeks?\b", lambda m: f"{int(m[1]) * 7} days", text)
    return re.sub(r"(\d\d(?:\.\d)?) ?°? ?C \((\d+(?:\.\d)?) ?°? ?F\)", _fahrenheit, text)


def _fahrenheit(match: re.Match[str]) -> str:
    """Where the note's two figures agree; to drop one of two that contradict each other says another thing."""
    celsius, fahrenheit = float(match[1]), float(match[2])
    return f"{match[2]} F" if abs(celsius * 1.8 + 32 - fahrenheit) <= 0.15 else match[0]


_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def _number_words(text: str) -> str:
    """Small counts of time as words, and the other way round."""
    units = r"(?= (?:days?|weeks?|months?|years?|hours?|times)\b)"
    words = {word: str(i) for i, word in enumerate(_NUMBERS, 1)}
    figures = {figure: word for word, figure in words.items()}
    choices = sorted([*words, *figures], key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w./-])({'|'.join(choices)}){units}")
    return pattern.sub(lambda m: words.get(m[1]) or figures[m[1]], text)


def _clauses(text: str) -> str:
    parts, done = _sentences(text), []
    for part in parts:
        for pattern, to in _CLAUSES:
            part = re.sub(pattern, to, part)
        done.append(part[0].upper() + part[1:])
    return text if done == parts else " ".join(done)


def _disguised(text: str) -> str:
    """Clauses and words reworded in the whole note: what ``game.benign_goal: disguise`` asks an attacker for."""
    for rewrite in (_clauses, _replaced(_SYNONYMS), COSMETIC["abbreviations"], COSMETIC["number words"]):
        text = rewrite(text)
    return text


COSMETIC: dict[str, Rewrite] = {
    "upper case": str.upper,
    "lower case": str.lower,
    "white space": lambda text: re.sub(r" ", " \n ", text),
    "punctuation": lambda text: re.sub(r"[.,;:](?=\s|$)", "", text),
    "typography": _typography,
    "bullets": _bullets,
    "fillers": _fillers,
    "abbreviations": _replaced(_ABBREVIATIONS),
    "brand names": _replaced(_BRANDS),
    "British spelling": _replaced(_BRITISH),
    "number words": _number_words,
    "units": _units,
}
"""Name → rewrite that sets the same words otherwise. Each is deterministic and leaves a text without its occasion
as it is."""

REWORDED: dict[str, Rewrite] = {"synonyms": _replaced(_SYNONYMS), "clauses": _clauses, "disguise": _disguised}
"""Name → rewrite in other words, as an attacker would that is to disguise a note."""
