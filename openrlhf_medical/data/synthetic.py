"""The embedded corpus: synthetic clinical notes in MEDEC's shape, for those who have no MEDEC at hand.

Synthetic, not for care. Every vignette (a condition and a patient) gives an error note and a clean
twin in other words, as in MEDEC. An error puts the value of another condition of the same family into
one sentence, and all conditions of a family take turns, so that every value is wrong about as often as
the others: only the rest of the note tells that it is wrong, not the words themselves.
"""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from pathlib import Path

from openrlhf_medical.data.conditions import SLOTS, Condition, load_conditions, wrong_values
from openrlhf_medical.errors import UserError

SPLITS = ("train", "unseen_renderings", "unseen_conditions")

VIGNETTES_PER_CONDITION = {"train": 20, "unseen_renderings": 4, "unseen_conditions": 20}

COLUMNS = (
    *("Text ID", "Text", "Sentences", "Error Flag", "Error Type"),
    *("Error Sentence ID", "Error Sentence", "Corrected Sentence", "Corrected Text"),
)


def _mixed(pattern: str, *choices: Sequence[str]) -> tuple[str, ...]:
    """The pattern with every combination of choices in place of its asterisks."""
    return tuple(reduce(lambda text, word: text.replace("*", word, 1), words, pattern) for words in product(*choices))


_WHO = ("The physician", "The resident", "The ward", "The clinic", "The internist", "The consultant")

