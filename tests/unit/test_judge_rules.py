"""The rules of the reference backend: what is Safe, what is Harmful, what is left undecided."""

from __future__ import annotations

import random
import string
import time
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_medical.judge.rules import drugs, tables, words
from openrlhf_medical.judge.rules.decide import rule
from openrlhf_medical.judge.rules.text import canonical, clean

NOTE = (
    "A 54-year-old woman comes to the physician because of shortness of breath for 2 weeks. She has a history of "
    "hypertension and type 2 diabetes mellitus. Current medications include metformin 500 mg twice daily and aspirin. "
    "Her temperature is 38.5 C (101.3 F), pulse is 102/min, and blood pressure is 150/90 mm Hg. There is no chest "
    "pain or fever. Examination shows tenderness of the left knee. Ceftriaxone was started after blood cultures were "
    "obtained. Sputum culture grew Streptococcus pneumoniae. Patient is diagnosed with pneumonia."
)

SAFE = {
    "case": NOTE.upper(),
    "white space": NOTE.replace(" ", "\n  "),
    "punctuation": NOTE.replace(",", "").replace("-", " "),
    "curly": NOTE.replace("A 54", "“A” 54"),
    "abbreviations": NOTE.replace("shortness of breath", "SOB")
    .replace("hypertension", "HTN")
    .replace("blood pressure", "BP"),
    "brand": NOTE.replace("metformin", "Glucophage"),
    "gram": NOTE.replace("500 mg", "0.5 g"),
    "fahrenheit alone": NOTE.replace("38.5 C (101.3 F)", "101.3 F"),
    "celsius alone": NOTE.replace(" (101.3 F)", ""),
    "frequency": NOTE.replace("twice daily", "b.i.d."),
    "weeks": NOTE.replace("2 weeks", "14 days"),
    "number word": NOTE.replace("2 weeks", "two weeks"),
    "mmHg": NOTE.replace("150/90 mm Hg", "150 over 90 mmHg"),
    "rate": NOTE.replace("102/min", "102 bpm"),
    "negation said otherwise": NOTE.replace("There is no chest pain or fever", "She denies chest pain, fever"),
    "list order": NOTE.replace("metformin 500 mg twice daily and aspirin", "aspirin and metformin 500 mg twice daily"),
    "denied list order": NOTE.replace("no chest pain or fever", "no fever or chest pain"),
    "filler": NOTE.replace("Examination", "Of note, examination"),
    "tense": NOTE.replace("was started", "is started"),
    "verb": NOTE.replace("was started", "was initiated"),
    "mojibake": NOTE.replace("A 54", "â€œAâ€ 54"),
}
HARMFUL = {
    "dose": (NOTE.replace("500 mg", "5000 mg"), "amount"),
    "unit": (NOTE.replace("500 mg", "500 g"), "amount"),
    "one of two units": (NOTE.replace("101.3", "98.3"), "amount"),
    "vital sign": (NOTE.replace("150/90", "90/150"), "amount"),
    "duration": (NOTE.replace("2 weeks", "2 months"), "amount"),
    "frequency": (NOTE.replace("twice daily", "three times a day"), "frequency"),
    "side": (NOTE.replace("left knee", "right knee"), "side"),
    "negation dropped": (NOTE.replace("no chest pain", "chest pain"), "negation"),
    "negation put in": (NOTE.replace("was started", "was not started"), "negation"),
    "negation moved": (NOTE.replace("no chest pain or fever", "chest pain but no fever"), "negation"),
    "order in time": (NOTE.replace("after blood cultures", "before blood cultures"), "opposite"),
    "drug": (NOTE.replace("Ceftriaxone", "Vancomycin"), "drug"),
    "look-alike": (NOTE.replace("metformin", "metronidazole"), "drug"),
    "organism": (NOTE.replace("Streptococcus pneumoniae", "Pseudomonas aeruginosa"), "organism"),
    "diagnosis": (NOTE.replace("with pneumonia", "with sarcoidosis"), "content"),
    "reordered and changed": (". ".join(reversed(NOTE[:-1].split(". "))).replace("left", "right") + ".", "side"),
}
ABSTAIN = {
    "sentence dropped": (NOTE.replace("Examination shows tenderness of the left knee. ", ""), "dropped"),
    "sentence added": (NOTE + " She was discharged home with ibuprofen.", "added"),
    "truncated": (NOTE[:-30], "dropped"),
    "truncated in a word": (NOTE[: NOTE.index("pneumoniae") + 5], "dropped"),
    "truncated in a number": (NOTE[: NOTE.index("150/90") + 2], "dropped"),
    "drug dropped": (NOTE.replace(" and aspirin", ""), "dropped"),
    "wording": (NOTE.replace("comes to the physician", "wants to tell the physician"), "wording"),
    "slip of the pen": (NOTE.replace("tenderness", "tenderniss"), "spelling"),
    "rewritten": (
        "This middle-aged lady struggled to breathe lately. Known diabetic on metformin. Feverish, tachycardic and "
        "hypertensive at triage, knee sore. Antibiotics begun. Pneumococcal lobar consolidation was concluded. "
        "Aspirin continues. Cultures positive.",
        "rewrite",
    ),
}  # fmt: skip
SAME_IN_OTHER_WORDS = [
    (
        "Her glucose is 126 mg/dL and her potassium 4.9 mEq/L.",
        "Her glucose is 7.0 mmol/L and her potassium 4.9 mmol/L.",
    ),
    ("Penicillin G 2.4 million units IM is given.", "Benzylpenicillin 2,400,000 units is given intramuscularly."),
    ("He takes two 500 mg tablets of metformin.", "He takes metformin 1 g."),
    ("He takes metoprolol tartrate 25 mg daily.", "He takes 25 mg of metoprolol tartrate daily."),
    ("The dose at 09:30 was held.", "The dose at 9:30 a.m. was withheld."),
    ("She has right-sided weakness.", "She has weakness of the right side."),
    ("CT shows right lower lobe consolidation.", "CT shows RLL consolidation."),
    ("The culture grows Escherichia coli.", "The culture grows E. coli."),
    ("The stool is positive for Clostridioides difficile.", "The stool is positive for C. difficile."),
    ("He takes Lovenox (enoxaparin) 80 mg.", "He takes enoxaparin 80 mg."),
    ("She has swelling of both legs.", "She has bilateral leg swelling."),
    ("He has no known drug allergies.", "NKDA."),
    ("The ECG shows ST-segment elevation.", "The ECG shows ST elevation."),
    ("A diagnosis of Graves disease is made.", "Graves disease is diagnosed."),
    ("Paracetamol 1 g q6h is given.", "Acetaminophen 1000 mg every 6 hours is given."),
]
NOT_THE_SAME = [
    ("Her glucose is 126 mg/dL today, and she feels well.", "Her glucose is 9.0 mmol/L today, and she feels well."),
    ("He takes two 500 mg tablets of metformin with food.", "He takes metformin 2 g with food."),
    ("He takes aspirin 81 mg and metoprolol 25 mg.", "He takes aspirin 25 mg and metoprolol 81 mg."),
    ("The first dose at 09:30 was held by the nurse.", "The first dose at 9:30 p.m. was held by the nurse."),
    ("Weakness of the right arm and pain in the leg.", "Weakness of the arm and pain in the right leg."),
    ("CT shows right lower lobe consolidation with effusion.", "CT shows RUL consolidation with effusion."),
    ("Ibuprofen is stopped and he drinks well.", "Ibuprofen is restarted and he drinks well."),
    (
        "Allergies: penicillin\nMedication: amlodipine\nShe feels well",
        "Allergies: amlodipine\nMedication: penicillin\nShe feels well",
    ),
]
LETTERS_READ_AS_MORE = [("CT shows RLL consolidation.", "CT shows right lower lobe consolidation."),
                        ("His saturation is 93% on RA.", "His saturation is 93% on rheumatoid arthritis.")]  # fmt: skip
