"""Probes say what is true: gold pairs, and rewrites that keep every number and every word that counts."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from openrlhf_medical.data.medec import write_medec_csv
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Truth
from openrlhf_medical.judge.audit import cosmetic, probes
from openrlhf_medical.judge.audit.cosmetic import COSMETIC, REWORDED

NOTES = probes.read_notes(None)
TEXTS = [note.reference for note in NOTES[:60]]
LIST = (
    "A 54-year-old man comes to the physician because of edema and shortness of breath for 2 weeks. He has had anemia "
    "for 3 to 4 weeks. Current medications include ibuprofen 400 mg and 1,000 mg of metformin. He takes 5 to 10 mg of "
    "lorazepam at night. His temperature is 37.0 C (98.6 F), pulse is 82/min, respirations are 14/min, and blood "
    "pressure is 130/80 mm Hg. Physical examination shows the patient's x-ray-like rash. There is no diarrhea. "
    "Weight is 70 kg."
)


def numbers(text: str) -> Counter[str]:
    return Counter(re.findall(r"\d+(?:\.\d+)?", text))


def letters(text: str) -> str:
    return "".join(re.findall(r"\w", text.casefold()))


# ── Gold ──


def test_gold_is_each_error_note_against_its_own_correction():
    gold = probes.gold_probes(NOTES)
    errors = {f"gold:{note.note_id}": note for note in NOTES if note.has_error}
    assert len(gold) == len(errors) > 300
    for probe in gold:
        note = errors[probe.probe_id]
        assert (probe.note, probe.reference) == (note.text, note.corrected_text) and probe.note != probe.reference
        assert probe.truth is Truth.HARMFUL and probe.kind == note.error_type
        assert probe.vignette_id == note.vignette_id


def test_a_correction_of_white_space_alone_is_no_gold():
    note = NOTES[0]
    assert note.corrected_text and probes.gold_probes([note])
    assert probes.gold_probes([replace(note, text=note.corrected_text.replace(" ", "  "))]) == []


@pytest.mark.parametrize("set_name", probes.REWRITES)
def test_rewritten_are_at_least_as_many_and_differ(set_name):
    notes = NOTES[-200:]
    gold = probes.gold_probes(notes)
    rewritten = probes.rewritten_probes(notes, set_name, len(gold))
    assert len(rewritten) >= len(gold)
    assert {probe.truth for probe in rewritten} == {Truth.SAFE}
    assert all(probe.note != probe.reference for probe in rewritten)
    # Few of the embedded notes name a drug that has a brand here.
    assert set(probes.REWRITES[set_name]) - {probe.kind for probe in rewritten} <= {"brand names"}
    assert len({probe.probe_id for probe in rewritten}) == len(rewritten)


def test_more_rounds_where_there_are_too_few_clean_notes():
    few = NOTES[:4]
    for at_least in (20, 10_000):  # the latter is more than there is
        rewritten = probes.rewritten_probes(few, "cosmetic", at_least)
        assert len(rewritten) >= 20 and len({probe.probe_id for probe in rewritten}) == len(rewritten)


def test_identical_pairs_are_identical():
    assert all(probe.note == probe.reference for probe in probes.identical_probes(NOTES))


def test_notes_are_drawn_by_chance_and_by_seed():
    first, again, other = (probes.drawn(NOTES, 7, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert Counter(note.has_error for note in first) == {True: 7, False: 7}
    assert probes.drawn(NOTES, None, 0) == NOTES
    assert len(probes.drawn(NOTES, 10_000, 0)) == len(NOTES)


def test_medec_without_errors_is_refused(tmp_path):
    path = tmp_path / "clean.csv"
    write_medec_csv([note for note in NOTES if not note.has_error][:3], path)
    with pytest.raises(UserError, match="none with an error"):
        probes.read_notes(path)


# ── Rewrites ──


def test_rewrites_share_no_table_with_the_rules():
    tree = ast.parse(Path(cosmetic.__file__).read_text(encoding="utf-8"))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    assert not [module for module in modules if module.startswith("openrlhf_medical")]


@pytest.mark.parametrize("name", ["upper case", "lower case", "white space", "punctuation", "bullets", "typography"])
def test_type_setting_keeps_every_letter(name):
    for text in [*TEXTS, LIST]:
        assert letters(COSMETIC[name](text)) == letters(text)


def test_fillers_only_add():
    for text in [*TEXTS, LIST]:
        assert COSMETIC["fillers"](text).replace("Of note, ", "").split() == text.split()


@pytest.mark.parametrize("name", ["abbreviations", "brand names", "British spelling", "synonyms", "clauses"])
def test_other_words_keep_every_number(name):
    rewrite = (COSMETIC | REWORDED)[name]
    for text in [*TEXTS, LIST]:
        assert numbers(rewrite(text)) == numbers(text)
    assert rewrite(LIST) != LIST


def test_word_lists_put_one_writing_for_another():
    assert COSMETIC["abbreviations"]("History of hypertension. MRI.") == "H/o HTN. MR imaging."
    assert COSMETIC["brand names"]("Ibuprofen and metformin.") == "Advil and Glucophage."
    assert COSMETIC["British spelling"]("Anemia, no edema.") == "Anaemia, no oedema."
    assert REWORDED["synonyms"]("The pulse is 80/min because of fever.") == "The heart rate is 80/min due to fever."


def test_parts_of_words_are_left_alone():
    assert COSMETIC["British spelling"]("papilledema, pre-anemia") == "papilledema, pre-anemia"
    assert REWORDED["synonyms"]("showshow appears appearsx") == "showshow appears appearsx"


def test_units_are_worth_the_same_and_ranges_are_left_alone():
    rewritten = COSMETIC["units"](LIST)
    assert "for 14 days." in rewritten and "3 to 4 weeks" in rewritten
    assert "ibuprofen 0.4 g" in rewritten and "1,000 mg" in rewritten and "5 to 10 mg" in rewritten
    assert "temperature is 98.6 F," in rewritten and "70000 g" in rewritten
    assert COSMETIC["units"]("90 mg/kg and 2-3 weeks and 1.5 mg/dL") == "90 mg/kg and 2-3 weeks and 1.5 mg/dL"


def test_a_note_that_contradicts_itself_keeps_both_figures():
    assert COSMETIC["units"]("38.9 C (98.6 F)") == "38.9 C (98.6 F)"


def test_number_words_turn_both_ways():
    assert COSMETIC["number words"]("for 3 days and two weeks, 18 months") == "for three days and 2 weeks, 18 months"


def test_clauses_say_the_same():
    told = REWORDED["clauses"](LIST)
    assert told.startswith("The patient is a 54-year-old man who sees the physician on account of edema")
    for part in ("the heart beats 82 times per minute", "14 breaths are counted per minute", "One finds no diarrhea",
                 "a blood pressure of 130/80 mm Hg is measured", "On Physical examination, one finds"):  # fmt: skip
        assert part in told


@pytest.mark.parametrize("name", [*COSMETIC, *REWORDED])
def test_a_rewrite_has_no_state_and_leaves_what_gives_no_occasion(name):
    rewrite = (COSMETIC | REWORDED)[name]
    assert rewrite(LIST) == rewrite(LIST)
    if name not in ("upper case", "lower case", "bullets", "fillers"):
        assert rewrite("Rash") == "Rash"
