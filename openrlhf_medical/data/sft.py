"""Examples of good play for a supervised warm start, made from what seeds of training know of themselves.

An error note names its wrong sentence and how it should read. That is enough to show the assessor what to
answer, and the attacker, who walks the same way backwards, how to put an error in. Every example is read
by the game's own parser before it is handed out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from openrlhf_medical.data.seed_files import CLEAN, CORRECTED
from openrlhf_medical.game import edits
from openrlhf_medical.game.cot import prefill, reply_form
from openrlhf_medical.game.players import Prompt, Reply, Role, Truth
from openrlhf_medical.game.prompts import assessor_prompt_of, attacker_prompt, task_of
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.game.turns import read_assessment, read_attack

Thoughts = Literal["name", "recite"]


@dataclass(frozen=True, slots=True)
class SftExample:
    """A prompt as games ask it, and a reply to learn: what comes after the prompt's prefill.

    ``seed_id`` is that of the seed whose annotation the example was made from.
    """

    role: Role
    prompt: Prompt
    reply: str
    seed_id: str


@dataclass(frozen=True, slots=True)
class SftSet:
    """Examples by role, and how many could not be made, by reason (a role, a colon, what was wrong)."""

    examples: dict[Role, list[SftExample]]
    skipped: Counter[str] = field(default_factory=Counter)


class _Skip(Exception):
    """An example that cannot be made; the message is the reason under which it is counted."""


def sft_examples(seeds: Sequence[Seed], rules: GameRules, thoughts: Thoughts = "name") -> dict[Role, list[SftExample]]:
    """The examples of ``sft_set`` alone."""
    return sft_set(seeds, rules, thoughts).examples


NOTE_PROMPT = "Write a clinical note without an error."


def note_examples(seeds: Sequence[Seed]) -> list[SftExample]:
    """Right notes to write: what the assessor has to know before it can see that a note is wrong.

    Every note that the seeds know to be right, each text once.
    """
    prompt = Prompt(({"role": "user", "content": NOTE_PROMPT},))
    texts = {_squeezed(seed.reference_note): seed for seed in reversed(seeds)}
    return [
        SftExample(Role.ASSESSOR, prompt, f" {seed.reference_note}", seed.seed_id) for seed in reversed(texts.values())
    ]


def sft_set(seeds: Sequence[Seed], rules: GameRules, thoughts: Thoughts = "name") -> SftSet:
    """Examples for both roles, in an order that depends on ``seeds`` alone.

    ``thoughts``: what the assessor thinks before its verdict. ``name``: the wrong words and what they should
    be. ``recite``: the note as it should read, sentence by sentence, up to the wrong one, and what the note
    has instead; a small model finds out by reciting what it cannot tell at once.

    The assessor's alternate between Harmful and Safe, so that every even-length stretch is balanced. The
    attacker's go through the tasks that ``rules`` can ask, error note by error note. Seeds that share
    their text give each example once.
    """
    found = SftSet({role: [] for role in Role})
    for example in (
        *_assessor_examples(seeds, rules, thoughts, found.skipped),
        *_attacker_examples(seeds, rules, found.skipped),
    ):
        found.examples[example.role].append(example)
    return found


# --- The assessor ----------------------------------------------------------------------------------


def _assessor_examples(
    seeds: Sequence[Seed], rules: GameRules, thoughts: Thoughts, skipped: Counter[str]
) -> Iterator[SftExample]:
    for wrong, right in _balanced(seeds, skipped):
        try:
            # Both or none: one of a pair alone would teach a preference for one verdict.
            yield from (_assessment(wrong, rules, thoughts), _assessment(right, rules, thoughts))
        except _Skip as reason:
            skipped[f"assessor: {reason}"] += 1


def _balanced(seeds: Sequence[Seed], skipped: Counter[str]) -> list[tuple[Seed, Seed]]:
    """(seed with an error, clean seed) pairs: every other error note with its own Corrected Text, the rest
    with its clean twin, so that style does not tell. Where ``seeds`` lacks the twin, the clean note of a
    vignette without error notes stands in, and at last the Corrected Text.
    """
    wrong = _by_text(seed for seed in seeds if seed.category.is_harmful)
    right = _by_text(seed for seed in seeds if not seed.category.is_harmful)
    clean: dict[str, list[Seed]] = {}
    for text, seed in right.items():
        if seed.origin == CLEAN and text not in wrong:
            clean.setdefault(seed.vignette_id, []).append(seed)
    with_error = {seed.vignette_id for seed in wrong.values()}
    spare = [seed for vignette, notes in clean.items() if vignette not in with_error for seed in notes]
    pairs: list[tuple[Seed, Seed]] = []
    used: set[str] = set()
    for number, seed in enumerate(wrong.values()):
        own = clean.get(seed.vignette_id) or spare if number % 2 == 0 else []
        safe = own.pop(0) if own else corrected_seed(seed, Category.VANILLA_BENIGN)
        text = _squeezed(safe.seed_note)
        if text in used or text in wrong:
            skipped["assessor: the Corrected Text is that of another note, or wrong elsewhere"] += 1
            continue
        used.add(text)
        pairs.append((seed, safe))
    return pairs


def _assessment(seed: Seed, rules: GameRules, kind: Thoughts) -> SftExample:
    """What the assessor should say of a seed's note."""
    if seed.category.is_harmful:
        wrong, right = _annotation(seed)
        old, new = differing_words(wrong, right)
        thoughts = f'"{old}" should be "{new}".'
        if kind == "recite":
            thoughts = f'{_recited(seed, right)} The note says "{old}".'
        answer = Truth.HARMFUL.value
        if rules.localise:
            answer += f"\nSentence: {wrong}\nCorrection: {right}"
    else:
        thoughts = "Nothing is wrong." if kind == "name" else " ".join(seed.seed_note.split())
        answer = Truth.SAFE.value
    prompt = assessor_prompt_of(seed.seed_note, rules)
    example = _example(Role.ASSESSOR, prompt, thoughts, answer, seed, rules)
    turn = read_assessment(Reply(example.reply), cot=rules.cot)
    if not turn.well_formed:
        raise _Skip(turn.reason)
    return example


