"""Ray: connecting, reserving places, and waiting with a deadline that names who is stuck."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import psutil
import ray
from ray._private.state import actors as actor_table
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from openrlhf_medical import devices, shared_memory
from openrlhf_medical.errors import StuckError, UserError, WorkerDied

logger = logging.getLogger(__name__)
T = TypeVar("T")

CAUSE_S = 5.0
"""How long an error waits for its cause: where a worker dies, those that compute with it fail a moment earlier."""

SHUTDOWN_S, LAST_MOMENTS_S = 60.0, 10.0
"""For Ray's own orderly end, and then for each of its processes to be gone, before they are killed."""


def connect(gpus_needed: int) -> None:
    """Join the cluster named by RAY_ADDRESS (set inside ``ray job submit``), or start Ray here.

    The worker hook is given once, here, as a module path: Ray raises where a job's own runtime
    environment repeats it, and job submission takes only a string.
    """
    if ray.is_initialized():
        return
    # It may not be the main thread, where Ray would take SIGTERM for itself: a run has its own idea of it.
    logging.getLogger("ray._private.worker").addFilter(lambda record: "SIGTERM handler" not in record.getMessage())
    warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
    runtime_env = {
        "worker_process_setup_hook": devices.WORKER_SETUP_HOOK,
        "env_vars": {"TOKENIZERS_PARALLELISM": "false", **devices.worker_environment()},
    }
    if os.environ.get("RAY_ADDRESS"):
        ray.init(runtime_env=runtime_env, logging_level=logging.WARNING, log_to_driver=False)
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


_coming: list[Future[None]] = []
"""The Ray that ``coming_up`` is starting, if it is."""


@contextlib.contextmanager
def coming_up(gpus_needed: int) -> Iterator[None]:
    """Start Ray in a thread, for the ``session`` that is opened inside: its processes come up while this one
    imports. Where no session took it over, it ends here.

    The thread lives as long as Ray: Linux ends Ray's processes when the thread that started them does."""

    def start() -> None:
        try:
            connect(gpus_needed)
            started.set_result(None)
        except BaseException as error:
            started.set_exception(error)
        over.wait()

    started: Future[None] = Future()
    over = threading.Event()
    _coming.append(started)
    thread = threading.Thread(target=start, name="ray-init", daemon=True)
    thread.start()
    try:
        yield
    finally:
        _coming.clear()
        started.exception()  # it is there, or will never be
        if ray.is_initialized():
            shut_down()
        over.set()
        thread.join()


@contextlib.contextmanager
def session(gpus_needed: int) -> Iterator[None]:
    """Ray for the time of a run; a Ray that we started ends with it, and every actor of ours in any case."""
    for started in _coming:
        started.result()
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
        shut_down()


def shut_down() -> None:
    """End Ray in bounded time, whatever its workers are at, and whatever processes of a Ray that we started.

    A worker that hangs in foreign code, or was stopped, hears of no orderly end: what is left of our own
    descendants is killed, and the shared memory of all of them is removed.
    """
    family = [child for child in psutil.Process().children(recursive=True) if _of_ray(child)]
    segments = shared_memory.segments_of(family)
    ending = threading.Thread(target=ray.shutdown, name="ray-shutdown", daemon=True)
    ending.start()
    ending.join(SHUTDOWN_S)
    _, left = psutil.wait_procs([one for one in family if _runs(one)], LAST_MOMENTS_S)
    for process in filter(_runs, left):
        logger.warning("killing process %d (%s), which did not end with Ray", process.pid, process.name())
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, LAST_MOMENTS_S)
    shared_memory.remove(segments)


def _of_ray(process: psutil.Process) -> bool:
    """One of Ray's daemons, or a descendant of one; the judge that we started too is not."""
    try:
        line = [process, *process.parents()]
        return any("/ray/" in word for one in line[: line.index(psutil.Process())] for word in one.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess, ValueError):
        return False


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


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


def gather(references: Mapping[str, Any], timeout_s: float, doing: str) -> dict[str, Any]:
    """The results by name.

    Raises:
        StuckError: somebody did not answer in time. WorkerDied: the process of somebody is gone. Both name who,
        on which machine, in which phase. Else the first worker's own error.
    """
    names = {reference: name for name, reference in references.items()}
    pending = list(names)
    results: dict[str, Any] = {}
    deadline = time.monotonic() + timeout_s
    while pending:
        ready, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            missing = ", ".join(sorted(names[reference] + whereabouts(reference) for reference in pending))
            raise StuckError(f"{doing}: no answer from {missing} within {timeout_s:g} s")
        for reference in ready:
            try:  # it is there; the deadline is for fetching it from another machine
                results[names[reference]] = ray.get(reference, timeout=max(1.0, deadline - time.monotonic()))
            except GetTimeoutError:
                raise StuckError(
                    f"{doing}: the answer of {names[reference]} did not arrive in {timeout_s:g} s"
                ) from None
            except RayActorError as error:
                raise _died(names[reference], reference, error, doing) from None
            except RayTaskError:
                _raise_the_cause(pending, names, doing)
                raise
    return {name: results[name] for name in references}


def within(timeout_s: float, doing: str, work: Callable[[], T]) -> T:
    """``work()``, of somebody who sets no deadline of his own. Raises StuckError, and leaves it waiting."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name=doing, daemon=True).start()
    try:
        return done.result(timeout_s)
    except TimeoutError:
        raise StuckError(f"{doing}: no answer within {timeout_s:g} s") from None
    except RayActorError as error:
        raise WorkerDied(f"{doing}: it died: {why_dead(error)}") from None


def _raise_the_cause(pending: list[Any], names: Mapping[Any, str], doing: str) -> None:
    """Raise WorkerDied where one of these is gone: then somebody's error is only the consequence."""
    deadline = time.monotonic() + CAUSE_S
    while pending and (left := deadline - time.monotonic()) > 0:
        ready, pending = ray.wait(pending, num_returns=1, timeout=left)
        for reference in ready:
            try:
                ray.get(reference, timeout=1.0)
            except RayActorError as error:
                raise _died(names[reference], reference, error, doing) from None
            except (RayTaskError, GetTimeoutError):
                continue


def _died(name: str, reference: Any, error: RayActorError, doing: str) -> WorkerDied:
    return WorkerDied(f"{doing}: {name}{whereabouts(reference, error)} died: {why_dead(error)}", (name,))


def why_dead(error: BaseException) -> str:
    """Ray's reason without the numbers before it, on one line."""
    text = " ".join(str(error).split())
    reason = text.rpartition("The actor is dead because ")[2].removeprefix("its worker process has died. ")
    return reason.partition(" Some common causes include")[0][:300].rstrip(". ")


def whereabouts(reference: Any, error: BaseException | None = None) -> str:
    """`` (node …, pid …)`` of the actor that was to answer, as Ray's table has it, or else its ``error``; empty where
    neither does."""
    actor: dict[str, Any] = {}
    if isinstance(reference, ray.ObjectRef) and ray.is_initialized():
        actor = actor_table(reference.task_id().actor_id().hex()) or {}
    node = next((n for n in ray.nodes() if n["NodeID"] == actor["Address"]["NodeID"]), None) if actor else None
    if node:
        return f" (node {node['NodeManagerHostname']} {node['NodeManagerAddress']}, pid {actor['Pid']})"
    told = dict(re.findall(r"\b(ip|pid): (\S+)", str(error)))
    return f" (node {told['ip']}, pid {told['pid']})" if {"ip", "pid"} <= set(told) else ""
