"""Reading MEDEC: the habits of its files one by one, then the real validation file."""

import csv
import io
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_medical.data import medec
from openrlhf_medical.data.medec import COLUMNS, read_medec, read_sentences, squeeze, write_medec_csv
from openrlhf_medical.data.twins import find_twins, word_grams
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.notes import ERROR_TYPES, Note

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "medec"
needs_medec = pytest.mark.skipif(
    not list(REAL.glob("*ValidationSet*.csv")), reason=f"needs MEDEC's MS validation file in {REAL}"
)

WRONG = {
    "Text ID": "ms-x-0",
    "Text": "He has a fever. He is given ibuprofen. \n",
    "Sentences": "0 He has a fever.\n1 He is given ibuprofen.",
    "Error Flag": "1",
    "Error Type": "causalOrganism",
    "Error Sentence ID": "1",
    "Error Sentence": "He is given ibuprofen.",
    "Corrected Sentence": "He is given paracetamol.",
    "Corrected Text": "He has a fever. He is given paracetamol.",
}
CLEAN = {
    "Text ID": "ms-x-1",
    "Text": "A woman has a â€œcoughâ€\x9d, and no fever.",
    "Sentences": "0 A woman has a â€œcoughâ€\x9d, and no fever.",
    "Error Flag": "0",
    "Error Type": "NA",
    "Error Sentence ID": "-1",
    "Error Sentence": "NA",
    "Corrected Sentence": "NA",
    "Corrected Text": "NA",
}
BLANK = dict.fromkeys(COLUMNS, "")


def csv_bytes(*rows: dict[str, str], columns=COLUMNS) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\r\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def read(tmp_path: Path, data: bytes):
    path = tmp_path / "notes.csv"
    path.write_bytes(data)
    return read_medec(path)


