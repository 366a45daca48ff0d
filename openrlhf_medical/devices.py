"""Running upstream on a machine with no GPU. With ``rollout.core_turns`` and ``learner.compilation`` the only place
that patches anything.

OpenRLHF assumes CUDA in a handful of places. ``prepare_process()`` answers them in the process that
calls it: the driver, every Ray worker (through Ray's worker setup hook) and vLLM's worker. On a
machine with a GPU it changes nothing. No other module asks whether there is a GPU; they call the
functions below, whose answers differ.

What upstream assumes, and what answers it here:

========================================================  =====================================================
``flash_attn`` is importable (``ring_attn_utils``)         names that raise when called, present only during
                                                           that one import; packing is refused earlier
``torch.cuda.current_device()`` as a target of ``.to()``   a string ``"cpu"`` that formats as ``0``
``torch.cuda.set_device/synchronize/current_stream``       do nothing
``init_device_mesh("cuda", …)`` in DeepspeedStrategy       the same call with ``"cpu"``
PyNccl group between DeepSpeed and vLLM                    memory that both map, or gloo (``weight_group``)
bf16 matrix products are fast                              in fp32 where this CPU has none (``bf16_linear``): they
                                                           were 18 times slower; engines hold fp32 weights there
vLLM keeps a packed copy of a tied output head             packed again after every sync (facts: 5.9 nats off)
vLLM gives a CPU's worker a process of its own, for        the engine's own process (``engine_environment``)
   whose answers the engine then spins on a core
vLLM draws noise for every token of the vocabulary         one number a row (``cpu_sampling``)
========================================================  =====================================================
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from openrlhf_medical.errors import UserError

WORKER_SETUP_HOOK = "openrlhf_medical.devices.prepare_process"
"""For ``ray.init(runtime_env={"worker_process_setup_hook": …})``: a module path, set once, in the driver."""

KV_CACHE_BYTES_CPU = 512 << 20
"""Of each engine: 22,000 tokens of SmolLM2-135M in bf16. What does not fit waits its turn."""


@functools.cache
def has_gpu() -> bool:
    """Whether an NVIDIA GPU's driver is loaded. Does not import torch: every Ray worker asks this."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()


def prepare_process() -> None:
    """Make this process ready for upstream; safe to call more than once.

    Patches apply when the module they concern is imported, so a process that needs no torch never
    imports it.
    """
    if has_gpu():
        return
    cores = sorted(os.sched_getaffinity(0))
    os.environ["DS_ACCELERATOR"] = "cpu"
    # Every engine uses every core: the other phases wait while games are played.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    # Compiling a sampler with g++ costs 18 s at the first reply and gains nothing measurable.
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    if not any(isinstance(finder, _PatchOnImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PatchOnImport())
        for name, patch in _PATCHES.items():
            if name in sys.modules and name != _RING_ATTENTION:
                patch(sys.modules[name])


def choose(device: str | None) -> None:
    """Puts what this process computes on ``cpu``, ``cuda`` or ``cuda:N``; None: on what there is.

    Call it before torch is imported.

    Raises:
        UserError: another word, or a device that is not here.
    """
    if device is None:
        return
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdecimal())) or device.endswith(":"):
        raise UserError(f"device {device!r} is not known; allowed: cpu, cuda, cuda:N")
    if (kind == "cuda") != has_gpu():
        here = "has a GPU, and its vLLM is built for it" if has_gpu() else "has no GPU"
        raise UserError(f"device {device!r} cannot be used: this machine {here}; leave --device out")
    if index:
        # Of those that we may use: a batch system has often made that choice already.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        ours = visible.split(",") if visible else None
        if ours and int(index) >= len(ours):
            raise UserError(f"device {device!r} is not here: CUDA_VISIBLE_DEVICES leaves {len(ours)} GPUs")
        os.environ["CUDA_VISIBLE_DEVICES"] = ours[int(index)] if ours else index


def engine_arguments(least_kv_cache_bytes: int = 0) -> dict[str, Any]:
    """Arguments of vLLM's engine that depend on the device. On a GPU vLLM itself sees how much cache there is room
    for; ``least_kv_cache_bytes`` is what the longest sequence needs in bf16."""
    if has_gpu():
        return {}
    if _has_fast_bf16():
        return {"kv_cache_memory_bytes": max(KV_CACHE_BYTES_CPU, least_kv_cache_bytes), "enforce_eager": True}
    size = max(KV_CACHE_BYTES_CPU, 2 * least_kv_cache_bytes)
    return {"kv_cache_memory_bytes": size, "enforce_eager": True, "dtype": "float32"}