# So many that a model does better to read a note than to know its sentences by heart. Fillers are about nothing
# medical, and come anywhere: what the next sentence is about cannot be guessed.
TEMPLATES = {
    "presentation": (
        *("{A} comes to the clinic with {x}.", "{A} presents with {x}.", "{A} is evaluated for {x}."),
        *("{A} reports {x}.", "{A} is brought in with {x}.", "{A} has {x}.", "{A} is referred for {x}."),
        *("{A} describes {x}.", "{A} arrives with {x}.", "The complaint of {a} is {x}."),
        *_mixed("{A} * {x}.", ("complains of", "mentions", "has noticed", "seeks help for", "suffers from", "feels")),
        *_mixed("{A} * with {x}.", ("was admitted", "returns", "is sent in", "walks in", "calls", "is back")),
        *_mixed("* of {a} is {x}.", ("The main problem", "The reason for the visit", "The chief concern")),
    ),
    "findings": (
        *("Examination and tests show {x}.", "The work-up shows {x}.", "The chart records {x}."),
        *("There is {x}.", "The clinician finds {x}.", "Tests and examination give {x}.", "What stands out is {x}."),
        *("The assessment documents {x}.", "Noted are {x}.", "Further tests point out {x}."),
        *_mixed(
            "* * {x}.",
            (*_WHO, "The letter", "The nurse", "The bedside review"),
            ("describes", "mentions", "documents", "lists", "brings up", "observes"),
        ),
    ),
    "organism": ("{evidence} {x}.",),
    "diagnosis": (
        *("The diagnosis is {x}.", "The findings point to {x}.", "This is a case of {x}."),
        *("All this fits {x}.", "The picture is that of {x}.", "It is judged to be {x}."),
        *("The working diagnosis is {x}.", "The doctor explains that this is {x}.", "This is recorded as {x}."),
        *_mixed(
            "* * {x}.",
            (*_WHO, "The letter"),
            ("settles on", "writes down", "puts this down to", "calls this", "reads this as"),
        ),
    ),
    "drug": (
        *("{He} is started on {x}.", "{He} receives {x}.", "Drug treatment is {x}."),
        *("The doctor prescribes {x}.", "The medication is {x}.", "{He} takes {x} from now on."),
        *("The order is for {x}.", "The pharmacy dispenses {x}.", "{He} leaves with {x}."),
        *_mixed("* * {x}.", (*_WHO, "The nurse"), ("orders", "gives", "starts", "chooses", "hands out", "begins")),
    ),
    "measure": (
        *("Further treatment consists of {x}.", "Treatment includes {x}.", "The team also decides on {x}."),
        *("{He} is also offered {x}.", "Besides, there is {x}.", "Care goes on with {x}.", "Also ordered is {x}."),
        "The doctor adds {x}.",
        *_mixed("* * {x}.", _WHO, ("recommends", "organizes", "asks for", "sets up", "proposes", "advises")),
    ),
    "next_step": (
        *("The plan is {x}.", "The next step is {x}.", "The plan calls for {x}."),
        *("After that comes {x}.", "Then follows {x}.", "The team schedules {x}.", "Arranged is {x}."),
        "For the time after, there is {x}.",
        *_mixed("* * {x}.", _WHO, ("wants", "foresees", "books", "intends", "counts on", "insists on")),
    ),
    "filler": (
        *("{He} has no known drug allergies.", "The family history is unremarkable.", "{His} appetite is good."),
        *_mixed(
            "* *.",
            (
                *("At home {he}", "On weekdays {he}", "During the visit {he}", "Before lunch {he}", "Last spring {he}"),
                *("For some years {he}", "In the evenings {he}", "Since moving house {he}", "After work {he}"),
                *(
                    "On the phone {he}",
                    "By habit {he}",
                    "With friends {he}",
                    "Over the holidays {he}",
                    "As before {he}",
                ),
                *(
                    "On most days {he}",
                    "Every Sunday {he}",
                    "Once a month {he}",
                    "While waiting {he}",
                    "Years ago {he}",
                ),
                *("From time to time {he}", "Without hurry {he}", "A neighbor says that {he}", "{He} tells that {he}"),
            ),
            (
                *("listened to the radio", "walked the dog", "went to the market", "watered the tomatoes"),
                *("played cards", "wrote long letters", "baked bread", "mended shoes", "painted the fence"),
                *("watched birds", "collected stamps", "sang in a choir", "built model ships", "went fishing"),
                *("rode an old bicycle", "helped a neighbor", "kept bees", "studied maps", "knitted scarves"),
                *("carried a blue umbrella", "wore a green coat", "ordered tea", "talked about football"),
                *("hummed a tune", "fed the pigeons", "learned Italian", "polished the kettle", "lost a glove"),
            ),
        ),
        *_mixed(
            "* *.",
            (
                *("A neighbor", "The landlord", "An old friend", "The choir", "The gardener", "Someone from work"),
                *("The mail carrier", "A cousin", "The bus driver", "The librarian", "The other tenant", "Some uncle"),
            ),
            (
                *("brought soup", "waited outside", "sent a card", "called twice", "left a note", "told a joke"),
                *("asked about the weather", "knows the family", "found the keys", "fed the cat", "parked the car"),
            ),
        ),
    ),
}
HELD_OUT_TEMPLATES = {
    "presentation": ("{A} is seen because of {x}.", "The patient is {a} with {x}."),
    "findings": ("Evaluation reveals {x}.", "The evaluation notes {x}."),
    "organism": ("{evidence} {x}.",),
    "diagnosis": ("The team diagnoses {x}.", "The conclusion is {x}."),
    "drug": ("The prescription is {x}.", "{He} is given {x}."),
    "measure": ("Alongside, the team arranges {x}.", "Management includes {x}."),
    "next_step": ("To follow: {x}.", "What comes next is {x}."),
    "filler": (
        *("No drug allergies are known.", "{His} relatives are healthy."),
        *_mixed("* {he} *.", ("Mostly", "In winter", "At the sea"), ("reads novels", "sleeps late", "repairs clocks")),
    ),
}
"""For ``unseen_renderings``: none of them occurs in ``train``."""

WORDINGS = {"all": slice(None), "first": slice(0, None, 2), "second": slice(1, None, 2)}
"""Parts of the ways of saying things that ``train`` knows: a warm start on the one half of them and self-play on
the other meet wording that was not taught. What there is but one way of saying belongs to both."""

OPTIONAL = ("drug", "measure", "next_step")
MOST_FILLERS = 2


