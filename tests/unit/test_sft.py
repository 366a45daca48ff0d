"""Warm-start examples: each one is what the game's own parser and the reference judge call good play."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_medical.data.prepare import prepare_data
from openrlhf_medical.data.seed_files import read_seeds
from openrlhf_medical.data.sft import corrected_seed, differing_words, dressed, note_examples, sft_examples, sft_set
from openrlhf_medical.game import edits
from openrlhf_medical.game.players import Prompt, Reply, Role, Truth
from openrlhf_medical.game.prompts import assessor_prompt, attacker_prompt, task_of
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.game.turns import read_assessment, read_attack
from openrlhf_medical.judge.backends import ReferenceBackend
from openrlhf_medical.judge.findings import BlindPair

MEDEC = Path(__file__).parents[2].parent / "shared" / "data" / "medec"
SOURCES = ["synthetic", pytest.param("medec", marks=pytest.mark.skipif(not MEDEC.is_dir(), reason=f"needs {MEDEC}"))]
RULES = [
    GameRules(),
    GameRules(edit="sentence"),
    GameRules(edit="sentence", cot=False, unassessable_share=0.1),
    GameRules(benign_goal="disguise", vanilla_turn="generate"),
    GameRules(benign_goal="disguise", edit="sentence", vanilla_turn="generate"),
]
RULE_IDS = ["note", "sentence", "no thoughts", "disguise", "disguised sentence"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for source in ("synthetic", "medec"):
        made[source] = tmp_path_factory.mktemp(source)
        if source == "synthetic":
            prepare_data("synthetic", made[source], num_samples=400)
        elif MEDEC.is_dir():
            prepare_data(str(MEDEC), made[source], num_samples=400)
    return made


@pytest.fixture(params=SOURCES)
def seeds(request, folders) -> list[Seed]:
    return read_seeds(folders[request.param] / "train.jsonl")


def text_of(prompt: Prompt) -> str:
    return prompt.messages[0]["content"]


def asked_seeds(seeds: list[Seed], rules: GameRules) -> dict[str, Seed]:
    """Every attacker's prompt that games could ask about these seeds' error notes → its seed."""
    asked = {}
    for seed in seeds:
        for category in Category:
            if seed.category.is_harmful and rules.attacker_generates(category):
                turn = replace(seed, category=category) if category.is_harmful else corrected_seed(seed, category)
                asked[text_of(attacker_prompt(turn, rules))] = turn
    return asked


@pytest.mark.parametrize("rules", RULES, ids=RULE_IDS)
def test_assessor_examples_say_what_is_true_of_their_note(seeds, rules):
    truth_of = {}
    for seed in seeds:
        for note, truth in ((seed.seed_note, seed.category.is_harmful), (seed.reference_note, False)):
            prompt = assessor_prompt(note, cot=rules.cot, may_refuse=rules.unassessable_share > 0)
            truth_of[text_of(prompt)] = Truth.HARMFUL if truth else Truth.SAFE, seed
    examples = sft_examples(seeds, rules)[Role.ASSESSOR]
    assert len(examples) == len({text_of(e.prompt) for e in examples}) > 50
    for example in examples:
        turn = read_assessment(Reply(example.reply), cot=rules.cot)
        truth, seed = truth_of[text_of(example.prompt)]
        assert turn.verdict is truth
        assert bool(turn.thinking) == rules.cot
        if truth is Truth.HARMFUL:
            assert turn.sentence in " ".join(seed.seed_note.split())
            assert turn.correction == " ".join(seed.corrected_sentence.split())


@pytest.mark.parametrize("rules", RULES, ids=RULE_IDS)
def test_attacker_examples_do_what_their_task_asks(seeds, rules):
    asked, judge, found = asked_seeds(seeds, rules), ReferenceBackend(), Counter()
    error_notes = {"".join(seed.seed_note.split()) for seed in seeds if seed.category.is_harmful}
    examples = sft_examples(seeds, rules)[Role.ATTACKER]
    for example in examples:
        seed = asked[text_of(example.prompt)]
        task = task_of(seed.category, rules)
        turn, note = read_attack(seed, Reply(example.reply), rules)
        assert turn.well_formed and note is not None
        assert bool(turn.thinking) == rules.cot
        assert edits.is_copy(note, seed.seed_note) == (task == "copy")
        if task == "inject":
            assert "".join(note.split()) in error_notes
        if task != "copy":
            found[task, judge.judge([BlindPair(seed.reference_note, note)])[0].actual_harm] += 1
    wanted = {task_of(c, rules) for c in Category if rules.attacker_generates(c)} - {"copy"}
    assert {task for task, _ in found} == wanted
    for task in wanted:
        truth = Truth.SAFE if task == "disguise" else Truth.HARMFUL
        share = found[task, truth] / sum(n for (t, _), n in found.items() if t == task)
        assert share > 0.95, (task, found)


def test_both_verdicts_alternate_and_come_equally_from_clean_and_corrected_notes(seeds):
    examples = sft_examples(seeds, GameRules())[Role.ASSESSOR]
    verdicts = [read_assessment(Reply(e.reply), cot=True).verdict for e in examples]
    assert verdicts == [Truth.HARMFUL, Truth.SAFE] * (len(examples) // 2)
    clean_notes = {text_of(assessor_prompt(s.seed_note, cot=True)) for s in seeds if s.origin == "clean"}
    from_clean = sum(text_of(e.prompt) in clean_notes for e in examples[1::2])
    assert 0.3 < from_clean / len(examples[1::2]) < 0.7


@pytest.mark.parametrize("source", SOURCES)
def test_no_vignette_of_val_occurs(source, folders):
    train, val = (read_seeds(folders[source] / f"{name}.jsonl") for name in ("train", "val"))
    ids = {e.seed_id for examples in sft_examples(train, GameRules()).values() for e in examples}
    used = {seed.vignette_id for seed in train if seed.seed_id in ids}
    assert ids <= {seed.seed_id for seed in train}
    assert not used & {seed.vignette_id for seed in val}


def test_examples_are_the_same_in_another_process(folders):
    path = folders["synthetic"] / "train.jsonl"
    code = (
        "import sys, hashlib, pathlib\n"
        "from openrlhf_medical.data.seed_files import read_seeds\n"
        "from openrlhf_medical.data.sft import sft_examples\n"
        "from openrlhf_medical.game.rules import GameRules\n"
        "found = sft_examples(read_seeds(pathlib.Path(sys.argv[1])), GameRules())\n"
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules)\n"
        "print(hashlib.sha256(repr(found).encode()).hexdigest())"
    )
    runs = {subprocess.check_output([sys.executable, "-c", code, str(path)], text=True) for _ in range(2)}
    assert len(runs) == 1


def made(note: str, wrong: str | None = None, right: str | None = None, **fields) -> Seed:
    """A seed on a note; with ``wrong``, the note with an error."""
    category = Category.ADVERSARIAL_HARMFUL if wrong else Category.ADVERSARIAL_BENIGN
    reference = note.replace(wrong, right) if wrong and right else note
    origin = "error" if wrong else "clean"
    defaults = {"seed_id": note, "note_id": note, "vignette_id": note, "origin": origin, "reference_note": reference}
    return Seed(**{**defaults, **fields}, category=category, seed_note=note, error_sentence=wrong,
                corrected_sentence=right)  # fmt: skip


def test_what_cannot_be_made_is_counted():
    unannotated = made("He coughs. He takes rest.", reference_note="He coughs. He takes fluids.")
    unannotated = replace(unannotated, category=Category.ADVERSARIAL_HARMFUL)
    elsewhere = made("He sneezes. He takes rest.", "She takes rest.", "She takes fluids.",
                     reference_note="He sneezes. He takes fluids.")  # fmt: skip
    spare = [made("He walks."), made("He sleeps.")]
    found = sft_set([unannotated, elsewhere, *spare], GameRules(edit="sentence"))
    assert found.skipped == {
        "assessor: the seed lacks its wrong or its corrected sentence": 1,
        "attacker, worsen: the seed lacks its wrong or its corrected sentence": 1,
        "attacker, inject: the seed lacks its wrong or its corrected sentence": 1,
        "attacker, worsen: no sentence of the note holds the annotated one": 1,
        "attacker, inject: no sentence of the note holds the annotated one": 1,
    }
    # What the annotation says of the note is all that the assessor needs.
    assert len(found.examples[Role.ASSESSOR]) == 2 and not found.examples[Role.ATTACKER]


def test_a_repeated_sentence_is_not_edited_in_the_wrong_place():
    note, right = "Take rest. He coughs. Take rest.", "Take rest. He coughs. Take fluids."
    seed = made(note, "Take rest.", "Take fluids.", reference_note=right)
    found = sft_set([seed], GameRules(edit="sentence"))
    assert len(found.examples[Role.ATTACKER]) == 2
    assert " 3: Take rest. </answer>" in found.examples[Role.ATTACKER][1].reply
    backwards = made(right, "Take fluids.", "Take rest.", reference_note=note)
    skipped = sft_set([backwards], GameRules(edit="sentence")).skipped
    assert skipped["attacker, inject: the changed sentence does not give the error note"] == 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("He takes one pill.", "He takes two pills.", ("one pill", "two pills")),
        ("He has acute gout.", "He has gout.", ("has acute", "has")),
        ("Lithium was given.", "Haloperidol was given.", ("Lithium", "Haloperidol")),
        ("Very ill.", "Ill.", ("Very ill", "Ill")),
        ("He rests.", "He rests. Now.", ("rests", "rests. Now")),
    ],
)
def test_differing_words(old, new, words):
    assert differing_words(old, new) == words


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.lists(st.sampled_from("abc"), min_size=1))
def test_differing_words_are_words_of_their_sentence_and_differ(old, new):
    if old == new:
        return
    first, second = differing_words(" ".join(old), " ".join(new))
    assert first and second and first != second
    assert first in " ".join(old) and second in " ".join(new)


def test_dressed_keeps_names_and_full_stops():
    assert dressed("The plan is rest.", "Clearly, ", ", clearly") == "Clearly, the plan is rest."
    assert dressed("Lithium was given.", "Clearly, ", ", clearly") == "Lithium was given, clearly."
    assert dressed("Rest ", "", ", as confirmed") == "Rest, as confirmed"


def test_reciting_stops_behind_the_corrected_sentence(seeds: list[Seed]) -> None:
    """The thoughts are the note as it should read, up to where it goes wrong; a right note is recited whole."""
    rules = GameRules(localise=False)
    examples = sft_set(seeds, rules, "recite").examples[Role.ASSESSOR]
    notes = {text_of(assessor_prompt(s.seed_note, cot=True, localise=False)): s for s in seeds}
    harmful = 0
    for example in examples:
        seed = notes.get(text_of(example.prompt))
        thoughts = example.reply.split("</think>")[0].strip()
        if seed is None or not seed.category.is_harmful:
            assert 'The note says "' not in thoughts and " ".join(thoughts.split()) == thoughts
            continue
        harmful += 1
        recited, _, wrong = thoughts.rpartition(' The note says "')
        assert squeezed(seed.reference_note).startswith(squeezed(recited))
        assert squeezed(recited).endswith(squeezed(str(seed.corrected_sentence)))
        assert squeezed(wrong.removesuffix('".')) in squeezed(str(seed.error_sentence))
    assert harmful == len(examples) // 2


def test_right_notes_to_write(seeds: list[Seed]) -> None:
    texts = [squeezed(example.reply) for example in note_examples(seeds)]
    assert sorted(texts) == sorted({squeezed(seed.reference_note) for seed in seeds})


def squeezed(text: str) -> str:
    return "".join(text.split())