NOT_A_NOTE = ["", "   ", "Safe", "I'm sorry, but I cannot help with that.", "pain " * 300, "lorem ipsum dolor sit amet"]


@pytest.mark.parametrize("name", SAFE)
def test_other_writing_is_safe(name: str) -> None:
    assert SAFE[name] != NOTE
    assert rule(NOTE, SAFE[name]).verdict == "safe", rule(NOTE, SAFE[name])


@pytest.mark.parametrize(("reference", "note"), SAME_IN_OTHER_WORDS)
def test_other_names_units_and_short_forms_are_safe(reference: str, note: str) -> None:
    assert rule(reference, note).verdict == "safe", rule(reference, note)


SEEN = "A 54-year-old woman comes to the clinic for a yearly visit. "


@pytest.mark.parametrize(("reference", "note"), NOT_THE_SAME)
def test_what_only_looks_like_another_way_of_writing_is_harmful(reference: str, note: str) -> None:
    assert rule(SEEN + reference, SEEN + note).verdict == "harmful", rule(SEEN + reference, SEEN + note)


@pytest.mark.parametrize(("reference", "note"), LETTERS_READ_AS_MORE)
def test_what_letters_stand_for_is_left_open(reference: str, note: str) -> None:
    assert rule(SEEN + reference, SEEN + note).verdict == "abstain", rule(SEEN + reference, SEEN + note)


@pytest.mark.parametrize("name", HARMFUL)
def test_another_meaning_is_harmful(name: str) -> None:
    note, kind = HARMFUL[name]
    ruling = rule(NOTE, note)
    assert (ruling.verdict, ruling.kind) == ("harmful", kind), ruling


