"""MEDEC's scores: hand-made predictions with numbers derived here, and a second reading of the official scorer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge import Rouge

from openrlhf_medical.data.medec import read_medec
from openrlhf_medical.evaluation import medec
from openrlhf_medical.evaluation.medec import METRICS, Block, baselines, figures, reference_of, rouge1_f1
from openrlhf_medical.evaluation.submission import Prediction, parse_submission
from openrlhf_medical.game.notes import Note

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "medec"
needs_medec = pytest.mark.skipif(
    not list(REAL.glob("*ValidationSet*.csv")), reason=f"needs MEDEC's MS validation file in {REAL}"
)


def wrong(name: str, sentence_id: int, correction: str, vignette: str | None = None, kind: str = "diagnosis") -> Note:
    sentences = tuple(f"Sentence {k}." for k in range(6))
    return Note(name, " ".join(sentences), vignette or name, sentences, kind, sentence_id, sentences[sentence_id],
                correction, "All is right.")  # fmt: skip


def clean(name: str, vignette: str | None = None) -> Note:
    return Note(name, "All is right.", vignette or name, ("All is right.",))


def scored(notes: list[Note], text: str) -> dict[str, float | None]:
    predictions = parse_submission(text, [note.note_id for note in notes]).predictions
    found = figures(notes, {"it": Block(predictions, METRICS)}, resamples=20)["it"]
    return {name: interval and interval.value for name, interval in found.items()}


NOTES = [
    wrong("a-1", 1, "He takes ibuprofen 2.5 mg daily."),
    wrong("a-2", 0, "The organism is E. coli, a rod."),
    wrong("a-3", 2, "The plan is rest."),
    wrong("a-4", 3, "Never predicted."),
    wrong("a-5", 0, "Given twice, see?"),
    clean("b-1"),
    clean("b-2"),
    clean("b-3"),
    clean("b-4"),
]

LINES = """
a-1 1 1 "He takes ibuprofen 25 mg daily."
a-5 1 0 "Given twice, see?"
not a line of a submission
a-2 1 4 "the organism is E. coli, a rod"
x-9 1 0 "Nobody knows this text."
a-3 0 2 "The plan is rest."

b-1 1 -1 "Something is wrong here."
b-2 0 -1 NA
a-5 1 5 "Given once, you see"
b-3 1 0 NA
"""


def f_of(shared: int, said: int, wanted: int) -> float:
    """ROUGE-1 F1 from counts of words, with the package's 1e-8."""
    precision, recall = shared / said, shared / wanted
    return 2 * precision * recall / (precision + recall + 1e-8)


class TestHandMade:
    """Nine texts: five with an error (a-), four clean (b-); a-4 and b-4 have no prediction."""

    @pytest.fixture(scope="class")
    @classmethod
    def found(cls):
        return scored(NOTES, LINES)

    def test_flags(self, found):
        # Right: a-1, a-2, a-5 (its last line), b-2. Wrong: a-3 (0), b-1 and b-3 (1), a-4 and b-4 (missing).
        assert found["flag_accuracy"] == found["accuracy"] == pytest.approx(4 / 9, abs=1e-9)

    def test_sentences_are_scored_without_regard_to_flags(self, found):
        # Right: a-1 (1), a-3 (2, although not flagged), b-1 (-1, although flagged), b-2. Wrong: a-2 (4 for 0),
        # a-5 (its last line says 5), b-3 (0 for -1), a-4 and b-4 (missing).
        assert found["sentence_accuracy"] == pytest.approx(4 / 9, abs=1e-9)

    def test_corrections(self, found):
        # a-1: {He takes ibuprofen 25 mg daily} and {He takes ibuprofen 2 5 mg daily}: 5 of 6 and of 7 words, as a
        # point splits the number. a-2: the first letter's case differs: 6 of {the organism is E coli, a rod}, of 7
        # and 7. a-5, last line: {Given once, you see} and {Given twice, see?}: 1 of 4 and of 3.
        rouge = f_of(5, 6, 7) + f_of(6, 7, 7) + f_of(1, 4, 3)
        # a-3's correction is NA by its flag, a-4 and b-4 have none, b-1's data has none.
        assert found["rouge1_f1"] == pytest.approx(rouge / 3, abs=1e-9)
        # Both without a correction: b-2, and b-3, which was flagged. b-4 said nothing at all: 0.
        assert found["composite_rouge1"] == pytest.approx((rouge + 2) / 9, abs=1e-9)

    def test_what_is_ours(self, found):
        # Error notes: 3 of 5 flagged. Clean notes: 1 of 4 called clean; b-4, missing, is wrong on its side.
        assert found["recall"] == pytest.approx(3 / 5)
        assert found["false_positive_rate"] == pytest.approx(3 / 4)
        assert found["balanced_accuracy"] == pytest.approx((3 / 5 + 1 / 4) / 2)
        # Flagged: a-1, a-2, a-5, b-1, b-3.
        assert found["precision"] == pytest.approx(3 / 5)
        assert found["f1"] == pytest.approx(3 / 5)
        assert found["missing_rate"] == pytest.approx(2 / 9)


