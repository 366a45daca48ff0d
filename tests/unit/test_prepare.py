"""From notes to balanced files of seeds: split, draw, write, read, fetch."""

import functools
import http.server
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from openrlhf_medical.data import download
from openrlhf_medical.data.balance import Stock, corrected_sentences, draw_seeds, file_sizes
from openrlhf_medical.data.download import PUBLIC_FILES, fetch_medec
from openrlhf_medical.data.medec import squeeze, write_medec_csv
from openrlhf_medical.data.prepare import (
    HELD_FOR_EVALUATION,
    TWIN_OF_TEST,
    prepare_data,
    read_seeds,
    split_vignettes,
)
from openrlhf_medical.data.seed_files import known_from, seeds_to_jsonl
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.cot import fakes_structure
from openrlhf_medical.game.notes import Note
from openrlhf_medical.game.seeds import Category, Seed

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "medec"
VALIDATION = next(iter(REAL.glob("*ValidationSet*.csv")), None)
needs_medec = pytest.mark.skipif(VALIDATION is None, reason=f"needs MEDEC's MS validation file in {REAL}")


def vignette(name: str, kinds: str = "ec") -> list[Note]:
    """Notes of one made-up case: ``e`` with an error, ``c`` clean. Cases share no words."""
    words = [f"{name}{letter}" for letter in "abcdefghij"]
    made = []
    for number, kind in enumerate(kinds):
        first, last = " ".join(words) + ".", f"Version {number} is {name}."
        note = Note(f"n-{name}-{number}", f"{first} {last} ", name, (first, last))
        if kind == "e":
            right = f"Version {number} was {name}."
            note = Note(note.note_id, note.text, name, note.sentences, "diagnosis", 1, last, right, f"{first} {right}")
        made.append(note)
    return made


def corpus(vignettes: int, kinds: str = "ec", prefix: str = "v") -> list[Note]:
    return [note for number in range(vignettes) for note in vignette(f"{prefix}{number}", kinds)]


@pytest.fixture
def medec_csv(tmp_path) -> Path:
    path = tmp_path / "in" / "notes.csv"
    write_medec_csv(corpus(40), path)
    return path


def files(folder: Path) -> dict[str, list[Seed]]:
    return {name: read_seeds(folder / f"{name}.jsonl") for name in ("train", "val")}


def assert_balanced(seeds: list[Seed]) -> None:
    counts = Counter((seed.category, seed.origin) for seed in seeds)
    each = len(seeds) // 4
    assert Counter(seed.category for seed in seeds) == dict.fromkeys(Category, each)
    for category in (Category.VANILLA_BENIGN, Category.ADVERSARIAL_BENIGN):
        assert counts[category, "clean"] == counts[category, "corrected"] == each // 2


