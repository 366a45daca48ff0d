"""Configuration: keys and defaults against upstream's parser, mistakes and what is said about them."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_medical.config import (
    RunConfig,
    check_hardware,
    config_schema_keys,
    dump_config,
    load_config,
    upstream_options,
)
from openrlhf_medical.config.flat_keys import FLAT_KEYS
from openrlhf_medical.config.schema import sections
from openrlhf_medical.config.upstream import NOT_OFFERED, OURS
from openrlhf_medical.errors import UserError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
REQUIRED = ["--run.name", "t", "--actor.model_name_or_path", "m"]

# Ours and upstream's, where they differ on purpose.
DIFFERENT: dict[str, tuple[Any, Any]] = {
    "actor.num_gpus_per_node": (1, 8),
    "ref.num_gpus_per_node": (1, 8),
    "critic.num_gpus_per_node": (1, 8),
    "vllm.num_engines": (1, None),
    "algo.advantage.estimator": ("reinforce", "gae"),
    "ds.attn_implementation": ("auto", "flash_attention_2"),
    "rollout.batch_size": (128, 1024),
    "rollout.max_new_tokens": (1024, None),
    "ckpt.max_num": (2, 3),
    "logger.wandb.project": ("openrlhf_medical", "openrlhf_train_ppo"),
}
NO_DEFAULT = {"run.name", "actor.model_name_or_path"}


def config(*words: str) -> RunConfig:
    return load_config(None, [*REQUIRED, *words])


def refusal(*words: str, path: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, [*(REQUIRED if path is None else []), *words])
    return str(caught.value)


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# ── Against upstream ──


def upstream_parser() -> dict[str, Any]:
    """{dotted name: default} of every option in upstream's parser, read from its source."""
    spec = importlib.util.find_spec("openrlhf")
    if spec is None or spec.origin is None:
        pytest.skip("openrlhf is not installed")
    tree = ast.parse((Path(spec.origin).parent / "cli" / "train_ppo_ray.py").read_text())
    main = next(node for node in tree.body if isinstance(node, ast.If))
    found: dict[str, Any] = {}
    for statement in main.body:
        prefixes = [""]
        if isinstance(statement, ast.For):
            prefixes = ast.literal_eval(statement.iter)
        for prefix in prefixes:
            for node in ast.walk(statement):
                if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                    name, default = option(node, prefix)
                    found.setdefault(name, default)
    return found


def option(call: ast.Call, prefix: str) -> tuple[str, Any]:
    def value(node: ast.expr) -> Any:
        names = {"prefix": prefix, "int": int, "float": float}
        return eval(compile(ast.Expression(node), "upstream", "eval"), {"__builtins__": {}}, names)

    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    name = value(keywords["dest"]) if "dest" in keywords else value(call.args[0]).removeprefix("--")
    if name == "logger.wandb.run_name":  # a time stamp
        return name, None
    return name, value(keywords["default"]) if "default" in keywords else False


def comparable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def test_every_upstream_option_is_either_ours_or_explained() -> None:
    upstream = set(upstream_parser())
    offered = {key for key in config_schema_keys() if not key.startswith(OURS)}
    assert len(upstream) > 100
    assert upstream == offered | set(NOT_OFFERED)
    assert not offered & set(NOT_OFFERED)


def test_defaults_are_upstreams_or_listed_as_different() -> None:
    upstream, keys = upstream_parser(), config_schema_keys()
    for key, default in upstream.items():
        if key in NO_DEFAULT:
            continue
        ours = NOT_OFFERED[key].default if key in NOT_OFFERED else keys[key].default
        expected = DIFFERENT.get(key, (comparable(default), comparable(default)))
        assert (comparable(ours), comparable(default)) == expected, key


def test_descriptions_of_different_defaults_name_upstreams() -> None:
    for key in DIFFERENT:
        assert "Upstream: " in (config_schema_keys()[key].description or ""), key


def test_every_key_is_described() -> None:
    assert [key for key, info in config_schema_keys().items() if not info.description] == []


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def test_upstream_options_are_complete_and_settled() -> None:
    settled = flatten(upstream_options(config("--actor.eps_clip", "0.3", "--run.deterministic", "--run.steps", "7")))
    assert set(settled) == set(upstream_parser())
    assert settled["actor.eps_clip_low_high"] == [0.3, 0.3]
    assert settled["train.full_determinism_enable"] is True
    assert settled["train.num_episodes"] == 7
    assert settled["critic.model_name_or_path"] == "m"
    assert settled["ckpt.path"] == "runs/t/checkpoints"
    assert settled["logger.wandb.run_name"] == "t"