def engine_environment(workers: int) -> dict[str, str]:
    """Environment that an engine with so many workers hands on to the processes which vLLM starts.

    Without a GPU vLLM would give even a lone worker a process of its own, and spin on a core that the worker needs
    while it waits for it. In one process (vLLM's variable for that has another name) they take turns; the cores are
    bound as vLLM binds those of a worker.
    """
    if has_gpu() or workers > 1:
        return {}
    cores = sorted(os.sched_getaffinity(0))
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": str(len(cores)),
        "GOMP_CPU_AFFINITY": " ".join(map(str, cores)),
    }


@functools.cache
def _has_fast_bf16() -> bool:
    from openrlhf_medical.bf16_linear import has_fast_bf16

    return has_fast_bf16()


def seeded_arguments(max_model_len: int) -> dict[str, Any]:
    """Further ones of an engine that is given requests with seeds of their own, several at a time.

    vLLM 0.29 reads part of a prompt in one step and the rest in the next, and turns the request's generator back
    in between, which torch's generator of the CPU cannot do: it raises, and the engine is lost.
    """
    if has_gpu():
        return {}
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(4096, max_model_len)}


def worker_environment() -> dict[str, str]:
    """Environment that a worker has to be started with, as the C library reads it before Python runs.

    Without a GPU tensors are host memory: glibc would hand each large one back to the kernel and fault it
    in again, page by page, which took a quarter of a supervised step (SmolLM2-135M, 2 cores: 4.4 s with,
    3.3 s without). What a phase has used stays with the process for the next one: in a virtual machine whose host
    takes back what is free, an update of 13.4 s took 10.3 s (bare transformers: 10.2 s). Only what is larger than
    ``mmap_threshold``, such as logits, comes and goes: among it the rest would be scattered, and memory in use grow by
    half.
    """
    if has_gpu():
        return {}
    keep = {"hugetlb": 1, "mmap_threshold": 16 << 20, "trim_threshold": 4 << 30, "top_pad": 64 << 20}
    tunables = ":".join(f"glibc.malloc.{name}={value}" for name, value in keep.items())
    return {"GLIBC_TUNABLES": tunables, "THP_MEM_ALLOC_ENABLE": "1"}


def give_back_memory() -> None:
    """Hand what is free back to the kernel, which ``worker_environment`` keeps the C library from doing: after loading
    a model, which takes more than anything that follows."""
    trim = None if has_gpu() else getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def attention(requested: str) -> str:
    """The attention kernel that ``ds.attn_implementation: auto`` stands for here."""
    if requested != "auto":
        return requested
    return "flash_attention_2" if has_gpu() else "sdpa"


def logical_gpus(needed: int) -> int | None:
    """GPUs to announce to a Ray that we start ourselves: None lets Ray count real ones."""
    return None if has_gpu() else needed


def use_cores(processes: int) -> None:
    """Share this machine's cores among ``processes`` torch processes that compute at the same time.

    Ray sets OMP_NUM_THREADS=1 in an actor with one CPU, which left upstream's update at 72 of the
    257 tokens/s that two cores can do.
    """
    if not has_gpu():
        import torch

        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))


def cores_to_compute_on() -> int | None:
    """Cores that torch's threads may use here; None where a GPU computes."""
    return None if has_gpu() else len(os.sched_getaffinity(0))