class TestFiles:
    def test_balance_split_and_repetition(self, medec_csv, tmp_path):
        summary = prepare_data(str(medec_csv), tmp_path / "out")
        once = files(tmp_path / "out")
        first = {name: (tmp_path / "out" / name).read_bytes() for name in ("train.jsonl", "val.jsonl")}
        for seeds in once.values():
            assert_balanced(seeds)
            assert len({seed.seed_id for seed in seeds}) == len(seeds)
        train, val = ({seed.vignette_id for seed in seeds} for seeds in once.values())
        assert not train & val
        assert (len(train), len(val)) == (36, 4)
        assert summary.written == sum(map(len, once.values())) == 4 * 36 + 4 * 4
        prepare_data(str(medec_csv), tmp_path / "again")
        prepare_data(str(medec_csv), tmp_path / "other", seed=1)
        assert {name: (tmp_path / "again" / name).read_bytes() for name in first} == first
        assert (tmp_path / "other" / "train.jsonl").read_bytes() != first["train.jsonl"]
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train.jsonl", "val.jsonl"]

    def test_what_a_seed_holds(self, medec_csv, tmp_path):
        prepare_data(str(medec_csv), tmp_path)
        notes = {note.note_id: note for note in corpus(40)}
        for name, seeds in files(tmp_path).items():
            for seed in seeds:
                note = notes[seed.note_id]
                assert seed.seed_id == f"{name}:{seed.category}:{seed.note_id}"
                assert seed.reference_note == note.reference.strip()
                assert squeeze("".join(seed.sentences)) == squeeze(seed.seed_note)
                told = (seed.error_type, seed.error_sentence, seed.corrected_sentence)
                if seed.category.is_harmful:
                    assert seed.origin == "error"
                    assert seed.seed_note == note.text.strip()
                    assert told == ("diagnosis", note.error_sentence, note.corrected_sentence)
                else:
                    assert seed.origin == ("corrected" if note.has_error else "clean")
                    assert seed.seed_note == seed.reference_note
                    assert told == (None, None, None)

    def test_every_prefix_is_balanced(self, medec_csv, tmp_path):
        prepare_data(str(medec_csv), tmp_path)
        train = files(tmp_path)["train"]
        for end in range(8, len(train) + 1, 8):
            assert_balanced(train[:end])
        # Which category comes first of its four must not be told by the position.
        assert len({tuple(seed.category for seed in train[at : at + 4]) for at in range(0, len(train), 4)}) > 4

    def test_number_and_ratio(self, medec_csv, tmp_path):
        summary = prepare_data(str(medec_csv), tmp_path, num_samples=70, train_ratio=0.5)
        assert {name: len(seeds) for name, seeds in files(tmp_path).items()} == {"train": 32, "val": 32}
        assert "dropped: 6 of the 70 seeds asked for" in summary.render()

    def test_the_summary_counts_what_was_written(self, medec_csv, tmp_path):
        summary = prepare_data(str(medec_csv), tmp_path)
        written = Counter((name, s.category, s.origin) for name, seeds in files(tmp_path).items() for s in seeds)
        assert summary.counts == written
        assert summary.vignettes == {"train": 36, "val": 4}
        assert "notes: 80 in 40 vignettes" in summary.lines()
        assert "  vanilla_benign: 36 (18 clean, 18 corrected)" in summary.lines()

    def test_skipped_rows_are_told(self, medec_csv, tmp_path):
        medec_csv.write_bytes(medec_csv.read_bytes() + b",,,,,,,,\r\n" * 328)
        summary = prepare_data(str(medec_csv), tmp_path)
        assert "skipped: 328 rows whose cells are all empty" in summary.lines()

    def test_the_test_set_and_its_vignettes_are_kept_for_evaluation(self, tmp_path):
        source = tmp_path / "in"
        notes = corpus(30)
        write_medec_csv(notes[:41], source / "TrainingSet.csv")  # the 41st note's twin is in the test set
        write_medec_csv(notes[41:], source / "MEDEC-MS-TestSet.csv")
        summary = prepare_data(str(source), tmp_path)
        used = {seed.note_id for seeds in files(tmp_path).values() for seed in seeds}
        assert used <= {note.note_id for note in notes[:40]}
        assert summary.skipped == {HELD_FOR_EVALUATION: 19, TWIN_OF_TEST: 1}
        alone = prepare_data(str(source / "MEDEC-MS-TestSet.csv"), tmp_path)
        assert alone.written

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            ({"num_samples": 4000}, r"at most 160 with a --train-ratio of 0\.9"),
            ({"num_samples": 7}, "allowed: at least 8"),
            ({"num_samples": -1}, "allowed: at least 8"),
            ({"train_ratio": 1.0}, "more than 0 and less than 1"),
            ({"train_ratio": float("nan")}, "more than 0 and less than 1"),
            ({"train_ratio": 0.001}, r"val\.jsonl on 40 error"),
            ({"download": "http://127.0.0.1:9"}, "were both given"),
            ({"source": "nowhere.csv"}, "nowhere.csv: cannot be read"),
        ],
    )
    def test_a_request_that_cannot_be_met_changes_nothing(self, medec_csv, tmp_path, arguments, told):
        out = tmp_path / "out"
        prepare_data(str(medec_csv), out)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        with pytest.raises(UserError, match=told):
            prepare_data(**{"source": str(medec_csv), "output_dir": out, **arguments})
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    def test_both_files_or_none(self, medec_csv, tmp_path):
        (tmp_path / "out" / "val.jsonl").mkdir(parents=True)
        with pytest.raises(UserError, match="cannot write"):
            prepare_data(str(medec_csv), tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["val.jsonl"]

    def test_an_output_folder_that_is_a_file(self, medec_csv, tmp_path):
        with pytest.raises(UserError, match="cannot write"):
            prepare_data(str(medec_csv), medec_csv)


class TestSplit:
    kinds = st.lists(st.sampled_from(["e", "c", "ec", "eec"]), min_size=1, max_size=40)

    @given(kinds, st.floats(0.01, 0.99), st.integers(0, 5))
    def test_every_note_once_no_vignette_twice_and_every_kind_by_its_share(self, kinds, ratio, seed):
        notes = [note for number, kind in enumerate(kinds) for note in vignette(f"v{number}", kind)]
        train, val = split_vignettes(notes, ratio, seed)
        assert sorted(note.note_id for note in train + val) == sorted(note.note_id for note in notes)
        sides = [{note.vignette_id for note in side} for side in (train, val)]
        assert not sides[0] & sides[1]
        assert abs(len(sides[0]) - ratio * len(kinds)) <= 0.5 + 1e-9
        for kind in (["e", "eec"], ["c"], ["ec"]):
            mine = {f"v{number}" for number, k in enumerate(kinds) if frozenset(k) == frozenset(kind[0])}
            assert abs(len(mine & sides[0]) - ratio * len(mine)) <= 1 + 1e-9
        assert split_vignettes(notes, ratio, seed) == (train, val)


class TestDraw:
    @given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 3))
    @settings(deadline=None)
    def test_as_many_as_there_can_be_stay_balanced_and_repeat_no_note(self, errors, clean, both, seed):
        notes = corpus(errors, "e", "x") + corpus(clean, "c", "y") + corpus(both, "ec", "z")
        stock = Stock.of(notes)
        assert stock.per_category == min(errors + both, 2 * (clean + both))
        parts = {note.note_id: "p" for note in notes}
        seeds = draw_seeds(stock, 4 * stock.per_category, parts, random.Random(seed))
        assert Counter(s.category for s in seeds) == dict.fromkeys(Category, stock.per_category)
        assert len({s.seed_id for s in seeds}) == len(seeds)
        for category in (Category.VANILLA_BENIGN, Category.ADVERSARIAL_BENIGN):
            origins = Counter(s.origin for s in seeds if s.category == category)
            assert abs(origins["clean"] - origins["corrected"]) <= 1
        benign = Counter(s.origin for s in seeds if not s.category.is_harmful)
        assert benign["clean"] == benign["corrected"]

    def test_categories_share_no_note_while_others_are_left(self):
        notes = corpus(16)
        seeds = draw_seeds(Stock.of(notes), 32, {note.note_id: "p" for note in notes}, random.Random(0))
        harmful = [seed.note_id for seed in seeds if seed.category.is_harmful]
        assert len(set(harmful)) == len(harmful) == 16

    def test_a_text_counts_once_whatever_its_white_space(self):
        (note,) = vignette("v", "c")
        same = Note("n-same", note.text.replace(" ", "\n"), "w")
        assert [kept.note_id for kept in Stock.of([note, same]).clean] == [note.note_id]

    @given(st.integers(8, 400), st.floats(0.05, 0.95), st.integers(1, 40), st.integers(1, 40))
    def test_sizes_are_what_was_asked_for_less_a_remainder_or_refused(self, number, ratio, train, val):
        stocks = Stock.of(corpus(train)), Stock.of(corpus(val))
        try:
            sizes = file_sizes(*stocks, number, ratio)
        except UserError:
            most = file_sizes(*stocks, None, ratio)
            assert number >= sum(most) + 4
            return
        assert all(size % 4 == 0 for size in sizes)
        assert all(0 < size <= 4 * stock.per_category for size, stock in zip(sizes, stocks, strict=True))
        unit = 8 if all(size % 8 == 0 for size in sizes) else 4
        assert number - sum(sizes) in range(unit)
        assert sizes[0] == unit or sizes[1] == unit or abs(sizes[0] - ratio * sum(sizes)) <= unit / 2 + 1e-6

    def test_a_correction_is_put_in_the_place_of_the_error(self):
        (note,) = vignette("v", "e")
        assert corrected_sentences(note) == (note.sentences[0], note.corrected_sentence)
        other = Note(*(getattr(note, f) for f in note.__dataclass_fields__ if f != "corrected_text"), "Rewritten.")
        assert corrected_sentences(other) == ()