@pytest.mark.parametrize(("given_words", "settled"), [(["2"], [0.0, 2.0]), (["0.9", "1.1"], [0.9, 1.1])])
def test_a_single_threshold_is_an_upper_bound(given_words: list[str], settled: list[float]) -> None:
    options = upstream_options(
        config(
            "--algo.advantage.is_correction_level", "token", "--algo.advantage.is_correction_threshold", *given_words
        )
    )
    assert options["algo"]["advantage"]["is_correction_threshold"] == settled


def test_wandb_key_comes_from_a_file_and_never_into_the_dump(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("secret-key\n")
    settings = config("--logger.wandb.key_file", str(key_file))
    assert upstream_options(settings)["logger"]["wandb"]["key"] == "secret-key"
    assert "secret-key" not in dump_config(settings)
    assert "logger.wandb.key_file" in refusal("--logger.wandb.key", "x")
    with pytest.raises(UserError, match="cannot be read"):
        upstream_options(config("--logger.wandb.key_file", str(tmp_path / "none")))


# ── Shipped configurations, writing and reading back ──


def test_there_are_shipped_configurations() -> None:
    assert {"quickstart", "tiny"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_round_trip_of_shipped_configurations(path: Path, tmp_path: Path) -> None:
    settings = load_config(path)
    assert load_config(write(tmp_path, dump_config(settings))) == settings


words_that_yaml_reads_otherwise = st.sampled_from(["off", "no", "1e-6", "007", "1_000", "null", "2024-01-01", "0x1F"])


@given(
    name=words_that_yaml_reads_otherwise | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True),
    lr=st.floats(min_value=1e-300, max_value=1e300),
    ratio=st.tuples(st.floats(1e-6, 1), st.floats(1, 1e6)),
    level=st.sampled_from(["off", "token", "seq"]),
)
def test_round_trip(tmp_path_factory: Any, name: str, lr: float, ratio: tuple[float, float], level: str) -> None:
    settings = RunConfig.model_validate(
        {
            "run": {"name": name},
            "actor": {"model_name_or_path": name, "adam": {"lr": lr}},
            "game": {"length_ratio": ratio},
            "algo": {"advantage": {"is_correction_level": level}},
        }
    )
    text = dump_config(settings)
    assert load_config(write(tmp_path_factory.mktemp("round"), text)) == settings
    assert yaml.safe_load(text) == settings.model_dump(mode="json"), "PyYAML alone reads it alike"


def test_json_is_read_too(tmp_path: Path) -> None:
    tree = {"run": {"name": "j"}, "actor.model_name_or_path": "m", "algo": {"kl": {"init_coef": 0}}}
    settings = load_config(write(tmp_path, json.dumps(tree, indent="\t"), "run.json"))
    assert (settings.run.name, settings.actor.model_name_or_path, settings.algo.kl.init_coef) == ("j", "m", 0)


def test_values_never_change_after_loading() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config().train.seed = 3  # type: ignore[misc]


# ── The command line ──


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--algo.kl.init_coef", "1e-3"], "algo.kl.init_coef", 1e-3),
        (["--algo.kl.init_coef=0"], "algo.kl.init_coef", 0),
        (["--game.cot", "false"], "game.cot", False),
        (["--run.deterministic"], "run.deterministic", True),
        (["--run.deterministic", "--train.seed", "1"], "run.deterministic", True),
        (["--actor.adam.betas", "0.8", "0.99"], "actor.adam.betas", (0.8, 0.99)),
        (["--actor.adam.betas", "[0.8, 0.99]"], "actor.adam.betas", (0.8, 0.99)),
        (["--reward.clip_range", "-1", "1"], "reward.clip_range", (-1, 1)),
        (["--judge.urls", "http://a:1", "http://b:2/"], "judge.urls", ("http://a:1", "http://b:2")),
        (["--algo.advantage.is_correction_level", "off"], "algo.advantage.is_correction_level", "off"),
        (["--run.name", "007"], "run.name", "007"),
        (["--logger.tensorboard_dir", "null"], "logger.tensorboard_dir", None),
        (["--ds.zero_stage", "3"], "ds.zero_stage", 3),
        (["--train.seed", "1", "--train.seed", "2"], "train.seed", 2),
    ],
)
def test_overrides(words: list[str], key: str, value: Any) -> None:
    found: Any = config(*words)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value) or isinstance(value, int | float)


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "run: {name: f, steps: 5}\nactor: {model_name_or_path: m}\ntrain:\n  # seed: 1\n")
    settings = load_config(path, ["--run.steps", "6"])
    assert (settings.run.name, settings.run.steps, settings.train.seed) == ("f", 6, 42)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--train.batchsize", "3"], ["unknown key train.batchsize", "nearest: train.batch_size"]),
        (["--algo.kl.init-coef", "3"], ["nearest: algo.kl.init_coef"]),
        (["--lr", "3"], ["actor.adam.lr", "actor.muon.lr"]),
        (["--init_coef", "3"], ["nearest: algo.kl.init_coef"]),
        (["--game", "3"], ["is a section with game.mix.vanilla_harmful"]),
        (["--xyzzy", "3"], ["unknown key xyzzy", "sections are run, actor"]),
        (["--train.batch_size"], ["needs a value"]),
        (["--train.batch_size", "1", "2"], ["takes one value", "1 2"]),
        (["--train.batch_size", "0"], ["train.batch_size is 0", "greater than or equal to 1"]),
        (["--train.batch_size", "true"], ["train.batch_size is true", "a whole number"]),
        (["--rollout.temperature", ".nan"], ["NaN", "finite"]),
        (["--game.cot", "maybe"], ['"maybe"', "true or false"]),
        (["--actor.adam.betas", "0.9"], ["[0.9]", "more values"]),
        (["--roles.train", "judge"], ['"judge"', "'both'", "'attacker'"]),
        (["--algo.advantage.estimator", "dr_grpo"], ['"dr_grpo"', "'reinforce'"]),
        (["--run.name", "a/b"], ['"a/b"', "letters, digits"]),
        (["--judge.urls", "localhost:8000"], ["http://HOST:PORT"]),
        (["--train.seed", "-1", "--train.max_epochs", "0"], ["train.seed is -1", "train.max_epochs is 0"]),
    ],
)
def test_refused_on_the_command_line(words: list[str], parts: list[str]) -> None:
    message = refusal(*words)
    assert all(part in message for part in ["command line: ", *parts]), message


