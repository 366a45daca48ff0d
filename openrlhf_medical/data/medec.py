"""Read and write MEDEC's CSV files (Ben Abacha et al., Findings of ACL 2025; github.com/abachaa/MEDEC).

The files have habits that a plain reader trips over, and each is dealt with here: rows whose cells are
all empty, the literal ``NA``, sentences that are split too often, line ends of either kind inside cells.
Broken letters (``â€œ``) are in the published text and stay there.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from openrlhf_medical.data.files import decode_utf8, read_bytes, write_files
from openrlhf_medical.data.twins import find_twins
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.notes import ERROR_TYPES, Note

COLUMNS = (
    "Text ID",
    "Text",
    "Sentences",
    "Error Flag",
    "Error Type",
    "Error Sentence ID",
    "Error Sentence",
    "Corrected Sentence",
    "Corrected Text",
)
NOT_APPLICABLE = "NA"
BLANK_ROW = "rows whose cells are all empty"
SAME_NOTE_AGAIN = "rows that repeat a note letter for letter"
IGNORED_CORRECTION = "clean notes whose row holds an error's columns too (these columns were not used)"
SENTENCE_DIFFERS = "error notes whose Error Sentence is not the sentence of that number (columns used as they are)"

_ERROR_TYPE_BY_KEY = {name.casefold(): name for name in ERROR_TYPES}
_DELIMITER_HINT = "The file must be comma-separated, with cells in double quotes where they hold commas or line ends"


@dataclass
class MedecFile:
    """What one MEDEC file, or a folder of them, holds.

    ``file_of`` maps a note's ID to the name of its file. ``skipped`` counts the rows that are not notes
    and ``remarks`` the notes that were kept although something about them is odd, both by reason.
    ``ignored`` maps the name of a CSV that was passed over to the reason.
    """

    notes: list[Note] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    file_of: dict[str, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    ignored: dict[str, str] = field(default_factory=dict)


def read_medec(path: Path) -> MedecFile:
    """Read a MEDEC CSV, or every MEDEC CSV of a folder in the order of their names.

    A folder without any CSV may hold them one level deeper, as a clone of the public repository does;
    CSVs that lack MEDEC's columns are passed over there. Texts are kept letter for letter, but line
    ends within them are always ``\\n``. Twins share a ``vignette_id``, the ID of the first of them.

    Raises UserError, with file and line, on anything that is neither a note nor known to be none.
    """
    found = MedecFile()
    rows = 0
    if not path.is_dir():
        rows += _read_into(found, path)
    else:
        for file in _csv_files(path):
            lacking = _lacking_columns(file)
            if lacking:
                found.ignored[file.name] = f"lacks the columns {', '.join(lacking)}"
            else:
                rows += _read_into(found, file)
        if not found.files:
            reasons = "; ".join(f"{name} {reason}" for name, reason in found.ignored.items())
            raise UserError(f"{path}: none of its CSV files is MEDEC's: {reasons}. Name a folder or file that is.")
    if not found.notes:
        raise UserError(
            f"{path}: found {rows} rows and no note in them. The file seems to be cut off or emptied; fetch it again."
        )
    vignettes = find_twins([note.text for note in found.notes])
    found.notes = [
        replace(note, vignette_id=found.notes[first].note_id)
        for note, first in zip(found.notes, vignettes, strict=True)
    ]
    return found


def read_sentences(cell: str) -> tuple[str, ...]:
    """The sentences of a ``Sentences`` cell, in order and without white space at their ends.

    Each stands there as ``k text``, counted from 0. The notes hold numbers of their own, so a line starts
    a sentence only when its number is the next expected one; any other line goes on with the sentence
    before it. A cell that does not begin with ``0`` lists no sentences.
    """
    sentences: list[list[str]] = []
    for line in _same_line_ends(cell).split("\n"):
        start = re.match(rf"{len(sentences)}(?:[ \t]|$)", line)
        if start:
            sentences.append([line[start.end() :]])
        elif sentences:
            sentences[-1].append(line)
        elif line.strip():
            return ()
    return tuple("\n".join(lines).strip() for lines in sentences)


def write_medec_csv(notes: Iterable[Note], path: Path) -> None:
    """Write notes as MEDEC does (UTF-8, line feeds in cells, CRLF between rows), whole or not at all.

    ``read_medec`` gives the same notes back, except that it finds the vignettes anew.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for note in notes:
        error = (note.error_type, str(note.error_sentence_id), note.error_sentence, note.corrected_sentence)
        sentences = "\n".join(f"{number} {text}" for number, text in enumerate(note.sentences))
        cells = [note.note_id, note.text, sentences, "1" if note.has_error else "0", *error, note.corrected_text]
        writer.writerow([NOT_APPLICABLE if cell is None else cell for cell in cells])
    write_files({path: out.getvalue().encode("utf-8")})