class TestReadSeeds:
    ROW = Seed("s", Category.VANILLA_BENIGN, "n", "v", "clean", "A note.", "A note.").to_json()

    def refusal(self, tmp_path, second_line: str | bytes) -> str:
        path = tmp_path / "train.jsonl"
        line = second_line if isinstance(second_line, bytes) else second_line.encode()
        path.write_bytes(json.dumps(self.ROW).encode() + b"\n" + line + b"\n")
        with pytest.raises(UserError) as caught:
            read_seeds(path)
        assert str(caught.value).startswith(f"{path}, line 2: ")
        return str(caught.value)

    @pytest.mark.parametrize("line", ["{", "not JSON", '{"seed_id": "t"', "[" * 100_000])
    def test_a_line_that_is_not_json(self, tmp_path, line):
        assert "is not JSON" in self.refusal(tmp_path, line)

    @pytest.mark.parametrize("line", ["3", "[]", '"text"', "null"])
    def test_json_that_is_no_object(self, tmp_path, line):
        assert "allowed is one JSON object a line" in self.refusal(tmp_path, line)

    def test_broken_utf8(self, tmp_path):
        assert "byte 0xff is not UTF-8" in self.refusal(tmp_path, b'{"seed_id": "\xff"}')

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"category": "benign"}, "key category is 'benign'; allowed: vanilla_harmful, adversarial_harmful"),
            ({"category": None}, "key category is 'None'"),
            ({"category": []}, "key category is '[]'"),
            ({"category": "vanilla_harmful"}, "key origin is 'clean'; allowed: error, as the category"),
            ({"origin": "twin"}, "key origin is 'twin'; allowed: clean or corrected"),
            ({"seed_note": ""}, "key seed_note is ''; allowed: a text"),
            ({"reference_note": 3}, "key reference_note is '3'"),
            ({"error_type": "typo"}, "key error_type is 'typo'; allowed: diagnosis"),
            ({"error_type": {}}, "key error_type is '{}'"),
            ({"error_sentence": 3}, "key error_sentence is '3'"),
            ({"sentences": "One."}, "key sentences is 'One.'; allowed: a list of texts"),
            ({"sentences": [1]}, "key sentences is '[1]'"),
            ({"note": "x"}, "unknown keys note. Allowed keys: seed_id, category"),
            ({}, "seed_id 's' stands in line 1 already"),
        ],
    )
    def test_a_wrong_value_is_told_with_its_key(self, tmp_path, change, told):
        line = {**self.ROW, **({"seed_id": "t"} if change else {}), **change}
        assert told in self.refusal(tmp_path, json.dumps(line))

    def test_missing_keys(self, tmp_path):
        assert "missing keys seed_id, note_id" in self.refusal(tmp_path, "{}")

    @pytest.mark.parametrize("content", ["", "\n \n"])
    def test_a_file_without_seeds(self, tmp_path, content):
        (tmp_path / "val.jsonl").write_text(content)
        with pytest.raises(UserError, match="holds no seeds"):
            read_seeds(tmp_path / "val.jsonl")

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(UserError, match=r"val\.jsonl: cannot be read"):
            read_seeds(tmp_path / "val.jsonl")

    TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)

    @given(TEXT, TEXT, st.lists(TEXT).map(tuple), st.sampled_from([None, "treatment"]))
    def test_what_is_written_is_read(self, tmp_path_factory, seed_note, reference, sentences, error_type):
        assume(not fakes_structure(seed_note))
        seeds = [
            Seed(str(number), category, "n", "v", origin, seed_note, reference, error_type, sentences=sentences)
            for number, (category, origin) in enumerate(
                zip(Category, ("error", "error", "clean", "corrected"), strict=True)
            )
        ]
        path = tmp_path_factory.mktemp("seeds") / "train.jsonl"
        path.write_bytes(seeds_to_jsonl(seeds))
        assert read_seeds(path) == seeds


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        how = self.server.how
        if how == "whole":
            return super().do_GET()
        data = (self.server.folder / self.path.strip("/")).read_bytes()
        self.protocol_version = "HTTP/1.1"
        self.close_connection = True
        self.send_response(200)
        if how.startswith("chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            data = b"%x\r\n%b\r\n" % (len(data), data) + (b"0\r\n\r\n" if how == "chunked" else b"")
        elif how != "unsized":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data if how in ("chunked", "unsized") else data[: len(data) // 2])
        if how == "stalled":
            self.server.closing.wait(10)
        while how == "trickling" and not self.server.closing.wait(0.02):
            self.wfile.write(b".")
        return None


@pytest.fixture
def server(tmp_path):
    """A file server on loopback whose folder holds MEDEC's three public files."""
    folder = tmp_path / "served"
    for number, name in enumerate(PUBLIC_FILES):
        write_medec_csv(corpus(20, prefix=f"v{number}x"), folder / name)
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.asked, running.how, running.closing = [], "whole", threading.Event()
        running.url = f"http://127.0.0.1:{running.server_address[1]}/"
        running.folder = folder
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.closing.set()
        running.shutdown()
        thread.join(5)


class TestDownload:
    def test_files_are_fetched_once_and_prepared(self, server, tmp_path):
        summary = prepare_data("synthetic", tmp_path / "out", download=server.url)
        assert server.asked == [f"/{name}" for name in PUBLIC_FILES]
        for name in PUBLIC_FILES:
            assert (tmp_path / "out" / "medec" / name).read_bytes() == (server.folder / name).read_bytes()
        assert summary.skipped[HELD_FOR_EVALUATION] == 40
        assert_balanced(files(tmp_path / "out")["train"])
        prepare_data("synthetic", tmp_path / "out", download=server.url.rstrip("/"))
        assert len(server.asked) == 3

    def test_what_is_missing_is_fetched_later(self, server, tmp_path):
        (server.folder / PUBLIC_FILES[1]).rename(server.folder / "away")
        with pytest.raises(UserError, match=f"cannot fetch {server.url}{PUBLIC_FILES[1]}: 404"):
            fetch_medec(tmp_path / "medec", server.url)
        (server.folder / "away").rename(server.folder / PUBLIC_FILES[1])
        assert fetch_medec(tmp_path / "medec", server.url) == 2

    def test_a_file_sent_in_chunks(self, server, tmp_path):
        server.how = "chunked"
        fetch_medec(tmp_path / "medec", server.url)
        for name in PUBLIC_FILES:
            assert (tmp_path / "medec" / name).read_bytes() == (server.folder / name).read_bytes()

    @pytest.mark.parametrize(
        ("how", "told"),
        [
            ("cut off", "more expected|came where"),
            ("chunked, cut off", "IncompleteRead|ended prematurely"),
            ("unsized", "announces no size"),
            ("stalled", "timed out"),
        ],
    )
    def test_no_half_file_is_left(self, server, tmp_path, how, told):
        server.how = how
        with pytest.raises(UserError, match=told):
            fetch_medec(tmp_path / "medec", server.url, timeout_s=0.3)
        assert not list(tmp_path.glob("medec/*"))

    def test_a_server_that_trickles_meets_the_deadline(self, server, tmp_path):
        server.how = "trickling"
        began = time.monotonic()
        with pytest.raises(UserError, match=r"the deadline passed after \d+ bytes"):
            fetch_medec(tmp_path / "medec", server.url, deadline_s=0.3)
        assert time.monotonic() - began < 10
        assert not list(tmp_path.glob("medec/*"))

    def test_a_page_that_is_not_medec(self, server, tmp_path):
        (server.folder / PUBLIC_FILES[0]).write_text("<html>please log in</html>")
        with pytest.raises(UserError, match="is not MEDEC's CSV, it begins with b'<html>please"):
            fetch_medec(tmp_path / "medec", server.url)

    def test_a_file_that_is_far_too_large(self, server, tmp_path, monkeypatch):
        monkeypatch.setattr(download, "MAX_FILE_BYTES", 100)
        with pytest.raises(UserError, match="more than the allowed 100 bytes"):
            fetch_medec(tmp_path / "medec", server.url)

    @pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "ftp://example", "no address"])
    def test_a_server_that_is_not_there(self, tmp_path, url):
        with pytest.raises(UserError, match="cannot fetch"):
            fetch_medec(tmp_path, url, timeout_s=2)