def test_a_word_that_belongs_to_no_option_is_refused() -> None:
    with pytest.raises(UserError, match=r"'hello' belongs to no option; write --section.key value"):
        load_config(None, ["hello"])


def test_what_is_required_is_named() -> None:
    with pytest.raises(UserError, match=r"run.name is required.*actor.model_name_or_path is required"):
        load_config(None)


@pytest.mark.parametrize("key", sorted(NOT_OFFERED))
def test_upstream_options_that_do_nothing_are_refused_with_the_reason(key: str) -> None:
    message = refusal(f"--{key}", "1")
    assert f"{key} is an OpenRLHF option that is not offered here: {NOT_OFFERED[key].why}" in message


# ── Files ──


def test_unknown_keys_of_a_file_are_named_with_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "run:\n  name: x\n  stepz: 3\ntrain: {sed: 1}\n")
    message = refusal(path=path)
    assert f"{path}:3: unknown key run.stepz; nearest: run.steps" in message
    assert f"{path}:4: unknown key train.sed; nearest: train.seed" in message


@pytest.mark.parametrize(
    ("text", "name", "parts"),
    [
        ("run:\n  name: x\nrun.name: y\n", "a.yaml", ["a.yaml:3: run.name is given twice", "a.yaml:2"]),
        ('{"run": {"name": "x", "name": "y"}}', "a.json", ["run.name is given twice"]),
        ("run: [\n", "a.yaml", ["a.yaml:2: not valid YAML"]),
        ('{"run": }', "a.json", ["a.json:1: not valid JSON"]),
        ("- run\n", "a.yaml", ["mapping of keys"]),
        ("[1]", "a.json", ["mapping of keys"]),
        ("", "a.toml", [".yaml, .yml or .json"]),
        ("train:\n  seed: off\n", "a.yaml", ["a.yaml:2: train.seed is", '"off"', "a whole number"]),
        ("train: 3\n", "a.yaml", ["unknown key train; it is a section with train.batch_size"]),
        ("run: {name: !!python/object:os.system x}\n", "a.yaml", ["a.yaml:1: not valid YAML"]),
    ],
)
def test_refused_files(tmp_path: Path, text: str, name: str, parts: list[str]) -> None:
    message = refusal(path=write(tmp_path, text, name))
    assert all(part in message for part in parts), message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "none.yaml: cannot be read" in refusal(path=tmp_path / "none.yaml")