@pytest.mark.parametrize(
    ("line", "composite", "rouge"),
    [
        ("a-3 1 2 NA", 0.0, None),  # flagged without a correction
        ('a-3 1 2 "NA"', 0.0, None),
        ('a-3 1 2 " NA "', 0.0, 0.0),  # blanks inside of the quotes: a correction of the word NA
        ("a-3 1 2 na", 0.0, 0.0),
        ('a-3 1 2 ""The plan is rest.""', f_of(4, 4, 4), f_of(4, 4, 4)),
        ("a-3 1 2 The   plan is\trest.", f_of(4, 4, 4), f_of(4, 4, 4)),
        ('a-3 2 2 "The plan is rest."', f_of(4, 4, 4), f_of(4, 4, 4)),  # not a 0: the correction stays
        ("a-3 00 2 The plan", f_of(2, 2, 4), f_of(2, 2, 4)),
        ("a-3 1 2 ...", 0.0, 0.0),  # the official script fails here
        ('a-3 1 2 "', 0.0, 0.0),
        ('a-3 1 2 "The plan is rest. . "', f_of(4, 5, 4), f_of(4, 5, 4)),  # a blank between points is a word of none
        (r"a-3 1 2 The plan is \d rest", f_of(4, 5, 4), f_of(4, 5, 4)),  # and here
    ],
)
def test_corrections_at_the_edge(line, composite, rouge):
    found = scored([NOTES[2]], line)
    assert found["composite_rouge1"] == pytest.approx(composite, abs=1e-9)
    assert found["rouge1_f1"] == (None if rouge is None else pytest.approx(rouge, abs=1e-9))


@pytest.mark.parametrize(
    ("line", "flag", "sentence"),
    [("a-1 01 1 x", 0, 1), ("a-1 1 01 x", 1, 0), ("a-1 1 -1 x", 1, 0), ("a-1 2 1 x", 0, 1)],
)
def test_flags_and_sentences_are_compared_letter_by_letter(line, flag, sentence):
    found = scored([NOTES[0]], line)
    assert (found["flag_accuracy"], found["sentence_accuracy"]) == (flag, sentence)


# --- ROUGE-1 ---------------------------------------------------------------------------------------


def words_of(text: str) -> set[str]:
    words: set[str] = set()
    for piece in filter(None, text.split(".")):
        words |= set(piece.split()) or {""}
    return words


texts = st.text(st.sampled_from("aB2 .,\n-é"), max_size=30)


@given(texts, texts)
def test_rouge_is_the_f1_of_sets_of_words(said, wanted):
    one, other = words_of(said), words_of(wanted)
    if not one or not other:
        assert rouge1_f1(said, wanted) == 0
        return
    expected = f_of(len(one & other), len(one), len(other))
    assert rouge1_f1(said, wanted) == pytest.approx(expected, abs=1e-9)
    assert rouge1_f1(said, wanted) == pytest.approx(Rouge().get_scores(said, wanted)[0]["rouge-1"]["f"], abs=1e-9)


def test_rouge_of_a_text_with_itself_is_not_quite_one():
    assert rouge1_f1("He has a fever.", "He has a fever.") == 2 / (2 + 1e-8)


# --- A second reading of the scorer ----------------------------------------------------------------


def second_reading(notes: list[Note], rows: list[tuple[str, str, str, str]]) -> dict[str, float | None]:
    """The official figures from rows (id, flag, sentence, correction), straight from their description."""
    last = {text_id: rest for text_id, *rest in rows}
    flags = sentences = composite = 0.0
    both = []
    for note in notes:
        if note.note_id not in last:
            continue
        flag, sentence, correction = last[note.note_id]
        flags += flag == ("1" if note.has_error else "0")
        sentences += sentence == (str(note.error_sentence_id) if note.has_error else "-1")
        correction = "NA" if flag == "0" else correction
        reference = note.corrected_sentence or "NA"
        if correction == "NA" and reference == "NA":
            composite += 1
        elif "NA" not in (correction, reference):
            both.append(Rouge().get_scores(correction, reference)[0]["rouge-1"]["f"])
    n = len(notes)
    rouge = sum(both) / len(both) if both else None
    return {"flag_accuracy": flags / n, "sentence_accuracy": sentences / n, "rouge1_f1": rouge,
            "composite_rouge1": (sum(both) + composite) / n}  # fmt: skip


word = st.text(st.sampled_from("aB2,.é-"), min_size=1, max_size=4).filter(lambda text: text.replace(".", ""))
correction = st.just("NA") | st.lists(word, min_size=1, max_size=6).map(" ".join)
row = st.tuples(
    st.sampled_from([*(note.note_id for note in NOTES), "x-1"]),
    st.sampled_from(["0", "1"]),
    st.sampled_from(["-1", "0", "1", "2", "12"]),
    correction,
)


