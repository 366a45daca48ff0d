"""The resource plan of a run: who sits where, what that takes, and what is short. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from openrlhf_medical.layout import TURNS_OF_ENGINE, Place, places_of, warm_start_places
from openrlhf_medical.plan.hardware import Hardware, Node
from openrlhf_medical.plan.memory import GIB, HOST_REST
from openrlhf_medical.plan.needs import Needs, models_of, needs_of
from openrlhf_medical.plan.placement import Free, pack
from openrlhf_medical.plan.shapes import ModelShape, UnknownShape, shape_of

if TYPE_CHECKING:
    from openrlhf_medical.config import RunConfig

FITS, TIGHT, SHORT, UNKNOWN = "fits", "tight", "SHORT", "not known"
GPU_TIGHT = 0.95
"""From this share of a GPU on, what allocators lose to fragments may be what is missing."""
GPU_ERROR = GIB
"""Of each worker on a GPU: what contexts and graphs are said to take was not measured. Short is only what would be
without it; the rest is tight."""
HOST_ERROR = 0.25
"""Without a GPU everything is host memory, estimated with round figures: only what would not fit even if it were less
by this share is refused."""
LONGEST_ERROR = 0.75
"""Nor is what would fit if passes took less by this share: they are counted for samples of data.max_len tokens, which
may never come, and a machine without a GPU is for short ones."""


@dataclass(frozen=True, slots=True)
class Row:
    """One placement group: how many of its bundles are on each machine (None: no room), and what they need
    (None: not known)."""

    place: Place
    nodes: tuple[int, ...] | None
    needs: Needs | None
    gpu_bytes: int | None = None
    """What the fullest of its GPUs has left for this run; None: not known."""


@dataclass(frozen=True, slots=True)
class Check:
    """One resource: needed, there, whether that is enough, and the keys that would help where it is not."""

    what: str
    needed: str
    there: str
    verdict: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    hardware: Hardware
    rows: tuple[Row, ...]
    checks: tuple[Check, ...]
    judge: str
    notes: tuple[str, ...] = ()
    warm_start: tuple[Row, ...] = field(default=())

    @property
    def shortfalls(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.verdict == SHORT)

    @property
    def is_tight(self) -> bool:
        return any(check.verdict == TIGHT for check in self.checks)

    def problems(self) -> list[str]:
        """One sentence on everything that is short, with the keys that would help; none where nothing is."""
        if not self.shortfalls:
            return []
        what = "; ".join(f"{check.what}: {check.needed} needed, {check.there}" for check in self.shortfalls)
        keys = dict.fromkeys(key for check in self.shortfalls for key in check.keys)
        return [f"the run does not fit on {self.hardware.title}: {what}. What would help: {', '.join(keys)}"]


def make_plan(config: RunConfig, hardware: Hardware, shape: Callable[[str], ModelShape] = shape_of) -> Plan:
    """Raises nothing: what cannot be estimated is a note, and counts as not known."""
    shapes, notes = _shapes(config, shape)
    rows = _rows(config, places_of(config), hardware, shapes)
    pupils = _rows(config, warm_start_places(config), hardware, shapes)
    checks = [*_counts(config, hardware, rows, pupils), *_gpu_memory(config, hardware, [*rows, *pupils])]
    checks += _host_memory(config, hardware, rows, pupils)
    notes += [*_spanning(config, rows), *(_cache_notes(config, rows) if hardware.has_gpus else [])]
    return Plan(hardware, tuple(rows), tuple(checks), _judge(config), tuple(notes), tuple(pupils))


def _shapes(config: RunConfig, read: Callable[[str], ModelShape]) -> tuple[dict[str, ModelShape | None], list[str]]:
    """Of every model in the run by its name, and what is to be said about them."""
    places = [*places_of(config), *warm_start_places(config)]
    names = dict.fromkeys(model for place in places for model in models_of(config, place).values())
    shapes: dict[str, ModelShape | None] = {}
    notes = []
    for name in names:
        try:
            shapes[name] = read(name)
            found = shapes[name]
            assert found is not None
            notes.append(f"{name}: {found.parameters / 1e9:.2f} billion parameters, by {found.source or 'its shape'}")
        except UnknownShape as error:
            shapes[name] = None
            notes.append(f"memory not estimated: {error}")
    return shapes, notes


def _rows(
    config: RunConfig, places: Iterable[Place], hardware: Hardware, shapes: dict[str, ModelShape | None]
) -> list[Row]:
    free = [Free(len(node.gpus), float("inf") if node.cpus is None else node.cpus) for node in hardware.nodes]
    rows = []
    for place in places:
        counts = pack(place.bundles, free)
        taken = [node for node, n in zip(hardware.nodes, counts or [1] * len(free), strict=True) if n]
        total, left = _smallest_gpu(taken)
        own = {kind: shapes[model] for kind, model in models_of(config, place).items()}
        known = {kind: found for kind, found in own.items() if found is not None}
        needs = needs_of(config, place, known, total, has_gpus=hardware.has_gpus) if len(known) == len(own) else None
        if needs is not None and "engine" in place.workers and hardware.has_gpus and total is None:
            needs = None  # an engine takes a share of a GPU whose size nobody told
        rows.append(Row(place, tuple(counts) if counts else None, needs, left))
    return rows


def _smallest_gpu(nodes: Sequence[Node]) -> tuple[int | None, int | None]:
    """(size, bytes left by others) of the smallest GPU on these machines; None where one is not known."""
    gpus = [gpu for node in nodes for gpu in node.gpus]
    sizes = [gpu.total for gpu in gpus if gpu.total is not None]
    if not gpus or len(sizes) < len(gpus):
        return None, None
    return min(sizes), min(gpu.total - gpu.used for gpu in gpus if gpu.total is not None)


def _counts(config: RunConfig, hardware: Hardware, rows: list[Row], pupils: list[Row]) -> list[Check]:
    needed = max(sum(row.place.bundles for row in rows), sum(row.place.bundles for row in pupils))
    keys = _fewer_places(config)
    kind = "GPUs" if hardware.has_gpus else "places (logical GPUs)"
    enough = hardware.gpus >= needed
    idle = f", {hardware.gpus - needed} idle" if hardware.has_gpus and hardware.gpus > needed else ""
    checks = [Check(kind, str(needed), f"{hardware.gpus} there{idle}", FITS if enough else SHORT, keys)]
    cpus = hardware.cpus
    if cpus is None:
        checks.append(Check("CPUs, as Ray counts", str(needed), "not known", UNKNOWN))
    else:
        verdict = FITS if cpus >= needed else SHORT
        checks.append(Check("CPUs, as Ray counts", str(needed), f"{cpus:g} there", verdict, keys))
        enough = enough and cpus >= needed
    if enough:  # together there are enough, but not where they are wanted
        homeless = [row.place for row in [*rows, *pupils] if row.nodes is None]
        checks += [
            Check(f"room for {place.purpose}", f"{place.bundles} bundles of 1 GPU and 1 CPU",
                  "not left on machines that have both", SHORT, keys)
            for place in homeless
        ]  # fmt: skip
    return checks


def _fewer_places(config: RunConfig) -> tuple[str, ...]:
    keys = []
    if config.roles.policy == "separate":
        keys.append("roles.policy (shared or adapters)")
    if not config.train.colocate_all:
        keys.append("train.colocate_all")
        if config.algo.kl.init_coef > 0 and not config.train.colocate_actor_ref and not config.ds.lora.rank:
            keys.append("train.colocate_actor_ref")
    return (*keys, "actor.num_nodes", "actor.num_gpus_per_node", "vllm.num_engines", "vllm.tensor_parallel_size")


def _gpu_memory(config: RunConfig, hardware: Hardware, rows: list[Row]) -> list[Check]:
    if not hardware.has_gpus:
        return []
    checks = []
    for row in rows:
        what = f"GPU memory, {row.place.purpose}"
        if row.needs is None or row.gpu_bytes is None:
            checks.append(Check(what, "not known", "", UNKNOWN))
            continue
        needed, there = row.needs.device_bytes, row.gpu_bytes
        certain = needed - GPU_ERROR * len(row.needs.workers)
        verdict = SHORT if certain > there else TIGHT if needed > GPU_TIGHT * there else FITS
        keys = _smaller(config, row)
        checks.append(Check(what, gib(needed), f"{gib(there)} on each GPU", verdict, keys))
        if row.needs.sequences == 0:
            checks.append(
                Check(f"cache, {row.place.purpose}", f"{config.data.max_len} tokens", "less than one sequence fits",
                      SHORT, ("vllm.gpu_memory_utilization (higher)", "vllm.tensor_parallel_size", "data.max_len"))
            )  # fmt: skip
    return checks


def _smaller(config: RunConfig, row: Row) -> tuple[str, ...]:
    """Keys that make this placement group's workers smaller, what weighs most first."""
    assert row.needs is not None
    ds, several = config.ds, row.place.bundles > 1
    trainers = [need.device for kind, need in row.needs.workers.items() if kind != "engine"]
    weight = {part: sum(device.get(part, 0) for device in trainers) for part in ("optimizer", "passes", "weights")}
    offers = {
        "optimizer": [
            *(["ds.zero_stage 2 or 3"] if several and ds.zero_stage < 2 else []),
            *([] if ds.adam_offload else ["ds.adam_offload true"]),
            *([] if ds.lora.rank else ["ds.lora.rank 32 (adapters instead of all weights)"]),
            "actor.num_gpus_per_node (more share it)",
        ],
        "passes": [
            *([] if config.actor.gradient_checkpointing_enable else ["actor.gradient_checkpointing_enable true"]),
            *(["train.micro_batch_size 1"] if config.train.micro_batch_size > 1 else []),
            *(["rollout.micro_batch_size 1"] if config.rollout.micro_batch_size > 1 else []),
            *(["train.max_tokens_per_gpu"] if config.train.dynamic_batch_enable else []),
            "data.max_len",
        ],
        "weights": [
            *(["ds.zero_stage 3"] if several and ds.zero_stage < 3 and config.roles.policy != "adapters" else []),
            *(["ds.load_in_4bit true"] if ds.lora.rank and not ds.load_in_4bit and ds.zero_stage < 3 else []),
            *(["train.colocate_actor_ref false"] if config.train.colocate_actor_ref else []),
            *(["train.colocate_all false"] if config.train.colocate_all else []),
        ],
    }
    if "engine" in row.needs.workers:
        weight["engine"] = row.needs.workers["engine"].device_bytes
        offers["engine"] = ["vllm.gpu_memory_utilization (lower)"]
    keys: list[str] = []
    for part in sorted(weight, key=lambda part: -weight[part]):
        keys += offers[part] if weight[part] else []
    return tuple(keys[:5])