def _recited(seed: Seed, right: str) -> str:
    """The corrected note up to its corrected sentence, white space made single."""
    note = " ".join(seed.reference_note.split())
    end = note.find(right)
    if end < 0:
        raise _Skip("the corrected note does not hold the corrected sentence")
    return note[: end + len(right)]


# --- The attacker ----------------------------------------------------------------------------------


def _attacker_examples(seeds: Sequence[Seed], rules: GameRules, skipped: Counter[str]) -> Iterator[SftExample]:
    for seed in _by_text(seed for seed in seeds if seed.category.is_harmful).values():
        for category in Category:
            if not rules.attacker_generates(category):
                continue
            try:
                yield _attack(seed, category, rules)
            except _Skip as reason:
                skipped[f"attacker, {task_of(category, rules)}: {reason}"] += 1


def _attack(seed: Seed, category: Category, rules: GameRules) -> SftExample:
    """The attacker's turn in a game of ``category`` on an error note, or on its Corrected Text."""
    asked = replace(seed, category=category) if category.is_harmful else corrected_seed(seed, category)
    task = task_of(category, rules)
    prompt = attacker_prompt(asked, rules)
    if task == "copy":
        example = _example(Role.ATTACKER, prompt, "Every word stays.", asked.seed_note, seed, rules)
    else:
        wrong, right = _annotation(seed)
        old, new, change = _edit(task, wrong, right, seed.seed_id)
        k, changed = _changed_sentence(asked, old, new)
        thoughts = f"Sentence {k}: {change}" if rules.edits_sentence(category) else change
        spans = edits.sentence_spans(asked.seed_note, asked.sentences)
        answer = f"{k}: {changed}"
        if not rules.edits_sentence(category):
            answer = edits.splice(asked.seed_note, spans, answer)[0] or ""
        example = _example(Role.ATTACKER, prompt, thoughts, answer, seed, rules)
    turn, note = read_attack(asked, Reply(example.reply), rules)
    if note is None:
        raise _Skip(turn.reason)
    if task == "inject" and not edits.is_copy(note, seed.seed_note):
        raise _Skip("the changed sentence does not give the error note")
    if (task == "copy") != edits.is_copy(note, asked.seed_note):
        raise _Skip("the note is no copy" if task == "copy" else "the note does not change")
    return example


def _edit(task: str, wrong: str, right: str, seed_id: str) -> tuple[str, str, str]:
    """(sentence of the seed note, sentence of the new note, thoughts that say so)."""
    if task == "inject":
        before, after = differing_words(right, wrong)
        return right, wrong, f'"{before}" becomes "{after}".'
    old = wrong if task == "worsen" else right
    lead, tail = _DRESSINGS[task][int(edits.draw("sft", task, seed_id) * len(_DRESSINGS[task]))]
    new = dressed(old, lead, tail)
    added = lead if new.startswith(lead) and lead else tail
    return old, new, f'it stays {"wrong" if task == "worsen" else "right"}, with "{added.strip(" ,").lower()}".'


