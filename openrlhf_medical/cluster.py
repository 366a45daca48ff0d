"""Ray: connecting, reserving places, and waiting with a deadline that names who is stuck."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from openrlhf_medical import devices
from openrlhf_medical.errors import StuckError, UserError

Made = TypeVar("Made")


def connect(gpus_needed: int) -> None:
    """Join the cluster named by RAY_ADDRESS (set inside ``ray job submit``), or start Ray here.

    The worker hook is given once, here, as a module path: Ray raises where a job's own runtime
    environment repeats it, and job submission takes only a string.
    """
    if ray.is_initialized():
        return
    runtime_env = {
        "worker_process_setup_hook": devices.WORKER_SETUP_HOOK,
        "env_vars": {"TOKENIZERS_PARALLELISM": "false", **devices.worker_environment()},
    }
    if os.environ.get("RAY_ADDRESS"):
        ray.init(runtime_env=runtime_env, logging_level=logging.WARNING)
        return
    gpus = devices.logical_gpus(gpus_needed)
    ray.init(
        runtime_env=runtime_env,
        logging_level=logging.WARNING,
        log_to_driver=False,
        include_dashboard=False,
        num_gpus=gpus,
        # Bundles ask for a CPU each; on a small machine processes take turns on fewer real cores.
        num_cpus=None if gpus is None else max(gpus, os.cpu_count() or 1),
    )


@contextlib.contextmanager
def session(gpus_needed: int) -> Iterator[None]:
    """Ray for the time of a run; a Ray that we started ends with it, and every actor of ours in any case."""
    connect(gpus_needed)
    try:
        total = ray.cluster_resources()
        for kind in ("GPU", "CPU"):  # known at once: no need to wait for a placement that can never come
            if total.get(kind, 0) < gpus_needed:
                raise UserError(
                    f"this run needs {gpus_needed} {kind}s for all its workers and engines, the cluster has "
                    f"{total.get(kind, 0):g}: see roles.policy, train.colocate_all, actor.num_gpus_per_node and "
                    "vllm.num_engines"
                )
        yield
    finally:
        ray.shutdown()


def reserve(bundles: int, timeout_s: float, purpose: str) -> PlacementGroup:
    """A placement group of ``bundles`` × {1 GPU, 1 CPU}, packed.

    Raises:
        UserError: the cluster could never hold it, or it was not free within ``timeout_s``.
    """
    wanted = {"GPU": bundles, "CPU": bundles}
    total = ray.cluster_resources()
    short = [f"{n} {kind} needed, {total.get(kind, 0):g} in the cluster" for kind, n in wanted.items()
             if total.get(kind, 0) < n]  # fmt: skip
    if short:
        raise UserError(f"no place for {purpose}: {'; '.join(short)}. Ask for fewer (actor.num_gpus_per_node, "
                        "vllm.num_engines, train.colocate_all) or give the cluster more")  # fmt: skip
    group = placement_group([{"GPU": 1, "CPU": 1}] * bundles, strategy="PACK")
    if not group.wait(timeout_s):
        free = ray.available_resources()
        remove_placement_group(group)
        raise UserError(f"no place for {purpose} within {timeout_s:g} s: {bundles} GPU and CPU needed, "
                        f"{free.get('GPU', 0):g} GPU and {free.get('CPU', 0):g} CPU free of "
                        f"{total.get('GPU', 0):g} and {total.get('CPU', 0):g}")  # fmt: skip
    return group


def within(timeout_s: float, doing: str, make: Callable[[], Made]) -> Made:
    """What ``make`` returns. For calls of upstream's that wait for a worker without a deadline: in a thread that
    nobody waits for at the end.

    Raises:
        StuckError: it took longer. What ``make`` raises comes through.
    """
    done: Future[Made] = Future()

    def call() -> None:
        try:
            done.set_result(make())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=call, name=doing, daemon=True).start()
    try:
        return done.result(timeout_s)
    except FutureTimeout:
        if done.done():  # a deadline of its own
            raise
        raise StuckError(f"{doing}: not done within {timeout_s:g} s") from None


def gather(references: Mapping[str, Any], timeout_s: float, doing: str) -> dict[str, Any]:
    """The results by name. Raises StuckError naming who is missing, or the first worker's own error."""
    names = {reference: name for name, reference in references.items()}
    pending = list(names)
    results: dict[str, Any] = {}
    deadline = time.monotonic() + timeout_s
    while pending:
        ready, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            missing = ", ".join(sorted(names[reference] for reference in pending))
            raise StuckError(f"{doing}: no answer from {missing} within {timeout_s:g} s")
        for reference in ready:
            results[names[reference]] = ray.get(reference)
    return {name: results[name] for name in references}