def _host_memory(config: RunConfig, hardware: Hardware, rows: list[Row], pupils: list[Row]) -> list[Check]:
    """The machine that is fullest for what it has."""
    if any(row.needs is None for row in rows):
        return [Check("host memory", "not known", "", UNKNOWN)]
    fullest: tuple[float, int, int, Node] | None = None
    for group in (rows, pupils):
        for i, node in enumerate(hardware.nodes):
            needed = sum(row.nodes[i] * _host_bytes(row, hardware) for row in group if row.nodes) + HOST_REST
            passes = sum(row.nodes[i] * _passes(row, hardware) for row in group if row.nodes)
            share = needed / node.host_bytes if node.host_bytes else float(needed)
            if fullest is None or share > fullest[0]:
                fullest = (share, needed, passes, node)
    assert fullest is not None
    _, needed, passes, node = fullest
    what = f"host memory, {node.name}" if len(hardware.nodes) > 1 else "host memory"
    if node.host_bytes is None:
        return [Check(what, gib(needed), "not known", UNKNOWN)]
    less = min(needed * (1 - HOST_ERROR), needed - passes * LONGEST_ERROR)
    verdict = SHORT if less > node.host_bytes else TIGHT if needed > node.host_bytes else FITS
    keys: tuple[str, ...] = (
        "roles.policy (shared or adapters)",
        "train.micro_batch_size",
        "data.max_len",
        "algo.kl.init_coef 0",
    )
    if hardware.has_gpus:
        keys = ("ds.zero_stage", "ds.adam_offload", "actor.num_gpus_per_node")
    return [Check(what, f"about {gib(needed)}", f"{gib(node.host_bytes)} there", verdict, keys)]


