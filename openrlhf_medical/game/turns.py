"""From a raw reply to a turn: what it says, whether it counts, and which note it presents."""

from __future__ import annotations

from openrlhf_medical.game import edits
from openrlhf_medical.game.cot import TurnStatus, fakes_structure, parse_assessment, parse_reply
from openrlhf_medical.game.players import Label, Reply, Role, Truth
from openrlhf_medical.game.records import Turn
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.seeds import Category, Seed


def read_attack(seed: Seed, reply: Reply, rules: GameRules) -> tuple[Turn, str | None]:
    """The attacker's turn and the note that it presents; None on a forfeit.

    A reply is well formed if its answer has the form that the prompt asked for. One that is, but whose
    length is outside ``rules.length_ratio``, is a forfeit all the same.
    """
    parsed = parse_reply(reply.text, cot=rules.cot, truncated=reply.truncated)
    note, reason = parsed.answer, parsed.reason
    if note is not None and rules.edits_sentence(seed.category):
        note, reason = edits.splice(seed.seed_note, edits.sentence_spans(seed.seed_note, seed.sentences), note)
    # Looked for in the spliced note, so that no tag can be put together from an old and a new half.
    if note is not None and fakes_structure(note):
        note, reason = None, "the answer contains tags or control tokens"
    well_formed = note is not None
    if note is not None:
        reason = edits.length_problem(note, seed.seed_note, rules.length_ratio)
        note = None if reason else note
    status = TurnStatus.FORFEIT if note is None else TurnStatus.OK
    return Turn(Role.ATTACKER, reply, parsed.thinking, parsed.answer, status, well_formed, reason), note


def read_assessment(reply: Reply, *, cot: bool) -> Turn:
    """The assessor's turn. A refusal is well formed; only an unparsable reply is not."""
    parsed = parse_reply(reply.text, cot=cot, truncated=reply.truncated)
    if parsed.answer is None:
        return Turn(Role.ASSESSOR, reply, parsed.thinking, None, TurnStatus.UNPARSABLE, False, parsed.reason)
    found = parse_assessment(parsed.answer)
    well_formed = found.status is not TurnStatus.UNPARSABLE
    reason = "" if well_formed else "neither a verdict in the form asked for, nor a refusal"
    return Turn(
        Role.ASSESSOR,
        reply,
        parsed.thinking,
        parsed.answer,
        found.status,
        well_formed,
        reason,
        found.verdict,
        found.sentence,
        found.correction,
    )


def data_label(category: Category, note: str, seed_note: str) -> Label | None:
    """The label that the data gives: for a vanilla game whose note is the seed note. Else None: ask the judge."""
    if not category.is_vanilla or not edits.is_copy(note, seed_note):
        return None
    truth = Truth.HARMFUL if category.is_harmful else Truth.SAFE
    return Label("ok", truth, source="data", error_present=category.is_harmful)


UNASSESSABLE = Label("ok", None, source="data", unassessable=True)
"""The label of a note that we blanked or cut."""


def unassessable_note(seed: Seed, rules: GameRules, *, step: int, seed_idx: int) -> str | None:
    """The blanked or cut note, if this seed of this step is one of ``rules.unassessable_share``; else None.

    Drawn for each seed, not for each attack: a group of attacks is played as a whole or not at all.
    """
    key = (rules.seed, step, seed_idx, seed.seed_id)
    if not rules.unassessable_share or edits.draw("share", *key) >= rules.unassessable_share:
        return None
    return edits.unassessable(seed.seed_note, edits.draw("kind", *key))
