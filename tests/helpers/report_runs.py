"""Run folders as training leaves them, made in a second: embedded synthetic notes, scripted replies."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from openrlhf_medical.data.synthetic import generate
from openrlhf_medical.game.edits import sentence_spans

CATEGORIES = ("vanilla_harmful", "adversarial_harmful", "vanilla_benign", "adversarial_benign")
SCRIPT = '</script><script>window.broken = 1</script><img src=x onerror="window.broken = 1">'
CONFIG = """\
run: {name: NAME, steps: STEPS, eval_games: 8}
actor: {model_name_or_path: models/tiny, adam: {lr: LR}}
judge: {probe_alarm: 0.8}
"""


def write_run(
    folder: Path, *, steps: int = 6, games_per_step: int = 16, held_out: int = 8, name: str = "example",
    lr: float = 1e-5, seed: int = 0,
) -> Path:  # fmt: skip
    """A run that ended well, in ``folder``."""
    rng = random.Random(seed)
    notes = _notes()
    (folder / "checkpoints" / "final").mkdir(parents=True)
    text = CONFIG.replace("NAME", name).replace("STEPS", str(steps)).replace("LR", str(lr))
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "versions": {"ray": "2.55.0"}, "gpus": []}))
    (folder / "run.log").write_text(
        "2026-11-27 10:00:00,1\tINFO x.py:1 -- noise\n"
        "2026-11-27 10:00:01,123 WARNING openrlhf_medical.console: step 2: always_harmful (assessor): 96 % of 16\n"
    )
    rows = [{"step": -1, "time": 1.0, **{f"eval/{k}": v for k, v in figures(0, rng).items() if "/" in k}}]
    rows += [{"step": s, "time": 2.0 + s, **figures(s / max(1, steps), rng), **timings(rng)} for s in range(steps)]
    rows += [{"step": steps, "time": 9e3, **{f"eval/{k}": v for k, v in figures(1, rng).items()}}]
    write_lines(folder / "metrics.jsonl", rows)
    games = [game(-1, i, notes, rng) for i in range(held_out)]
    games += [game(step, i, notes, rng) for step in range(steps) for i in range(games_per_step)]
    games += [game(steps, i, notes, rng) for i in range(held_out)]
    write_lines(folder / "games.jsonl", games)
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def figures(progress: float, rng: random.Random) -> dict[str, float]:
    """Figures of a run that learns."""
    near = lambda value: min(1.0, max(0.0, value + rng.uniform(-0.05, 0.05)))  # noqa: E731
    found = {
        "assessor/accuracy": near(0.5 + 0.3 * progress),
        "assessor/balanced_accuracy": near(0.45 + 0.35 * progress),
        "assessor/false_positive_rate": near(0.7 - 0.5 * progress),
        "assessor/false_negative_rate": near(0.3 - 0.1 * progress),
        "assessor/judged": 40.0,
        "assessor/harmful_share": 0.6,
        "attacker/success_rate": near(0.1 + 0.1 * progress),
        "attacker/faithful_rate": near(0.3 + 0.3 * progress),
        "reward/zero_sum_residual": 0.0,
        "judge/abstain_rate": near(0.05),
        "judge/error_rate": 0.0,
        "judge/gold_balanced_accuracy": near(0.95),
    }
    for role in ("attacker", "assessor"):
        sign = 1 if role == "assessor" else -1
        found[f"format/{role}/violation_rate"] = near(0.4 - 0.35 * progress)
        found[f"reward/{role}/mean"] = sign * progress + 0.5
        for component in ("res_harm", "res_refusal", "format"):
            found[f"reward/{role}/{component}"] = sign * 0.5 * progress + rng.uniform(-0.1, 0.1)
        for name, value in (("kl", 0.02 * progress), ("entropy", 1.2 - 0.4 * progress), ("grad_norm", 1.5),
                            ("clip_fraction", 0.01), ("equal_reward_share", 0.2), ("samples", 12.0)):  # fmt: skip
            found[f"policy/{role}/{name}"] = value + rng.uniform(0, 0.05)
        for category in CATEGORIES:
            found[f"game/{category}/trained_{role}"] = float(rng.randrange(2, 5))
            found[f"game/{category}/tie"] = float(rng.randrange(2))
    return found


def timings(rng: random.Random) -> dict[str, float]:
    phases = {f"time/{phase}_s": rng.uniform(2, 9) for phase in ("games", "log_probs", "update", "sync")}
    return phases | {
        "time/step_s": sum(phases.values()) + 0.7,
        "throughput/games_per_s": rng.uniform(1, 2),
        "throughput/tokens_per_s": rng.uniform(80, 120),
        "judge/latency_s": rng.uniform(0.01, 0.05),
    }


def game(
    step: int, game_idx: int, notes: list[tuple[str, str]], rng: random.Random, *, extra: str = ""
) -> dict[str, Any]:
    """One line of games.jsonl. ``extra`` is put into everything that a model or a data set writes."""
    category = CATEGORIES[game_idx % 4]
    error, clean = rng.choice(notes)
    seed = (error if category.endswith("_harmful") else clean) + extra
    writes = category.startswith("adversarial")
    status = rng.choices(("ok", "forfeit", "abstain"), (8, 1, 1))[0] if writes else "ok"
    answer = _edited(seed, notes, rng) if writes else None
    presented = None if status == "forfeit" else answer or seed
    truth = None if status != "ok" else "Harmful" if category != "vanilla_benign" else "Safe"
    said = rng.choices(("Harmful", "Safe", None), (5, 4, 1))[0]
    case = {"forfeit": "forfeit", "abstain": None}.get(
        status, "unparsable" if said is None else "right" if said == truth else "wrong"
    )
    won = case == "right"
    result = {"res_harm": 1.0 if won else -1.0, "res_refusal": 0.0 if said is None else 0.5} if case else {}
    turn = {"trained": bool(case), "policy_version": max(0, step), "player": "shared", "frozen": False}
    attacker = {
        "thinking": _thought(notes, rng) + extra, "answer": None if status == "forfeit" else answer,
        "status": "forfeit" if status == "forfeit" else "ok",
        "reward": {k: -v for k, v in result.items()} | ({"revision": 0.5, "format": 1.0} if case else {}), **turn,
    }  # fmt: skip
    assessor = {
        "thinking": _thought(notes, rng) + extra, "answer": (said or "I cannot say") + extra, "verdict": said,
        "status": "verdict" if said else "unparsable", "reward": result | ({"format": 1.0} if case else {}), **turn,
    }  # fmt: skip
    label: dict[str, Any] | None = {
        "source": "data",
        "status": "ok",
        "actual_harm": truth,
        "error_present": truth == "Harmful",
    }
    if writes:
        label = {"source": "judge", "status": status, "actual_harm": truth, "error_present": truth and True,
                 "note_valid": True, "kind": "finding", "judge_reasoning": _thought(notes, rng) + extra}  # fmt: skip
    return {
        "step": step, "game_idx": game_idx, "category": category, "note_id": f"syn-{rng.randrange(2000):04}{extra}",
        "seed_note": seed, "reference_note": clean, "presented_note": presented, "status": status,
        "attacker": attacker if writes else None, "assessor": None if status == "forfeit" else assessor,
        "label": None if status == "forfeit" else label, "seed_id": "s", "attack_idx": 0, "assessment_idx": 0,
        "groups": {}, "case": case, "faithful": status == "ok" if writes else None,
        "booked": {} if writes or not case else {"attacker": {k: -v for k, v in result.items()}},
        "reason": "" if status == "ok" else f"{status}{extra}", "judge_failures": [],
    }  # fmt: skip


def _notes() -> list[tuple[str, str]]:
    """(error note, its correction) of the embedded corpus."""
    rows = generate("train", num_vignettes=200)
    return [(row.text, row.corrected_text or "") for row in rows if row.error_flag]


def _sentences(note: str) -> list[str]:
    return [note[start:end] for start, end in sentence_spans(note)]


def _edited(note: str, notes: list[tuple[str, str]], rng: random.Random) -> str:
    """The note with one sentence of another in the place of one of its own: what an attacker writes."""
    sentences = _sentences(note)
    sentences[rng.randrange(len(sentences))] = rng.choice(_sentences(rng.choice(notes)[0]))
    return " ".join(sentences)


def _thought(notes: list[tuple[str, str]], rng: random.Random) -> str:
    """Some sentences of several notes: text that no two games share, so that it does not compress as copies do."""
    return " ".join(rng.choice(_sentences(rng.choice(notes)[0])) for _ in range(rng.randrange(2, 7)))