@contextlib.contextmanager
def on_one_thread() -> Iterator[None]:
    """torch's own threads stay idle inside."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def repack_output_head(model: Any) -> None:
    """vLLM on the CPU: give a tied output head its new weights.

    ``reload_weights`` repacks every linear layer but leaves the head's packed copy of tied
    embeddings as it was: rollouts would come from a half-old policy, with one log line to say so.
    """
    head = getattr(model, "lm_head", None)
    if not has_gpu() and head is not None and hasattr(head, "quant_method"):
        head.quant_method.process_weights_after_loading(head)


def weight_group(
    address: str, port: int, rank: int, world_size: int, device: Any, *, shares_gpu: bool, size: int = 0
) -> tuple[Any, Any]:
    """(group with ``broadcast(tensor, src, stream)``, device that its tensors must be on). ``size``: bytes that rank 0
    will send in a whole sync.

    NCCL between GPUs; gloo, one packet of host memory after another, where policy and engine share one: NCCL refuses
    two members on the same GPU. Without a GPU, on one machine, all of them map the same memory.
    """
    if has_gpu() and not shares_gpu:
        from openrlhf.utils.distributed_util import stateless_init_process_group

        return stateless_init_process_group(address, port, rank, world_size, device), device
    import torch
    from vllm.distributed.utils import stateless_init_torch_distributed_process_group

    from openrlhf_medical.host_broadcast import host_broadcast

    group = stateless_init_torch_distributed_process_group(address, port, rank, world_size, "gloo")
    shared = None if has_gpu() else host_broadcast(group, rank, size)
    return shared or _GlooBroadcast(group), torch.device("cpu")


class _GlooBroadcast:
    """The one method of vLLM's PyNcclCommunicator that weight sync uses, over gloo."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def broadcast(self, tensor: Any, src: int, stream: Any = None) -> None:
        self._group.broadcast(tensor, src).wait()


# ── Patches, each applied right after its module is imported ──


class _CpuDevice(str):
    """What ``torch.cuda.current_device()`` answers: upstream hands it to ``.to()`` and also writes
    ``torch.device(f"cuda:{…}")``, which needs a number and is never used as a target."""

    def __format__(self, spec: str) -> str:
        return "0"


def _patch_torch_cuda(cuda: Any) -> None:
    cuda.current_device = lambda: _CpuDevice("cpu")
    cuda.set_device = lambda device: None
    cuda.synchronize = lambda device=None: None
    cuda.current_stream = lambda device=None: None


def _patch_device_mesh(module: Any) -> None:
    original = module.init_device_mesh
    module.init_device_mesh = lambda device_type, *args, **kwargs: original("cpu", *args, **kwargs)


def _patch_sampler(module: Any) -> None:
    from openrlhf_medical.cpu_sampling import random_sample

    module.compiled_random_sample = random_sample


def _patch_linear(functional: Any) -> None:
    original = functional.linear

    @functools.wraps(original)
    def linear(input: Any, weight: Any, bias: Any = None) -> Any:  # torch's names: callers may use them
        if not _has_fast_bf16():
            from openrlhf_medical.bf16_linear import Bf16Linear, applies_to

            if applies_to(input, weight, bias):
                return Bf16Linear.apply(original, input, weight, bias)
        return original(input, weight, bias)

    functional.linear = linear


_RING_ATTENTION = "openrlhf.models.ring_attn_utils"
_PATCHES: dict[str, Callable[[Any], None]] = {
    "torch.cuda": _patch_torch_cuda,
    "torch.nn.functional": _patch_linear,
    "vllm.v1.sample.ops.topk_topp_sampler": _patch_sampler,
    "openrlhf.utils.deepspeed.deepspeed": _patch_device_mesh,
    _RING_ATTENTION: lambda module: None,
}


class _PatchOnImport(importlib.abc.MetaPathFinder):
    """Wraps the loaders of the modules named in ``_PATCHES``."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in _PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader, name)
        return spec


class _PatchingLoader(importlib.abc.Loader):
    def __init__(self, loader: Any, name: str) -> None:
        self._loader, self._name = loader, name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._loader, attribute)

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        with _flash_attn_names() if self._name == _RING_ATTENTION else contextlib.nullcontext():
            self._loader.exec_module(module)
        _PATCHES[self._name](module)


def _needs_flash_attention(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("sample packing and ring attention need FlashAttention, which needs an NVIDIA GPU")


@contextlib.contextmanager
def _flash_attn_names() -> Iterator[None]:
    """The names that ``ring_attn_utils`` imports from flash_attn, for the time of that import only.

    Left in ``sys.modules`` they would make transformers believe that FlashAttention is installed.
    """
    names = {
        "flash_attn": (),
        "flash_attn.bert_padding": ("index_first_axis", "pad_input", "rearrange", "unpad_input"),
        "flash_attn.utils": (),
        "flash_attn.utils.distributed": ("all_gather",),
    }
    if importlib.util.find_spec("flash_attn") is not None:
        yield
        return
    for name, functions in names.items():
        module = types.ModuleType(name)
        for function in functions:
            setattr(module, function, _needs_flash_attention)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
