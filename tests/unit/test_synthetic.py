"""The embedded corpus: varied, clinically consistent, and not solvable by its words alone."""

from __future__ import annotations

from collections import Counter

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from openrlhf_medical.data.conditions import SLOTS, _condition, load_conditions, wrong_values
from openrlhf_medical.data.medec import read_medec
from openrlhf_medical.data.synthetic import COLUMNS, SPLITS, generate, write_csv
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.notes import ERROR_TYPES


@pytest.fixture(scope="module")
def corpus():
    return {split: generate(split) for split in SPLITS}


def test_size(corpus):
    assert len(load_conditions()) >= 40
    assert len({row.text for row in corpus["train"]}) >= 1_000
    for split in SPLITS[1:]:
        assert len({row.text for row in corpus[split]}) >= 200


@pytest.mark.parametrize("split", SPLITS)
def test_every_kind_of_error(corpus, split):
    counts = Counter(row.error_type for row in corpus[split])
    assert counts.keys() == {None, *ERROR_TYPES}
    assert counts[None] == len(corpus[split]) / 2
    assert min(counts.values()) >= 0.02 * len(corpus[split])


def test_same_seed_same_rows():
    assert generate("train", seed=3, num_vignettes=50) == generate("train", seed=3, num_vignettes=50)
    assert generate("train", seed=3, num_vignettes=50) != generate("train", seed=4, num_vignettes=50)


def test_splits_are_apart(corpus):
    texts = {split: {row.text for row in rows} for split, rows in corpus.items()}
    vignettes = {split: {row.vignette_id for row in rows} for split, rows in corpus.items()}
    for a, b in [("train", "unseen_renderings"), ("train", "unseen_conditions"), SPLITS[1:]]:
        assert not texts[a] & texts[b]
        assert not vignettes[a] & vignettes[b]
    conditions = {split: {row.condition for row in rows} for split, rows in corpus.items()}
    assert not conditions["train"] & conditions["unseen_conditions"]
    assert conditions["train"] == conditions["unseen_renderings"]


def test_held_out_is_the_same_for_every_seed():
    """Trained on one seed and tested on another, nothing leaks."""
    train = {sentence for row in generate("train", seed=1) for sentence in row.sentences}
    held_out = [row for row in generate("unseen_renderings", seed=2) if row.error_flag == 0]
    organisms = {f"{c.evidence} {c.values['organism']}." for c in load_conditions() if c.evidence}
    assert not {sentence for row in held_out for sentence in row.sentences if sentence not in organisms} & train


@pytest.mark.parametrize("split", SPLITS)
def test_an_error_changes_one_sentence(corpus, split):
    for row in corpus[split]:
        assert " ".join(row.sentences) == row.text
        assert "  " not in row.text and ".." not in row.text and "{" not in row.text
        if row.error_flag:
            mended = [*row.sentences]
            assert mended[row.error_sentence_id] == row.error_sentence != row.corrected_sentence
            mended[row.error_sentence_id] = row.corrected_sentence
            assert " ".join(mended) == row.corrected_text


def test_every_wrong_value_is_right_in_another_note(corpus):
    clean = " ".join(row.text for row in corpus["train"] if not row.error_flag)
    for condition in load_conditions():
        for slot in SLOTS:
            for wrong in wrong_values(condition, slot):
                assert wrong in clean
                assert wrong != condition.values[slot]


def test_values_are_wrong_as_often_as_displaced(corpus):
    """Else a value would tell by itself on which side it stands, in every split alike."""
    conditions = {c.name: c for c in load_conditions()}
    slot_of = {kind: slot for slot, kind in SLOTS.items()}
    excess = Counter()
    for row in corpus["train"]:
        if row.error_flag:
            slot = slot_of[row.error_type]
            right = conditions[row.condition].values[slot]
            before, after = row.corrected_sentence.split(right)
            excess[slot, row.error_sentence.removeprefix(before).removesuffix(after)] += 1
            excess[slot, right] -= 1
    assert max(abs(count) for count in excess.values()) <= 6


@pytest.mark.parametrize("split", SPLITS)
def test_twin_is_another_writing(corpus, split):
    for flawed, clean in zip(corpus[split][::2], corpus[split][1::2], strict=True):
        assert flawed.vignette_id == clean.vignette_id
        assert (flawed.error_flag, clean.error_flag) == (1, 0)
        assert len(set(clean.sentences) - set(flawed.sentences)) >= 4


def test_halves_of_the_wording_share_no_sentence_but_those_there_is_one_way_to_say():
    first, second = (
        {
            sentence
            for row in generate("train", seed=seed, num_vignettes=300, wording=half)
            for sentence in row.sentences
        }
        for seed, half in enumerate(("first", "second"))
    )
    evidence = {condition.evidence for condition in load_conditions() if condition.evidence}
    shared = [sentence for sentence in first & second if not sentence.startswith(tuple(evidence))]
    assert not shared
    with pytest.raises(UserError, match="no wording 'third'; allowed: all, first, second"):
        generate("train", wording="third")


def test_length_of_notes(corpus):
    for rows in corpus.values():
        assert all(5 <= len(row.sentences) <= 9 and 40 <= len(row.text.split()) <= 125 for row in rows)


def test_a_bad_condition_is_named():
    good = {
        **{"name": "x", "sex": "any", "age": [20, 30], "presentation": ["a", "b", "c"], "findings": ["a", "b", "c"]},
        **{"diagnosis": "d", "drug": "e", "measure": "f", "next_step": "g"},
    }
    assert _condition(good, "family", "file.yaml, x").values["drug"] == "e"
    bad_keys = ({"sex": "both"}, {"generic": ["organism"]}, {"findings": ["a"]}, {"colour": "red"}, {"organism": "o"})
    for change in bad_keys:
        with pytest.raises(UserError, match=r"file\.yaml, x"):
            _condition({**good, **change}, "family", "file.yaml, x")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_words_alone_do_not_tell(seed):
    train = generate("train", seed=seed)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2))
    model = LogisticRegression(max_iter=1000, C=10).fit(
        vectorizer.fit_transform([row.text for row in train]), [row.error_flag for row in train]
    )
    for split in SPLITS[1:]:
        rows = generate(split, seed=seed)
        guesses = model.predict(vectorizer.transform([row.text for row in rows]))
        accuracy = balanced_accuracy_score([row.error_flag for row in rows], guesses)
        print(f"TF-IDF with logistic regression, {split}, seed {seed}: balanced accuracy {accuracy:.3f}")
        assert accuracy <= 0.60


def test_csv_reads_back_as_medec(corpus, tmp_path):
    rows = corpus["unseen_conditions"]
    path = tmp_path / "corpus.csv"
    write_csv(rows, path)
    assert path.read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)
    notes = {note.note_id: note for note in read_medec(path).notes}
    assert notes.keys() == {row.text_id for row in rows}
    for row in rows:
        note = notes[row.text_id]
        assert (note.text, note.sentences, note.error_type) == (row.text, row.sentences, row.error_type)
        assert (note.error_sentence_id, note.corrected_text) == (row.error_sentence_id, row.corrected_text)