def refusal(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(UserError) as caught:
        read(tmp_path, data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestRows:
    def test_a_note_with_an_error(self, tmp_path):
        (note,) = read(tmp_path, csv_bytes(WRONG)).notes
        assert note == Note(
            note_id="ms-x-0",
            text="He has a fever. He is given ibuprofen. \n",
            vignette_id="ms-x-0",
            sentences=("He has a fever.", "He is given ibuprofen."),
            error_type="causalOrganism",
            error_sentence_id=1,
            error_sentence="He is given ibuprofen.",
            corrected_sentence="He is given paracetamol.",
            corrected_text="He has a fever. He is given paracetamol.",
        )

    def test_a_clean_note_has_no_text_that_says_NA_and_keeps_its_broken_letters(self, tmp_path):
        (note,) = read(tmp_path, csv_bytes(CLEAN)).notes
        assert (note.error_type, note.error_sentence, note.corrected_sentence, note.corrected_text) == (None,) * 4
        assert note.error_sentence_id == -1
        assert note.text == CLEAN["Text"] == note.reference

    def test_rows_of_empty_cells_are_counted_and_are_not_notes(self, tmp_path):
        found = read(tmp_path, csv_bytes(WRONG, BLANK, CLEAN, BLANK, {**BLANK, "Text": " "}))
        assert [note.note_id for note in found.notes] == ["ms-x-0", "ms-x-1"]
        assert found.skipped == {medec.BLANK_ROW: 3}

    def test_line_ends_of_either_kind_give_the_same_notes(self, tmp_path):
        mixed = csv_bytes(WRONG, CLEAN)
        everywhere_crlf = re.sub(rb"\r?\n", b"\r\n", mixed)
        everywhere_lf = mixed.replace(b"\r\n", b"\n")
        assert mixed != everywhere_crlf
        assert read(tmp_path, mixed) == read(tmp_path, everywhere_crlf) == read(tmp_path, everywhere_lf)

    def test_a_byte_order_mark_is_no_part_of_the_first_column(self, tmp_path):
        assert read(tmp_path, b"\xef\xbb\xbf" + csv_bytes(WRONG)) == read(tmp_path, csv_bytes(WRONG))

    def test_columns_may_stand_in_another_order_and_beside_others(self, tmp_path):
        shuffled = csv_bytes(WRONG, CLEAN, columns=["", *reversed(COLUMNS)])
        assert read(tmp_path, shuffled).notes == read(tmp_path, csv_bytes(WRONG, CLEAN)).notes

    def test_a_repeated_row_is_skipped_but_an_id_cannot_name_two_notes(self, tmp_path):
        assert read(tmp_path, csv_bytes(WRONG, WRONG)).skipped == {medec.SAME_NOTE_AGAIN: 1}
        assert "line 5: Text ID 'ms-x-0'" in refusal(tmp_path, csv_bytes(WRONG, {**CLEAN, "Text ID": "ms-x-0"}))

    def test_oddities_are_kept_and_counted(self, tmp_path):
        elsewhere = {**WRONG, "Error Sentence ID": "0"}
        corrected = {**CLEAN, "Corrected Text": "Something."}
        found = read(tmp_path, csv_bytes(elsewhere, corrected))
        assert [note.has_error for note in found.notes] == [True, False]
        assert found.remarks == {medec.SENTENCE_DIFFERS: 1, medec.IGNORED_CORRECTION: 1}


class TestRefusals:
    @pytest.mark.parametrize(
        ("column", "value", "told"),
        [
            ("Error Flag", "2", "allowed: 0 (clean) or 1"),
            ("Error Flag", "", "allowed: 0 (clean) or 1"),
            ("Error Type", "NA", "allowed: diagnosis, management"),
            ("Error Type", "typo", "allowed: diagnosis, management"),
            ("Error Sentence ID", "-1", "number of a sentence"),
            ("Error Sentence ID", "1.0", "number of a sentence"),
            ("Corrected Sentence", "NA", "as Error Flag is 1"),
            ("Corrected Text", "", "as Error Flag is 1"),
            ("Text", "", "not empty"),
            ("Text ID", " ", "not empty"),
        ],
    )
    def test_a_wrong_cell_is_told_with_file_line_and_column(self, tmp_path, column, value, told):
        message = refusal(tmp_path, csv_bytes(CLEAN, {**WRONG, column: value}))
        assert f"{tmp_path}/notes.csv, line 3: {column} is {value!r}" in message
        assert told in message

    def test_a_missing_column(self, tmp_path):
        message = refusal(tmp_path, csv_bytes(WRONG, columns=COLUMNS[:-1]))
        assert "line 1" in message
        assert "missing: Corrected Text" in message

    @pytest.mark.parametrize("data", [b"", b"\r\n"])
    def test_an_empty_file(self, tmp_path, data):
        assert "missing: Text ID" in refusal(tmp_path, data)

    @pytest.mark.parametrize("rows", [[], [BLANK, BLANK]])
    def test_a_file_without_notes(self, tmp_path, rows):
        assert f"found {len(rows)} rows and no note" in refusal(tmp_path, csv_bytes(*rows))

    def test_a_file_cut_off_within_a_quoted_cell(self, tmp_path):
        whole = csv_bytes(CLEAN, WRONG)
        message = refusal(tmp_path, whole[: whole.index(b"1 He is given") + 4])
        assert "line 3: the row that begins here is not CSV" in message
        assert "cut off" in message

    def test_a_file_cut_off_between_cells(self, tmp_path):
        whole = csv_bytes(CLEAN, WRONG)
        assert "line 3: found 4 cells where the header has 9" in refusal(tmp_path, whole[: whole.index(b",causal")])

    def test_broken_utf8_names_the_line(self, tmp_path):
        broken = csv_bytes(CLEAN, WRONG).replace(b"ibuprofen.,", b"ibuprof\xe9n.,")
        assert "line 5: byte 0xe9 is not UTF-8" in refusal(tmp_path, broken)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(UserError, match=r"nowhere.csv: cannot be read \(No such file"):
            read_medec(tmp_path / "nowhere.csv")


class TestFolders:
    def test_all_of_a_folders_files_are_read_and_others_are_told(self, tmp_path):
        (tmp_path / "b.csv").write_bytes(csv_bytes(CLEAN))
        (tmp_path / "a.csv").write_bytes(csv_bytes(WRONG))
        (tmp_path / "other.csv").write_text("x,y\n1,2\n")
        found = read_medec(tmp_path)
        assert found.files == ["a.csv", "b.csv"]
        assert found.file_of == {"ms-x-0": "a.csv", "ms-x-1": "b.csv"}
        assert list(found.ignored) == ["other.csv"]

    def test_a_clone_of_the_public_repository_is_found_one_level_deeper(self, tmp_path):
        (tmp_path / "MEDEC-MS").mkdir()
        (tmp_path / "MEDEC-MS" / "a.csv").write_bytes(csv_bytes(WRONG))
        assert read_medec(tmp_path).files == ["a.csv"]

    def test_twins_are_found_across_files(self, tmp_path):
        text = "one two three four five six seven eight nine ten"
        (tmp_path / "a.csv").write_bytes(csv_bytes({**CLEAN, "Text": text}))
        (tmp_path / "b.csv").write_bytes(csv_bytes({**WRONG, "Text": f"{text} eleven"}))
        assert {note.vignette_id for note in read_medec(tmp_path).notes} == {"ms-x-1"}

    def test_a_folder_without_medec(self, tmp_path):
        with pytest.raises(UserError, match="holds no CSV file"):
            read_medec(tmp_path)
        (tmp_path / "other.csv").write_text("x,y\n1,2\n")
        with pytest.raises(UserError, match=r"other\.csv lacks the columns Text ID"):
            read_medec(tmp_path)


class TestSentences:
    def test_numbers_of_the_notes_own_do_not_start_sentences(self):
        # From the validation set: a blood pressure cut in two, then a table of values.
        cell = "0 His blood pressure is 120/70 mm\n1 Hg.\n2 Studies show:\n\nHemoglobin\n11 g/dL\n12 fL\n3 He is well."
        assert read_sentences(cell) == (
            "His blood pressure is 120/70 mm",
            "Hg.",
            "Studies show:\n\nHemoglobin\n11 g/dL\n12 fL",
            "He is well.",
        )

    @pytest.mark.parametrize(
        ("cell", "sentences"),
        [
            ("", ()),
            ("Not a list.", ()),
            ("1 Counted from one.", ()),
            ("\n0 After a blank line.", ("After a blank line.",)),
            ("0 One.\n1\n2 Three.", ("One.", "", "Three.")),
            ("0 One.\n10 mg\n1 Two.", ("One.\n10 mg", "Two.")),
            ("0 7 Hg, and so on", ("7 Hg, and so on",)),
        ],
    )
    def test_edges(self, cell, sentences):
        assert read_sentences(cell) == sentences

    LINE = st.text(st.characters(exclude_characters="\r\n"), max_size=12)

    @given(st.lists(st.lists(LINE, min_size=1, max_size=3), max_size=12))
    def test_what_is_listed_comes_back(self, sentences):
        # The one thing the format cannot hold: a further line that begins with the next sentence's number.
        plain = [[first, *(f"- {line}" for line in more)] for first, *more in sentences]
        cell = "\n".join(f"{number} " + "\n".join(lines) for number, lines in enumerate(plain))
        assert read_sentences(cell) == tuple("\n".join(lines).strip() for lines in plain)


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), min_size=1, max_size=30).filter(
    lambda text: text.strip() not in ("", "NA")
)