def _host_bytes(row: Row, hardware: Hardware) -> int:
    assert row.needs is not None
    return row.needs.host_bytes + (0 if hardware.has_gpus else row.needs.device_bytes)


def _passes(row: Row, hardware: Hardware) -> int:
    """Of the host memory on one of its bundles, what passes take."""
    assert row.needs is not None
    return 0 if hardware.has_gpus else sum(need.device.get("passes", 0) for need in row.needs.workers.values())


def _spanning(config: RunConfig, rows: list[Row]) -> list[str]:
    size = config.vllm.tensor_parallel_size
    return [
        f"{row.place.purpose}: an engine of {size} GPUs would span machines, and be slow: give machines whole engines"
        for row in rows
        if "engine" in row.place.workers and size > 1 and row.nodes and any(count % size for count in row.nodes)
    ]


def _cache_notes(config: RunConfig, rows: list[Row]) -> list[str]:
    notes = []
    for row in rows:
        if row.needs is not None and row.needs.sequences:
            few = row.needs.sequences < TURNS_OF_ENGINE
            notes.append(
                f"{row.place.purpose}: the cache of each engine holds {row.needs.sequences} sequences of "
                f"{config.data.max_len} tokens at once"
                + (f", fewer than the {TURNS_OF_ENGINE} that vLLM would play; the rest wait their turn" if few else "")
            )
    return notes


def _judge(config: RunConfig) -> str:
    if config.judge.urls:
        return f"outside Ray, at {', '.join(config.judge.urls)}: its GPU is none of these"
    return "the run's own reference judge, beside train: one process, no GPU"


def gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