class TestSynthetic:
    @pytest.fixture(autouse=True)
    def _corpus_is_there(self):
        pytest.importorskip("openrlhf_medical.data.synthetic", reason="the embedded corpus is not written yet")

    def test_held_out_splits_make_the_validation_file(self, tmp_path):
        from openrlhf_medical.data import synthetic

        summary = prepare_data("synthetic", tmp_path)
        seeds = files(tmp_path)
        assert {seed.seed_id.split(":")[0] for seed in seeds["train"]} == {"train"}
        assert {seed.seed_id.split(":")[0] for seed in seeds["val"]} == set(synthetic.SPLITS) - {"train"}
        for drawn in seeds.values():
            assert_balanced(drawn)
        train, val = ({seed.vignette_id for seed in drawn} for drawn in seeds.values())
        assert not train & val
        assert summary.parts["val", "unseen_conditions"] > 0
        before = (tmp_path / "train.jsonl").read_bytes()
        prepare_data("synthetic", tmp_path)
        assert (tmp_path / "train.jsonl").read_bytes() == before

    def test_a_small_number(self, tmp_path):
        prepare_data("synthetic", tmp_path, num_samples=40, train_ratio=0.8)
        assert {name: len(seeds) for name, seeds in files(tmp_path).items()} == {"train": 32, "val": 8}


