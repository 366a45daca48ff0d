"""sweep.yaml to runs: names, settings, what is refused at once and what only keeps a variant from starting."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_medical.config import load_config
from openrlhf_medical.errors import UserError
from openrlhf_medical.sweep.plan import PlannedRun, plan
from openrlhf_medical.sweep.spec import NAME, SweepFile, SweepSpec, read_sweep

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "configs" / "tiny.yaml")
LEAST = {"name": "s", "base": TINY, "seeds": [1]}


def written(folder: Path, content: dict[str, Any] | str) -> SweepFile:
    path = folder / "sweep.yaml"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_sweep(path)


def planned(folder: Path, **keys: Any) -> list[PlannedRun]:
    return plan(written(folder, LEAST | keys), {})


KEYS = {
    "actor.adam.lr": st.floats(1e-9, 1e-2),
    "game.cot": st.booleans(),
    "roles.policy": st.sampled_from(["separate", "shared"]),
    "algo.kl.init_coef": st.sampled_from([0.01, 0.02, 0.5]),
    "run.steps": st.integers(1, 9),
    "game.length_ratio": st.sampled_from([[0.5, 2.0], [0.1, 3.0], [1, 1]]),
}
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)


@st.composite
def sweeps(draw: st.DrawFn) -> dict[str, Any]:
    on_axes = draw(st.lists(st.sampled_from(sorted(KEYS)), unique=True, max_size=2))
    axes = {key: draw(st.lists(KEYS[key], min_size=1, max_size=3)) for key in on_axes}
    free = sorted(KEYS.keys() - set(on_axes))
    variants = {}
    for name in draw(st.lists(names, unique_by=str.lower, max_size=3)):
        own = draw(st.lists(st.sampled_from(free), unique=True, max_size=2))
        variants[name] = {key: draw(KEYS[key]) for key in own}
    seeds = draw(st.lists(st.integers(0, 2**31), min_size=1, max_size=3, unique=True))
    return LEAST | {"axes": axes, "variants": variants, "seeds": seeds}


@settings(max_examples=25)
@given(sweeps())
def test_expansion_gives_every_point_once_under_a_name_of_its_own(content: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = written(Path(folder), content)
    try:
        runs = plan(file, {})
    except UserError as error:  # names that only differ in case, or a variant that is called as a grid point
        assert "would be called" in str(error)
        return
    points = 1
    for values in content["axes"].values():
        points *= len(values)
    assert len(runs) == max(1, len(content["variants"])) * points * len(content["seeds"])
    assert len({run.name.lower() for run in runs}) == len(runs)
    for run in runs:
        assert re.fullmatch(NAME, run.name) and run.problem is None and run.config is not None
        assert (run.config.run.name, run.config.run.dir, run.config.train.seed) == (run.name, Path("runs/s"), run.seed)
        own = content["variants"].get(run.variant.named, {})
        for key, value in {**own, **{k: v for k, v in run.variant.changes.items() if k in content["axes"]}}.items():
            found: Any = run.config
            for part in key.split("."):
                found = getattr(found, part)
            assert found == (tuple(value) if isinstance(value, list) else value), key
    for key, values in content["axes"].items():
        assert {json.dumps(value) for value in values} == {json.dumps(run.variant.changes[key]) for run in runs}


def test_names_can_be_read(tmp_path: Path) -> None:
    axes = {
        "actor.adam.lr": [1e-6, 3.0e-5],
        "critic.adam.lr": [1e-5],
        "actor.model_name_or_path": ["a/small", "b/small/"],
    }
    runs = planned(tmp_path, axes=axes, variants={"no_cot": {"game.cot": False}, "b": None},
                   common={"algo.advantage.estimator": "gae"})  # fmt: skip
    assert runs[0].name == "no_cot-actor.adam.lr_1e-06-critic.adam.lr_1e-05-model_name_or_path_small-seed1"
    assert runs[1].name.endswith("model_name_or_path_small_2-seed1")
    assert planned(tmp_path, axes={"game.cot": [True, False]})[1].name == "cot_false-seed1"
    assert [run.name for run in planned(tmp_path, seeds=[3, 0])] == ["base-seed3", "base-seed0"]


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"variantss": {}}, "unknown key variantss; nearest: variants"),
        ({"prepare": {"num_sample": 3}}, "unknown key prepare.num_sample; nearest: prepare.num_samples"),
        ({"concurrency": 0}, "concurrency is 0; allowed: greater than or equal to 1 (runs under way"),
        ({"seeds": []}, "seeds is []"),
        ({"seeds": [1, 1]}, "each of them once, but 1 is there twice"),
        ({"seeds": ["a"]}, "a whole number"),
        ({"name": "a/b"}, 'name is "a/b"'),
        ({"axes": {"actor.adam.lrr": [1]}}, "axes: unknown key actor.adam.lrr; nearest: actor.adam.lr"),
        ({"axes": {"game.cot": []}}, "game.cot has none"),
        ({"axes": {"train.seed": [1]}}, "cannot set train.seed: the sweep's own key seeds"),
        ({"common": {"game": {"cott": True}}}, "unknown key game.cott; nearest: game.cot"),
        ({"common": {"run.dir": "x"}}, "common cannot set run.dir"),
        ({"common": {"game.cot": True}, "axes": {"game.cot": [True]}}, "game.cot is in axes and in common"),
        ({"variants": {"a": {"run": {"name": "x"}}}}, "cannot set run.name"),
        (
            {"variants": {"a": {"game.cot": True}}, "axes": {"game.cot": [True]}},
            "variant a sets game.cot, which is in axes",
        ),
        ({"variants": {"a": {"game.cot": True, "game": {"cot": False}}}}, "game.cot is given twice"),
        ({"variants": {"a": {}, "A": {}}}, "two variants would be called a"),
        ({"variants": {"a/b": {}}}, "variants"),
        ({"reference": "b", "variants": {"a": {}}}, "reference is b; allowed: a"),
        ({"commands": {"b": ["true"]}, "variants": {"a": {}}}, "commands names b"),
        ({"judge": {"urls": ["http://a:1"], "backend": "vllm"}}, "keep one of the two"),
        ({"base": "/none.yaml"}, "/none.yaml: cannot be read"),
        ({"common": {"game.cot": 3}}, "game.cot is 3; allowed: true or false"),
    ],
)
def test_a_mistake_of_the_whole_sweep_is_refused(tmp_path: Path, keys: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=re.escape(part)):
        planned(tmp_path, **keys)


def test_mistakes_say_their_line(tmp_path: Path) -> None:
    text = f"name: s\nbase: {TINY}\nseeds: [1]\nvariants:\n  fine:\n  wrong:\n    game:\n      cott: true\n"
    runs = plan(written(tmp_path, text), {})
    assert runs[0].problem is None
    assert f"{tmp_path}/sweep.yaml:8: unknown key game.cott; nearest: game.cot" in str(runs[1].problem)
    with pytest.raises(UserError, match=r"sweep.yaml:3: seeds is given twice, first at line 2"):
        written(tmp_path, "name: s\nseeds: [1]\nseeds: [2]\n")
    with pytest.raises(UserError, match=r"base is required.*seeds is required"):
        written(tmp_path, "name: s\n")
    with pytest.raises(UserError, match="not valid YAML"):
        written(tmp_path, "name: [\n")


def test_a_broken_variant_does_not_stop_the_rest(tmp_path: Path) -> None:
    variants = {
        "fine": {},
        "typo": {"game.cott": False},
        "value": {"actor.adam.lr": -1},
        "together": {"algo.advantage.estimator": "group_norm"},
        "file": "/none.yaml",
    }
    runs = planned(tmp_path, variants=variants, seeds=[1, 2])
    assert [run.variant.name for run in runs if run.problem is None] == ["fine", "fine"]
    problems = {run.variant.name: run.problem for run in runs if run.config is None}
    assert list(problems) == ["typo", "value", "together", "file"]
    assert "nearest: game.cot" in str(problems["typo"]) and "/none.yaml" in str(problems["file"])
    assert "game.attacks_per_seed" in str(problems["together"])
    with pytest.raises(UserError, match=r"no run of .* can be started: .*game.cott"):
        planned(tmp_path, variants={"typo": variants["typo"]})


def test_what_this_machine_cannot_do_is_the_variants_problem(tmp_path: Path) -> None:
    def no_shared(config: Any) -> None:
        if config.roles.policy == "shared":
            raise UserError("not here")

    file = written(tmp_path, LEAST | {"axes": {"roles.policy": ["shared", "separate"]}})
    assert [run.problem for run in plan(file, {}, no_shared)] == ["not here", None]


def test_a_file_takes_the_place_of_the_base(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("run: {name: other, steps: 7}\nactor.model_name_or_path: m/other\ngame.cot: false\n")
    keys = {
        "variants": {"a": None, "b": str(other)},
        "common": {"run.steps": 3},
        "axes": {"rollout.batch_size": [4, 8]},
    }
    a, _, b, _ = planned(tmp_path, **keys)
    assert a.config and b.config
    assert (a.config.run.steps, b.config.run.steps) == (3, 3), "common changes a file, too"
    assert (a.config.game.edit, b.config.game.edit) == ("sentence", "note"), "of the base nothing is left"
    assert (b.config.actor.model_name_or_path, b.config.game.cot, b.config.rollout.batch_size) == ("m/other", False, 4)
    assert b.variant.changes["game.cot"] is False and b.variant.changes["game.edit"] == "note"
    assert "run.steps" not in b.variant.changes and "run.name" not in b.variant.changes


def test_what_the_sweep_shares_lies_beneath_what_variants_say(tmp_path: Path) -> None:
    file = written(tmp_path, LEAST | {"variants": {"a": {}, "b": {"data.train": "own.jsonl"}}})
    a, b = plan(file, {"data.train": "/s/train.jsonl", "judge.urls": ["http://127.0.0.1:9"]})
    assert a.config and b.config
    assert (a.config.data.train, b.config.data.train) == (Path("/s/train.jsonl"), Path("own.jsonl"))
    assert b.config.judge.urls == ("http://127.0.0.1:9",)


def test_commands(tmp_path: Path) -> None:
    command = ["{python}", "-c", "print({'a': 1})", "{config}", "{name}", "{folder}", "{seed}", "{other}"]
    commands = {"b": ["true"], "b-seed2": None}
    runs = {
        r.name: r
        for r in planned(tmp_path, seeds=[1, 2], variants={"a": {}, "b": {}}, command=command, commands=commands)
    }
    config, folder = Path("/s/jobs/x.yaml"), Path("/s/x")
    words = runs["a-seed2"].words(config, folder)
    assert words == [sys.executable, "-c", "print({'a': 1})", str(config), "a-seed2", str(folder), "2", "{other}"]
    assert runs["b-seed1"].words(config, folder) == ["true"]
    train = runs["b-seed2"].words(config, folder)
    assert train[1:] == ["-m", "openrlhf_medical", "train", "--config", str(config), "--resume", "auto"]


def test_every_key_stands_in_a_shipped_sweep_to_be_found() -> None:
    text = (ROOT / "configs" / "sweeps" / "ablations.yaml").read_text()
    shown = set(re.findall(r"^(?:# )?([a-z_]+):", text, re.MULTILINE))
    assert shown == SweepSpec.model_fields.keys()
    lines = [line.removeprefix("# ") for line in text.partition("What else a sweep may say:\n#\n")[2].splitlines()]
    others = yaml.safe_load("\n".join(lines))
    SweepSpec.model_validate_json(json.dumps({"name": "a", "base": "b", "seeds": [1]} | others), strict=True)


def test_shipped_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    runs = plan(read_sweep(Path("configs/sweeps/ablations.yaml")), {})
    files = {path.stem: path for path in Path("configs/ablations").glob("*.yaml")}
    assert {run.variant.name for run in runs} == files.keys() and len(runs) == 3 * len(files)
    for run in runs:
        assert run.problem is None and run.config is not None
        alone = load_config(files[run.variant.name]).model_dump()
        own = run.config.model_dump()
        for kept in (alone, own):
            del kept["run"]["name"], kept["run"]["dir"], kept["train"]["seed"]
        assert own == alone
    tiny = plan(read_sweep(Path("configs/sweeps/tiny.yaml")), {})
    assert len(tiny) == 12 and len({run.variant.name for run in tiny}) == 6
    assert {run.variant.name for run in tiny if "max_len" in str(run.variant.changes)} == {"broken"}