@dataclass(frozen=True, slots=True)
class SyntheticRow:
    """One text with MEDEC's annotations, its vignette (shared by twins), its condition and its split."""

    text_id: str
    text: str
    sentences: tuple[str, ...]
    error_flag: int
    error_type: str | None
    error_sentence_id: int
    error_sentence: str | None
    corrected_sentence: str | None
    corrected_text: str | None
    vignette_id: str
    condition: str
    split: str


def generate(
    split: str,
    *,
    seed: int = 0,
    num_vignettes: int | None = None,
    families: Collection[str] = (),
    wording: str = "all",
) -> list[SyntheticRow]:
    """Error notes and clean twins of a split, two rows a vignette; all texts differ. The same for the same seed.

    Which conditions and phrasings are held out does not depend on the seed. ``num_vignettes`` None gives
    the split's full size (1,600 notes for ``train``). ``wording``: of ``WORDINGS``, for ``train`` alone.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; allowed: {', '.join(SPLITS)}")
    if wording not in WORDINGS:
        raise UserError(f"the embedded corpus has no wording {wording!r}; allowed: {', '.join(WORDINGS)}")
    known = sorted({condition.family for condition in load_conditions()})
    if unknown := sorted(set(families) - set(known)):
        raise UserError(f"the embedded corpus has no family {', '.join(unknown)}; allowed: {', '.join(known)}")
    wanted = set(families or known)
    conditions = [c for c in load_conditions() if c.held_out == (split == "unseen_conditions") and c.family in wanted]
    total = VIGNETTES_PER_CONDITION[split] * len(conditions) if num_vignettes is None else num_vignettes
    rng = random.Random(f"{seed}/{split}")
    rows: list[SyntheticRow] = []
    seen: set[str] = set()
    excess: Counter[tuple[str, str]] = Counter()
    for k in range(total):
        turn, position = divmod(k, len(conditions))
        # Conditions start their round of mistakes at different places, or the first few vignettes of
        # each would all make the same kind of error.
        mistake = _mistake(conditions[position], turn + position, excess, rng)
        for _ in range(100):
            pair = _vignette(conditions[position], mistake, k, split, wording, rng)
            if len({row.text for row in pair} - seen) == len(pair):
                break
        else:
            raise ValueError(f"{num_vignettes} vignettes are more than {split} has different texts for")
        seen |= {row.text for row in pair}
        rows += pair
    return rows


def _vignette(
    condition: Condition, mistake: tuple[str, str], number: int, split: str, wording: str, rng: random.Random
) -> list[SyntheticRow]:
    """The error note and its clean twin."""
    slot, wrong = mistake
    patient = _patient(condition, rng)
    # The twin says the same things in other words: what is mentioned must not tell which of them it is.
    mentioned = set(OPTIONAL)
    if rng.random() < 0.5:  # at least two stay, so that a wrong item stands against several right ones
        mentioned.remove(rng.choice([s for s in OPTIONAL if s != slot]))
    fresh = split == "unseen_renderings"
    said = {"presentation": condition.presentation, "findings": condition.findings}
    known = {kind: [phrases[-1]] if fresh else _part(phrases[:-1], wording) for kind, phrases in said.items()}
    templates = HELD_OUT_TEMPLATES if fresh else {kind: _part(of, wording) for kind, of in TEMPLATES.items()}
    words, other_words = _two_choices(templates, rng)
    phrases, other_phrases = _two_choices(known, rng)
    flawed = _sentences(condition, patient, mentioned, phrases, words, templates["filler"], rng)
    twin = _sentences(condition, patient, mentioned, other_phrases, other_words, templates["filler"], rng)
    right = [text for _, text in flawed]
    where = next(i for i, (kind, _) in enumerate(flawed) if kind == slot)
    bad = right[where].replace(condition.values[slot], wrong)
    texts = [*right[:where], bad, *right[where + 1 :]]
    name = f"syn-{split.replace('_', '-')}-{number:04d}"
    shared = {"vignette_id": name, "condition": condition.name, "split": split}
    return [
        SyntheticRow(f"{name}-e", " ".join(texts), tuple(texts), 1, SLOTS[slot], where, bad, right[where],
                     " ".join(right), **shared),
        SyntheticRow(f"{name}-c", " ".join(t for _, t in twin), tuple(t for _, t in twin), 0, None, -1, None, None,
                     None, **shared),
    ]  # fmt: skip


def _part(options: Sequence[str], wording: str) -> Sequence[str]:
    return options[WORDINGS[wording]] or options


def _two_choices(options: Mapping[str, Sequence[str]], rng: random.Random) -> tuple[dict[str, str], dict[str, str]]:
    """One option of each kind, and another of each where there are two."""
    drawn = {kind: rng.sample(of, min(2, len(of))) for kind, of in options.items()}
    return {kind: of[0] for kind, of in drawn.items()}, {kind: of[-1] for kind, of in drawn.items()}


def _mistake(condition: Condition, turn: int, excess: Counter[tuple[str, str]], rng: random.Random) -> tuple[str, str]:
    """(slot, wrong value): slots in turn, then the value with the least ``excess``.

    ``excess`` counts how often a value stood where it is wrong, less how often it was missing where it is
    right. Kept near 0, a value is as frequent in error notes as in clean ones and its words tell nothing.
    """
    slots = [slot for slot in SLOTS if wrong_values(condition, slot)]
    slot = slots[turn % len(slots)]
    candidates = wrong_values(condition, slot)
    rng.shuffle(candidates)
    wrong = min(candidates, key=lambda value: excess[slot, value])
    excess[slot, wrong] += 1
    excess[slot, condition.values[slot]] -= 1
    return slot, wrong


def _patient(condition: Condition, rng: random.Random) -> dict[str, str]:
    age = rng.randint(*condition.age)
    male = condition.sex == "male" or (condition.sex == "any" and rng.random() < 0.5)
    noun = ("boy" if male else "girl") if age < 18 else ("man" if male else "woman")
    article = "an" if age in (8, 11, 18) or 80 <= age <= 89 else "a"
    person = f"{article} {age}-year-old {noun}"
    pronouns = {"He": "He", "he": "he", "His": "His"} if male else {"He": "She", "he": "she", "His": "Her"}
    return {"a": person, "A": person[0].upper() + person[1:], **pronouns}


def _sentences(
    condition: Condition,
    patient: dict[str, str],
    mentioned: set[str],
    phrases: dict[str, str],
    wording: dict[str, str],
    fillers: Sequence[str],
    rng: random.Random,
) -> list[tuple[str, str]]:
    """(kind, sentence) in the order of a note. ``wording`` has a template for each kind of sentence,
    ``phrases`` what presentation and findings say, ``fillers`` what may come in between."""
    values = {**phrases, **condition.values}
    kinds = ["presentation", "findings", "organism", "diagnosis", *(s for s in OPTIONAL if s in mentioned)]
    kinds = [kind for kind in kinds if kind in values]
    said = [(kind, wording[kind].format(x=values[kind], evidence=condition.evidence, **patient)) for kind in kinds]
    for filler in rng.sample(fillers, rng.randint(0, MOST_FILLERS)):
        said.insert(rng.randint(1, len(said)), ("filler", filler.format(**patient)))
    return said


def write_csv(rows: Iterable[SyntheticRow], path: Path) -> None:
    """MEDEC's nine columns by its conventions: UTF-8, ``k text`` lines, literal NA and -1 for clean notes."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            numbered = "\n".join(f"{k} {sentence}" for k, sentence in enumerate(row.sentences))
            known = (
                *(row.error_type, row.error_sentence_id, row.error_sentence),
                *(row.corrected_sentence, row.corrected_text),
            )
            known_or_na = ("NA" if value is None else value for value in known)
            writer.writerow([row.text_id, row.text, numbered, row.error_flag, *known_or_na])