@needs_medec
class TestTheValidationFile:
    def test_balanced_and_no_vignette_on_both_sides(self, tmp_path):
        summary = prepare_data(str(VALIDATION), tmp_path)
        assert (summary.notes, summary.total_vignettes) == (574, 319)
        seeds = files(tmp_path)
        # 319 vignettes of one error note each: 287 and 32; 286 is the even number below 287.
        assert {name: len(drawn) for name, drawn in seeds.items()} == {"train": 4 * 286, "val": 4 * 32}
        for drawn in seeds.values():
            assert_balanced(drawn)
        train, val = ({seed.vignette_id for seed in drawn} for drawn in seeds.values())
        assert (len(train), len(val), len(train & val)) == (287, 32, 0)

    def test_identical_bytes_in_another_process(self, tmp_path):
        prepare_data(str(VALIDATION), tmp_path / "one", seed=3)
        code = "import sys; from pathlib import Path; from openrlhf_medical.data.prepare import prepare_data; "
        code += "prepare_data(sys.argv[1], Path(sys.argv[2]), seed=3)"
        subprocess.run([sys.executable, "-c", code, str(VALIDATION), str(tmp_path / "two")], check=True, timeout=60)
        for name in ("train.jsonl", "val.jsonl"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

    def test_corrected_texts_have_their_sentences_in_all_but_one_note(self, tmp_path):
        prepare_data(str(VALIDATION), tmp_path)
        corrected = [s for drawn in files(tmp_path).values() for s in drawn if s.origin == "corrected"]
        for seed in corrected:
            if seed.sentences:
                assert squeeze("".join(seed.sentences)) == squeeze(seed.seed_note)
        assert len({seed.note_id for seed in corrected if not seed.sentences}) <= 1


def test_what_training_knows_of_held_out_seeds(tmp_path: Path) -> None:
    prepare_data("synthetic", tmp_path, num_samples=40)
    train, val = (read_seeds(tmp_path / f"{name}.jsonl") for name in ("train", "val"))
    assert known_from(val, train) == 0 and known_from(val, []) == 0
    assert known_from(val, [*train, *val]) == known_from(val, val) == len(val)
    told = replace(val[0], vignette_id="other", seed_note=val[0].seed_note.replace(" ", "\n"))
    same = [s for s in val if {s.seed_note, s.reference_note} & {val[0].seed_note, val[0].reference_note}]
    assert known_from(val, [told]) == len(same) >= 1
    twin = replace(train[0], vignette_id=val[0].vignette_id)
    assert known_from(val, [twin]) == sum(s.vignette_id == val[0].vignette_id for s in val)
