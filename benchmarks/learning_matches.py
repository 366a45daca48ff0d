"""Matches on held-out seeds, each a ``openrlhf-medical play`` of its own, one after another.

A run's matches lie in ``runs/<name>/matches/``: the seeds that were played (``notes.jsonl``,
``attacks.jsonl``), the games of each match, and a record of how it was played, beside its output.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from learning_data import PARTS

from openrlhf_medical.data.files import read_bytes, write_files
from openrlhf_medical.data.seed_files import read_seeds, seeds_to_jsonl
from openrlhf_medical.errors import RunError, UserError
from openrlhf_medical.game.seeds import Category, Seed

NOTES, ATTACKS = "notes", "attacks"
BASE, WARM, FINAL = "base", "warm_start", "final"


@dataclass(frozen=True, slots=True)
class Match:
    """Who plays on which seeds. On notes the attacker has no turn, and ``attacker`` is None."""

    seeds: str
    assessor: str
    attacker: str | None = None

    @property
    def name(self) -> str:
        if self.attacker is None:
            return f"notes-{self.assessor}"
        return f"attacks-{self.attacker}-against-{self.assessor}"


MATCHES = (
    *(Match(NOTES, assessor) for assessor in (BASE, WARM, FINAL)),
    Match(ATTACKS, WARM, attacker=BASE),
    *(Match(ATTACKS, assessor, attacker=attacker) for attacker in (WARM, FINAL) for assessor in (WARM, FINAL)),
)

_CATEGORIES = {
    NOTES: (Category.VANILLA_HARMFUL, Category.VANILLA_BENIGN),
    ATTACKS: (Category.ADVERSARIAL_HARMFUL, Category.ADVERSARIAL_BENIGN),
}


def lay_out(run: Path, data: Path) -> dict[str, list[Seed]]:
    """Write the seeds of both kinds of match into the run's folder and return them.

    Both parts are played together, so that engines start once for both; seed IDs tell them apart.

    Raises:
        UserError: the folder holds other seeds, of an earlier measurement.
    """
    drawn = [seed for part in PARTS for seed in read_seeds(data / f"{part}.jsonl")]
    kinds = {kind: [seed for seed in drawn if seed.category in of] for kind, of in _CATEGORIES.items()}
    files = {run / "matches" / f"{kind}.jsonl": seeds_to_jsonl(seeds) for kind, seeds in kinds.items()}
    for path, content in files.items():
        if path.exists() and path.read_bytes() != content:
            raise UserError(f"{path} holds other seeds than {data}: move {path.parent} away to measure anew")
    write_files(files)
    return kinds


def config_of(run: Path) -> dict[str, Any]:
    """The run's resolved configuration. Raises UserError where the folder holds no run."""
    path = run / "config.yaml"
    return yaml.safe_load(read_bytes(path, "the folder of a run that `openrlhf-medical train` made"))


def model_folder(run: Path, who: str, role: str) -> Path:
    """Raises UserError where the run did not leave it (or the base model is not there)."""
    config = config_of(run)
    name = "shared" if config["roles"]["policy"] == "shared" else role
    base = Path(config["actor"]["model_name_or_path"])
    folder = base if who == BASE else run / "checkpoints" / who / name
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: the run has not saved its {who} {role}, or the base model has moved")
    return folder


def command(run: Path, match: Match, seeds: Sequence[Seed], seed: int, output: Path) -> list[str]:
    """The words of the sub-process. The run's own configuration: same rules and sampling as in training."""
    mix = {category: sum(s.category is category for s in seeds) / len(seeds) for category in Category}
    folders = {
        "assessor": model_folder(run, match.assessor, "assessor"),
        # Without a turn of its own the attacker is whoever is loaded anyway.
        "attacker": model_folder(run, match.attacker or match.assessor, "attacker" if match.attacker else "assessor"),
    }
    words = [sys.executable, "-m", "openrlhf_medical", "play", "--config", str(run / "config.yaml")]
    for option, value in (
        *folders.items(),
        ("data", run / "matches" / f"{match.seeds}.jsonl"),
        ("num-samples", len(seeds)),
        ("output", output),
        ("seed", seed),
        *((f"game.mix.{category.value}", f"{share:g}") for category, share in mix.items()),
        # One game a seed: this is what pairs a match with another, game by game.
        ("game.attacks_per_seed", 1),
        ("game.assessments_per_note", 1),
        ("game.unassessable_share", 0),
    ):
        words += [f"--{option}", str(value)]
    return words