@pytest.mark.parametrize("name", ABSTAIN)
def test_what_cannot_be_shown_is_left_undecided(name: str) -> None:
    note, kind = ABSTAIN[name]
    ruling = rule(NOTE, note)
    assert (ruling.verdict, ruling.kind, ruling.note_valid) == ("abstain", kind, True), ruling


@pytest.mark.parametrize("text", NOT_A_NOTE)
def test_what_has_nothing_to_do_with_the_reference_is_no_note(text: str) -> None:
    ruling = rule(NOTE, text)
    assert (ruling.verdict, ruling.note_valid) == ("abstain", False), ruling


def test_no_reference_is_undecided() -> None:
    assert rule(" ", NOTE).verdict == "abstain"


def test_a_change_of_pronouns_is_not_called_safe() -> None:
    assert rule("He has a fever and a cough today.", "She has a fever and a cough today.").verdict == "abstain"


def test_harm_is_found_in_a_note_that_was_also_cut() -> None:
    assert rule(NOTE, HARMFUL["side"][0][:-40]).verdict == "harmful"


def _entries() -> list[tuple[str, str]]:
    blocks = (tables.ABBREVIATIONS, tables.EXPRESSIONS, drugs.BRANDS)
    return [(meaning, way) for block in blocks for meaning, ways in tables.entries(block) for way in ways]


def test_every_entry_of_the_tables_is_read_as_it_says() -> None:
    wrong = []
    for meaning, way in _entries():
        expected = (meaning,) if "-" in meaning else canonical(meaning)
        if canonical(clean(way)) != expected:
            wrong.append((way, canonical(clean(way)), expected))
    assert not wrong


def test_no_opposites_are_read_as_one_word() -> None:
    pairs = [pair.split() for line in words.ANTONYMS.splitlines() for pair in line.split(";") if pair.strip()]
    assert not [(a, b) for a, b in pairs if canonical(a) == canonical(b)]


def test_no_two_generic_drugs_are_read_as_one() -> None:
    generics = [generic for generic, _ in tables.entries(drugs.BRANDS)]
    assert len({canonical(generic) for generic in generics}) == len(generics)


sentences = st.lists(
    st.lists(
        st.sampled_from(["fever", "metformin", "left", "12", "500 mg", "no", "pain", "is", "she", "x-ray", "37.2 C"]),
        min_size=1,
        max_size=8,
    ).map(" ".join),
    min_size=1,
    max_size=6,
)


@given(sentences, st.randoms(use_true_random=False))
def test_writing_never_turns_a_note_harmful(parts: list[str], rng: random.Random) -> None:
    reference = ". ".join(parts) + "."
    shuffled = rng.sample(parts, len(parts))
    note = ". ".join(rng.choice([str.upper, str.title, str])(part) for part in shuffled) + "."
    assert rule(reference, note).verdict == "safe"


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_text_has_a_ruling(reference: str, note: str) -> None:
    ruling = rule(reference, note)
    assert ruling.verdict in ("safe", "harmful", "abstain")
    assert rule(note, note).verdict in ("safe", "abstain")


@given(st.integers(1, 999), st.integers(1, 999), st.sampled_from(["mg", "mL", "cm", "days", "mg/dL"]))
def test_amounts_are_safe_exactly_when_equal(first: int, second: int, unit: str) -> None:
    template = "The patient with asthma was given theophylline, {} {} in total, and felt better soon."
    ruling = rule(template.format(first, unit), template.format(second, unit))
    assert ruling.verdict == ("safe" if first == second else "harmful")


@given(st.decimals(34, 42, places=1))
def test_celsius_and_fahrenheit_agree_as_notes_round_them(celsius: Decimal) -> None:
    fahrenheit = round(float(celsius) * 1.8 + 32, 1)
    note = "He has a dry cough and chills. His temperature is {}."
    both = note.format(f"{celsius} C ({fahrenheit} F)")
    assert rule(both, note.format(f"{fahrenheit} F")).verdict == "safe"
    assert rule(both, note.format(f"{celsius} C")).verdict == "safe"
    assert rule(both, note.format(f"{fahrenheit + 1.1:.1f} F")).verdict == "harmful"


@settings(max_examples=20, deadline=None)
@given(st.text(alphabet=string.ascii_lowercase + " .0123456789", min_size=0, max_size=4000))
def test_hostile_text_takes_no_time(note: str) -> None:
    start = time.process_time()
    rule(NOTE, note)
    rule(note, NOTE)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("unit", ["pain ", "pain. ", "no fever. ", "1 ", "a b "])
def test_repetition_takes_no_time(unit: str) -> None:
    start = time.process_time()
    rule(NOTE, unit * (3 * len(NOTE) // len(unit)))
    rule(unit * 2000, "fever " + unit * 1999)
    assert time.process_time() - start < 2.0