def test_flat_keys_are_refused_with_their_new_names(tmp_path: Path) -> None:
    flat = {"pretrain": "m", "remote_rm_url": "u", "init_kl_coef": 0.01, "custom_configs": {"reward_type": "zero_sum"}}
    message = refusal(path=write(tmp_path, json.dumps(flat), "medical_selfplay_config.json"))
    for new in ("actor.model_name_or_path", "judge.urls", "algo.kl.init_coef", "game.rewards.scheme"):
        assert f"write {new}" in message


def test_new_names_of_flat_keys_exist() -> None:
    known = {*config_schema_keys(), *sections()}
    for old, new in FLAT_KEYS.items():
        dotted = [word.strip("(),") for word in new.split() if "." in word and "jsonl" not in word]
        assert all(word in known or word == "game.*" for word in dotted), (old, dotted)
        assert old not in known


# ── Keys that do not go together ──


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--game.mix.vanilla_benign", "0.5"], "sum to 1.25"),
        (["--game.rewards.coefficients.assessor.res_harm", "2"], "zero_sum needs the same res_harm"),
        (["--game.length_ratio", "2", "3"], "LOW is at most 1"),
        (["--data.max_len", "1024"], "no room for a prompt"),
        (["--algo.kl.target", "0.1", "--algo.kl.init_coef", "0"], "algo.kl.target adapts"),
        (["--algo.kl.unbiased_gradient"], "only with algo.kl.use_loss"),
        (["--actor.muon.lr", "0.1"], "only with actor.optim muon"),
        (["--reward.clip_range", "1", "-1"], "LOW must be below HIGH"),
        (["--algo.advantage.is_correction_level", "token", "--rollout.top_p", "0.9"], "set rollout.top_p to 1"),
        (["--algo.advantage.is_correction_level=seq", "--algo.advantage.is_correction_mode=clip"], "mode clip needs"),
        (["--algo.advantage.is_correction_level=seq", "--algo.advantage.is_correction_gating=tv"], "one number"),
        (["--ds.ring_attn_size", "2", "--actor.num_gpus_per_node", "2"], "needs ds.packing_samples"),
        (["--ds.tensor_parallel_size", "2"], "does not divide"),
        (
            ["--ds.tensor_parallel_size=2", "--actor.num_gpus_per_node=2", "--ds.param_dtype=fp16"],
            "needs ds.param_dtype",
        ),
        (["--ds.zpg", "2"], "needs ds.zero_stage 3"),
        (["--ds.packing_samples", "--ds.attn_implementation", "sdpa"], "needs FlashAttention"),
        (["--vllm.enable_sleep"], "sleep modes are not in this version"),
        (["--train.colocate_actor_ref", "--actor.num_gpus_per_node", "2"], "actor (1 * 2)"),
        (["--train.colocate_all", "--vllm.num_engines", "2"], "as many GPUs for engines"),
    ],
)
def test_contradictions(words: list[str], part: str) -> None:
    assert part in refusal(*words)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--ds.packing_samples"], "ds.packing_samples"),
        (["--ds.attn_implementation", "flash_attention_2"], "ds.attn_implementation"),
        (["--ds.use_liger_kernel"], "ds.use_liger_kernel"),
    ],
)
def test_what_a_cpu_cannot_do_is_refused_there_only(words: list[str], key: str) -> None:
    settings = config(*words)
    check_hardware(settings, has_gpu=True)
    with pytest.raises(UserError, match=f"no GPU.*{key} \\("):
        check_hardware(settings, has_gpu=False)


def test_rules_of_the_game() -> None:
    rules = config("--game.rewards.scheme=general_sum", "--game.rewards.coefficients.attacker.revision=0").rules()
    assert rules.table["attacker"]["revision"] == 0
    assert rules.table["assessor"]["res_refusal"] == 1
    assert rules.seed == 42


def test_imports_fast_and_without_torch() -> None:
    program = (
        "import time; start = time.perf_counter()\n"
        "import openrlhf_medical.config, sys\n"
        "heavy = {'torch', 'ray', 'vllm', 'openrlhf', 'deepspeed', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(time.perf_counter() - start)"
    )
    seconds = min(
        float(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)
        for _ in range(3)
    )
    assert seconds < 1