def squeeze(text: str) -> str:
    """The text without any white space, for comparing what was split or joined."""
    return "".join(text.split())


def _csv_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.csv")) or sorted(folder.glob("*/*.csv"))
    if not files:
        raise UserError(f"{folder}: holds no CSV file. Name a MEDEC CSV, a folder of them, or use --download.")
    return files


def _lacking_columns(path: Path) -> list[str]:
    header = next(_cells(path), (1, []))[1]
    return [column for column in COLUMNS if column not in header]


def _read_into(found: MedecFile, path: Path) -> int:
    """Add one file's notes; the number of its rows is returned."""
    lines = _cells(path)
    header = next(lines, (1, []))[1]
    lacking = [column for column in COLUMNS if column not in header]
    if lacking:
        raise UserError(
            f"{path}, line 1: found the columns {', '.join(header) or '(none)'}; missing: {', '.join(lacking)}. "
            f"Allowed is MEDEC's CSV with ground truth: {', '.join(COLUMNS)}."
        )
    known = {note.note_id: note for note in found.notes}
    place = {column: header.index(column) for column in COLUMNS}
    rows = 0
    for line, cells in lines:
        rows += 1
        if not any(cell.strip() for cell in cells):
            found.skipped[BLANK_ROW] += 1
            continue
        if len(cells) != len(header):
            raise UserError(
                f"{path}, line {line}: found {len(cells)} cells where the header has {len(header)}. {_DELIMITER_HINT}; "
                "if it ends here it was cut off: fetch it again."
            )
        note = _note({column: cells[at] for column, at in place.items()}, f"{path}, line {line}", found.remarks)
        if note.note_id not in known:
            known[note.note_id] = note
            found.notes.append(note)
            found.file_of[note.note_id] = path.name
        elif known[note.note_id] == note:
            found.skipped[SAME_NOTE_AGAIN] += 1
        else:
            raise UserError(
                f"{path}, line {line}: Text ID {note.note_id!r} was used before, for another note "
                f"(in {found.file_of[note.note_id]}). Give every note an ID of its own."
            )
    found.files.append(path.name)
    return rows


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each row with the number of the line it begins on."""
    text = decode_utf8(read_bytes(path, "a MEDEC CSV, a folder of them, or 'synthetic'"), path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: the row that begins here is not CSV ({error}). {_DELIMITER_HINT}; "
            "if a quote is never closed the file was cut off: fetch it again."
        ) from error


def _note(row: Mapping[str, str], where: str, remarks: Counter[str]) -> Note:
    def wrong(column: str, allowed: str) -> UserError:
        return UserError(f"{where}: {column} is {row[column][:80]!r}; allowed: {allowed}. Correct the cell.")

    def given(columns: Sequence[str]) -> list[str]:
        return [column for column in columns if row[column].strip() not in ("", NOT_APPLICABLE)]

    for column in ("Text ID", "Text"):
        if not row[column].strip():
            raise wrong(column, "a text that is not empty (only rows with all cells empty are passed over)")
    note = Note(
        note_id=row["Text ID"].strip(),
        text=_same_line_ends(row["Text"]),
        vignette_id="",
        sentences=read_sentences(row["Sentences"]),
    )
    error_columns = ("Error Sentence", "Corrected Sentence", "Corrected Text")
    flag = row["Error Flag"].strip()
    if flag == "0":
        remarks.update([IGNORED_CORRECTION] if given(error_columns) else [])
        return note
    if flag != "1":
        raise wrong("Error Flag", "0 (clean) or 1 (with an error)")
    for column in error_columns:
        if column not in given(error_columns):
            raise wrong(column, "a text, as Error Flag is 1")
    error_type = _ERROR_TYPE_BY_KEY.get(row["Error Type"].strip().casefold())
    if error_type is None:
        raise wrong("Error Type", ", ".join(ERROR_TYPES))
    number = row["Error Sentence ID"].strip()
    if not re.fullmatch("[0-9]{1,6}", number):
        raise wrong("Error Sentence ID", "the number of a sentence, counted from 0, as Error Flag is 1")
    error_id = int(number)
    error_sentence = _same_line_ends(row["Error Sentence"])
    if error_id >= len(note.sentences) or squeeze(note.sentences[error_id]) != squeeze(error_sentence):
        remarks[SENTENCE_DIFFERS] += 1
    return replace(
        note,
        error_type=error_type,
        error_sentence_id=error_id,
        error_sentence=error_sentence,
        corrected_sentence=_same_line_ends(row["Corrected Sentence"]),
        corrected_text=_same_line_ends(row["Corrected Text"]),
    )


def _same_line_ends(cell: str) -> str:
    return cell.replace("\r\n", "\n")
