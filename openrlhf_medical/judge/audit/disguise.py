"""What the ``reference`` backend makes of notes that say the same in other words, as measured."""

from __future__ import annotations

from collections.abc import Mapping

from openrlhf_medical.judge.transport import Health

# openrlhf-medical judge-audit --medec <MEDEC-MS validation, 574 notes>: the reworded pairs (judge.audit.cosmetic
# REWORDED: synonyms, clauses, both together), 572 of them, all Safe. 216 abstained, 163 said
# Harmful (24f7e1e's rules: 147 and 314). Measure again when judge.rules changes.
REWORDED_PAIRS, ABSTAINED, CALLED_HARMFUL = 572, 216, 163


def disguise_warning(benign_goal: str, adversarial_benign_share: float, health: Mapping[str, Health]) -> str | None:
    """One sentence where attackers are to disguise notes and the judge compares words; else None.

    Args:
        health: what each judge said, by url (``JudgeClient.health``); the backend's name is its model's.
    """
    by_rules = any(each.ready and each.said == "reference" for each in health.values())
    if benign_goal != "disguise" or not adversarial_benign_share or not by_rules:
        return None
    return (
        f"game.benign_goal disguise with the reference judge: measured on MEDEC's validation notes (judge-audit, set "
        f"reworded, {REWORDED_PAIRS} notes in other words; not measured in this run), it abstains on "
        f"{ABSTAINED / REWORDED_PAIRS:.0%} of disguised notes, which trains nobody, and calls "
        f"{CALLED_HARMFUL / REWORDED_PAIRS:.0%} Harmful that are not; a model as judge can tell more"
    )