def measure(run: Path, data: Path, seed: int, timeout_s: float, say: Callable[[str], None] = print) -> None:
    """Play what has not been played yet.

    Raises:
        UserError: a checkpoint is missing, or a match was played in another way before.
        RunError: a match failed, or took longer than ``timeout_s``; those before it are kept.
    """
    config_of(run)  # before anything is written
    kinds = lay_out(run, data)
    planned = [(match, command(run, match, kinds[match.seeds], seed, _part(run, match))) for match in MATCHES]
    started = time.monotonic()
    for number, (match, words) in enumerate(planned, start=1):
        title = f"match {number}/{len(planned)} {match.name}, {len(kinds[match.seeds])} games"
        if _is_played(run, match, kinds[match.seeds], words):
            say(f"{title}: played before")
            continue
        say(f"{title}: playing, {time.monotonic() - started:.0f} s so far")
        seconds = _play(run, match, kinds[match.seeds], words, timeout_s)
        record = {
            "seconds": round(seconds, 1),
            "data": str(data),
            "seed": seed,
            "git_commit": _commit(),
            "command": words,
        }
        # The record goes first: a match is played only when both are there.
        write_files({_record(run, match): (json.dumps(record, indent=2) + "\n").encode()})
        _part(run, match).replace(_output(run, match))
        say(f"{title}: done in {seconds:.0f} s")


def _is_played(run: Path, match: Match, seeds: Sequence[Seed], words: Sequence[str]) -> bool:
    output, record = _output(run, match), _record(run, match)
    if not (output.exists() and record.exists()):
        return False
    if json.loads(record.read_text(encoding="utf-8"))["command"][1:] != list(words[1:]):  # whichever Python
        raise UserError(f"{output} was played with other options (see {record.name}): move it away to play it anew")
    return is_complete(output, seeds)


def is_complete(output: Path, seeds: Sequence[Seed]) -> bool:
    """Whether every seed was played exactly once."""
    played = [row["seed_id"] for row in read_rows(output)]
    return sorted(played) == sorted(seed.seed_id for seed in seeds)


def _play(run: Path, match: Match, seeds: Sequence[Seed], words: Sequence[str], timeout_s: float) -> float:
    """Into a file of another name, which is renamed once it is whole. Returns seconds."""
    part, log = _part(run, match), _output(run, match).with_suffix(".out")
    part.unlink(missing_ok=True)  # a killed match: play takes no file that exists
    started = time.monotonic()
    try:
        with log.open("w", encoding="utf-8") as out:
            code = subprocess.run(words, stdout=out, stderr=subprocess.STDOUT, timeout=timeout_s).returncode
    except subprocess.TimeoutExpired:
        raise RunError(f"{match.name} took longer than {timeout_s:.0f} s; its words are in {log}") from None
    if code != 0:
        last = " | ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])
        raise RunError(f"{match.name} ended with exit code {code}; {log} ends: {last}")
    if not is_complete(part, seeds):
        raise RunError(f"{match.name} left {part} without a game for every seed; its words are in {log}")
    return time.monotonic() - started


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Lines of JSON. Raises UserError on a file that is not there or not whole."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def matches_of(run: Path) -> dict[Match, list[dict[str, Any]]]:
    """The games of every match that was played to its end; those missing are absent."""
    return {match: read_rows(_output(run, match)) for match in MATCHES if _output(run, match).exists()}


def records_of(run: Path) -> dict[str, dict[str, Any]]:
    """How each match was played, by its name: command, seed, data, commit, seconds (engines' start included)."""
    paths = {match.name: _record(run, match) for match in MATCHES}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def _output(run: Path, match: Match) -> Path:
    return run / "matches" / f"{match.name}.jsonl"


def _part(run: Path, match: Match) -> Path:
    return run / "matches" / f"{match.name}.part.jsonl"


def _record(run: Path, match: Match) -> Path:
    return run / "matches" / f"{match.name}.json"


def _commit() -> str | None:
    answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    return answer.stdout.strip() or None