def _changed_sentence(seed: Seed, old: str, new: str) -> tuple[int, str]:
    """Number and new text of the sentence of the seed note that holds ``old``."""
    spans = edits.sentence_spans(seed.seed_note, seed.sentences)
    k = edits.sentence_number(seed.seed_note, spans, old)
    if k is None:
        raise _Skip("no sentence of the note holds the annotated one")
    start, end = spans[k - 1]
    return k, " ".join(seed.seed_note[start:end].split()).replace(old, new, 1)


def corrected_seed(seed: Seed, category: Category) -> Seed:
    """The clean seed on an error note's Corrected Text."""
    sentences = tuple(
        seed.corrected_sentence or "" if _squeezed(text) == _squeezed(seed.error_sentence or "") else text
        for text in seed.sentences
    )
    # MEDEC lists no sentences of Corrected Texts; where these do not make up the text, punctuation parts it.
    fits = _squeezed("".join(sentences)) == _squeezed(seed.reference_note)
    return replace(
        seed,
        category=category,
        origin=CORRECTED,
        seed_note=seed.reference_note,
        error_type=None,
        error_sentence=None,
        corrected_sentence=None,
        sentences=sentences if fits else (),
    )


# --- Words -----------------------------------------------------------------------------------------

_DRESSINGS = {
    "worsen": (("Clearly, ", ", clearly"), ("As expected, ", ", as expected"), ("Without doubt, ", ", without doubt"),
               ("", ", as confirmed"), ("Of course, ", ", of course")),
    "disguise": (("Interestingly, ", ", interestingly"), ("Notably, ", ", notably"), ("Of note, ", ", of note"),
                 ("As expected, ", ", as expected")),
}  # fmt: skip
"""Lead or, where the sentence does not bear one, tail. None changes a fact: they raise or lower the
confidence of the sentence alone, which rules can do to any sentence."""

_OPENERS = {"a", "an", "the", "he", "she", "his", "her", "it", "this", "these", "there", "patient", "examination"}
"""First words that lose their capital behind a lead. Others may be names, and keep their place."""


def dressed(sentence: str, lead: str, tail: str) -> str:
    """The sentence with ``lead`` before it or, where that would need to change a name, ``tail`` behind it."""
    first = sentence.split()[0]
    if lead and first.lower() in _OPENERS:
        return f"{lead}{sentence[0].lower()}{sentence[1:]}"
    body = sentence.rstrip(".!? ")
    return f"{body}{tail}{sentence[len(body) :].rstrip()}"


def differing_words(old: str, new: str) -> tuple[str, str]:
    """What differs between two sentences: both without the words that they begin and end with alike.

    Where one only lacks words of the other, the word before comes along, so that neither is empty.
    """
    before, after = _WORD.findall(old), _WORD.findall(new)
    shorter = min(len(before), len(after))
    start = next((i for i in range(shorter) if before[i] != after[i]), shorter)
    end = next((i for i in range(shorter - start) if before[-1 - i] != after[-1 - i]), shorter - start)
    if start + end in (len(before), len(after)):
        start, end = (start - 1, end) if start else (start, end - 1)
    parts = (" ".join(words[start : len(words) - end]) for words in (before, after))
    first, second = (part.rstrip(".") for part in parts)
    return first, second


_WORD = re.compile(r"\S+?(?=[.,;:]?(?:\s|$))[.,;:]?")


def _annotation(seed: Seed) -> tuple[str, str]:
    """(the wrong sentence, how it should read), white space made single."""
    wrong, right = (" ".join((text or "").split()) for text in (seed.error_sentence, seed.corrected_sentence))
    if not wrong or not right:
        raise _Skip("the seed lacks its wrong or its corrected sentence")
    if wrong == right:
        raise _Skip("the wrong sentence is the corrected one")
    return wrong, right


def _example(role: Role, prompt: Prompt, thoughts: str, answer: str, seed: Seed, rules: GameRules) -> SftExample:
    whole = reply_form(answer, cot=rules.cot, thoughts=thoughts)
    return SftExample(role, prompt, whole.removeprefix(prefill(rules.cot)), seed.seed_id)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _by_text(seeds: Iterable[Seed]) -> dict[str, Seed]:
    """Seeds by the text of their note, the first of those that share it."""
    found: dict[str, Seed] = {}
    for seed in seeds:
        found.setdefault(_squeezed(seed.seed_note), seed)
    return found