@settings(max_examples=60)
@given(st.lists(row, max_size=12))
def test_any_well_formed_file_is_scored_as_described(rows):
    text = "".join(f"{i} {f} {s} {c if c == 'NA' else chr(34) + c + chr(34)}\n" for i, f, s, c in rows)
    found = scored(NOTES, text)
    for name, value in second_reading(NOTES, rows).items():
        assert found[name] == (None if value is None else pytest.approx(value, abs=1e-9)), name


# --- Intervals, baselines, differences -------------------------------------------------------------


def twins(count: int) -> list[Note]:
    pairs = [(wrong(f"e-{k}", k % 6, "It is right.", f"v{k}"), clean(f"c-{k}", f"v{k}")) for k in range(count)]
    return [note for pair in pairs for note in pair]


def test_vignettes_are_drawn_with_both_twins():
    # Every vignette is half right: whichever are drawn, the accuracy is 1/2. Drawn one by one it would vary.
    notes = twins(10)
    always = figures(notes, {"it": Block(baselines(notes)["always_flag"], METRICS)}, resamples=200)["it"]
    accuracy = always["flag_accuracy"]
    assert (accuracy.value, accuracy.low, accuracy.high, accuracy.clusters) == (0.5, 0.5, 0.5, 10)


def test_baselines():
    notes = [*twins(4), wrong("e-9", 1, "It is right.")]
    found = figures(notes, {n: Block(said, METRICS) for n, said in baselines(notes).items()}, resamples=50)
    value = {n: {m: i and i.value for m, i in metrics.items()} for n, metrics in found.items()}
    assert value["always_flag"]["flag_accuracy"] == pytest.approx(5 / 9)
    assert value["always_flag"]["sentence_accuracy"] == 0  # not even on clean notes
    assert value["never_flag"]["flag_accuracy"] == value["never_flag"]["sentence_accuracy"] == pytest.approx(4 / 9)
    assert [value[n]["balanced_accuracy"] for n in value] == [0.5, 0.5]
    assert [value[n]["false_positive_rate"] for n in value] == [1, 0]
    assert value["never_flag"]["precision"] is None and value["never_flag"]["f1"] == 0
    assert value["always_flag"]["f1"] == pytest.approx(2 * 5 / (9 + 5))


def test_a_difference_is_paired():
    # B is right wherever A is, and on one more of the two notes of every vignette: always 1/2 better.
    notes = twins(8)
    truth = {note.note_id: reference_of(note) for note in notes}
    blocks = {"a": Block(baselines(notes)["always_flag"], METRICS), "b": Block(truth, METRICS)}
    found = figures(notes, blocks, [("a", "b")], resamples=100)["b - a"]["flag_accuracy"]
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_error_types_are_over_their_own_notes():
    notes = [wrong("a-1", 1, "Right.", kind="treatment"), wrong("a-2", 1, "Right.", kind="treatment"), *twins(2)]
    said = {"a-1": Prediction("1", "1", "Right."), "e-0": Prediction("1", "3")}
    found = figures(notes, medec.type_blocks(notes, said), resamples=20)
    assert set(found) == {"diagnosis", "treatment"}
    assert found["treatment"]["recall"].value == found["treatment"]["sentence_accuracy"].value == 0.5
    assert found["diagnosis"]["recall"].value == 0.5 and found["diagnosis"]["sentence_accuracy"].value == 0


def test_learned_scores_join_the_composite():
    notes = [replace(NOTES[2]), clean("b-1")]
    said = {"a-3": reference_of(notes[0]), "b-1": Prediction("0")}
    learned = {"bertscore": {"a-3": 0.5}, "bleurt": {"a-3": 0.25}}
    metrics = {k: v for group in medec.LEARNED_METRICS.values() for k, v in group.items()}
    found = figures(notes, {"it": Block(said, metrics, learned)}, resamples=20)["it"]
    mean = (f_of(1, 1, 1) + 0.5 + 0.25) / 3
    assert found["bertscore"].value == 0.5 and found["composite_bleurt"].value == pytest.approx((0.25 + 1) / 2)
    assert found["aggregate"].value == pytest.approx(mean) and found["composite_aggregate"].value == pytest.approx(
        (mean + 1) / 2
    )


@needs_medec
def test_known_figures_of_the_validation_set():
    notes = read_medec(REAL).notes
    truth = {note.note_id: reference_of(note) for note in notes}
    blocks = {n: Block(said, METRICS) for n, said in {**baselines(notes), "truth": truth}.items()}
    found = figures(notes, blocks, resamples=20)
    assert found["always_flag"]["flag_accuracy"].value == pytest.approx(319 / 574)
    assert found["never_flag"]["flag_accuracy"].value == found["never_flag"]["sentence_accuracy"].value
    assert found["never_flag"]["flag_accuracy"].value == pytest.approx(255 / 574)
    assert found["truth"]["flag_accuracy"].value == found["truth"]["sentence_accuracy"].value == 1
    assert found["truth"]["composite_rouge1"].value == pytest.approx(1, abs=1e-8)
    assert found["truth"]["flag_accuracy"].clusters == 319