@st.composite
def notes(draw) -> list[Note]:
    made = []
    for number in range(draw(st.integers(1, 5))):
        note = Note(f"n-{number}", draw(WORDS), "", sentences=("First.", f"{number} mg.\n\nThen.", "Last."))
        if draw(st.booleans()):
            error = draw(st.sampled_from(ERROR_TYPES))
            note = Note(note.note_id, note.text, "", note.sentences, error, 2, "Last.", draw(WORDS), draw(WORDS))
        made.append(note)
    return made


class TestWriting:
    @given(notes())
    def test_written_notes_are_read_again(self, tmp_path_factory, made):
        path = tmp_path_factory.mktemp("csv") / "notes.csv"
        write_medec_csv(made, path)
        found = read_medec(path)
        vignettes = find_twins([note.text for note in made])
        assert [note.vignette_id for note in found.notes] == [made[first].note_id for first in vignettes]
        blank = [Note(n.note_id, n.text, "", n.sentences, *_error_fields(n)) for n in found.notes]
        assert blank == made

    def test_a_failed_write_leaves_the_folder_as_it_was(self, tmp_path):
        (tmp_path / "notes.csv").mkdir()
        with pytest.raises(UserError, match="cannot write"):
            write_medec_csv([Note("a", "b", "")], tmp_path / "notes.csv")
        assert [path.name for path in tmp_path.iterdir()] == ["notes.csv"]


def _error_fields(note: Note) -> tuple:
    return (
        note.error_type,
        note.error_sentence_id,
        note.error_sentence,
        note.corrected_sentence,
        note.corrected_text,
    )


class TestTwins:
    def test_containment_of_half_joins_and_less_does_not(self):
        # 14 words hold 10 sequences; sharing the first 9 words shares 5 of them, the first 8 words 4.
        case = [f"w{number}" for number in range(14)]
        half = case[:9] + [f"x{number}" for number in range(5)]
        less = case[:8] + [f"y{number}" for number in range(6)]
        assert find_twins([" ".join(words) for words in (case, half, less)]) == [0, 0, 2]

    def test_case_and_punctuation_do_not_matter_and_the_shorter_note_decides(self):
        long = "A man comes to the ward. He coughs, and he has had a fever for nine days; nothing helped him."
        assert find_twins([long, "unlike anything else here", "he coughs and HE has (had) a fever"]) == [0, 1, 0]

    def test_texts_without_words_are_nobodys_twins(self):
        assert find_twins(["", "...", "two words", "Two words!"]) == [0, 1, 2, 2]

    @given(
        st.lists(st.lists(st.sampled_from("abcde"), max_size=14).map(" ".join), max_size=12),
        st.randoms(use_true_random=False),
    )
    def test_same_groups_as_comparing_all_pairs_in_any_order(self, texts, rng):
        grams = [word_grams(text) for text in texts]
        groups = [{index} for index in range(len(texts))]
        for one in range(len(texts)):
            for other in range(one):
                shorter = min(len(grams[one]), len(grams[other]))
                if shorter and 2 * len(grams[one] & grams[other]) >= shorter and groups[one] is not groups[other]:
                    groups[one] |= groups[other]
                    for member in groups[other]:
                        groups[member] = groups[one]
        assert find_twins(texts) == [min(group) for group in groups]
        order = list(range(len(texts)))
        rng.shuffle(order)
        shuffled = find_twins([texts[index] for index in order])
        assert [min(groups[index]) for index in order] == [min(groups[order[first]]) for first in shuffled]


@pytest.fixture(scope="module")
def found():
    return read_medec(next(REAL.glob("*ValidationSet*.csv")))


@needs_medec
class TestTheValidationFile:
    def test_counts(self, found):
        assert len(found.notes) == 574
        assert Counter(note.error_type for note in found.notes) == {
            None: 255,
            "management": 168,
            "diagnosis": 86,
            "pharmacotherapy": 27,
            "treatment": 25,
            "causalOrganism": 13,
        }
        assert not found.skipped
        assert not found.remarks

    def test_every_clean_note_has_its_twin(self, found):
        vignettes: dict[str, list[bool]] = {}
        for note in found.notes:
            vignettes.setdefault(note.vignette_id, []).append(note.has_error)
        assert Counter(tuple(sorted(kinds)) for kinds in vignettes.values()) == {(False, True): 255, (True,): 64}

    def test_the_sentence_of_that_number_is_the_error_sentence(self, found):
        wrong = [note for note in found.notes if note.has_error]
        assert len(wrong) == 319
        for note in wrong:
            assert squeeze(note.sentences[note.error_sentence_id]) == squeeze(note.error_sentence)

    def test_texts_are_kept_letter_for_letter(self, found):
        (path,) = REAL.glob("*ValidationSet*.csv")
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(note.note_id, note.text) for note in found.notes] == [(r["Text ID"], r["Text"]) for r in rows]
        assert sum(not note.text.isascii() for note in found.notes) == 124
        assert [note.corrected_text or "NA" for note in found.notes] == [row["Corrected Text"] for row in rows]

    def test_written_and_read_again(self, found, tmp_path):
        write_medec_csv(found.notes, tmp_path / "again.csv")
        assert read_medec(tmp_path / "again.csv").notes == found.notes
