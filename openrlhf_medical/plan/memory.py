"""What one worker holds in memory, estimated in bytes: pure arithmetic on a model's dimensions.

=============  ============================================================  ===========================================
weights        2 P; with ZeRO-3 2 P / N and the gathered part in use         ZeRO, arXiv 1910.02054, section 5
gradients      2 T (ZeRO 0, 1), 2 T / N (2, 3); 4 where summed in fp32       the same; DeepSpeed ``grad_accum_dtype``
sync           2 P without a GPU: memory that engines read weights from      ``host_broadcast.py``
optimizer      12 T / N: fp32 weights and Adam's two moments; 8 with Muon    the same (its K = 12); ZeRO 0: not / N
step           4 T / N: DeepSpeed's fp32 copy of the gradients; of a piece   ``stage_1_and_2.py: step``, ``stage3.py``
               of them for one worker with ZeRO-2 (``learner/workers.py``)
activations    with checkpointing: 2 hidden per layer, and one layer whole   arXiv 2205.05198, section 4, counted for
               (queries, keys, values, both norms in fp32, 4 × MLP)          gated MLPs and fused attention
logits         vocabulary × (fp32 logits, their gradient, its bf16 copy)     ``openrlhf.models.Actor.forward``
cache          2 × layers × KV heads × head size × 2 bytes per token         arXiv 2309.06180, section 3
=============  ============================================================  ===========================================

P: parameters; T: those that are trained; N: workers that share them. What a formula cannot know (CUDA contexts,
NCCL, allocators) is a named constant below. A backward pass and an optimizer step are never at the same time, so the
larger of the two counts. Micro-batches are taken as long as ``data.max_len`` allows: real ones are mostly shorter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from openrlhf_medical.layout import PIECE_ELEMENTS, TURNS_OF_ENGINE
from openrlhf_medical.plan.shapes import ModelShape

GIB = 1 << 30
BF16, FP32 = 2, 4
ADAM, MUON = 12, 8
"""Bytes of optimizer state a parameter, fp32 weights included."""
NF4 = 4.127 / 8
"""Bytes a parameter in 4 bits with quantised scales (QLoRA, arXiv 2305.14314, section 3)."""
BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's default ``reduce_bucket_size``; upstream's "auto" falls back to it."""
LIVE_ELEMENTS = SUB_GROUP_ELEMENTS = 1_000_000_000
"""DeepSpeed's defaults for ZeRO-3: ``stage3_max_live_parameters`` and ``sub_group_size``."""

CUDA_PROCESS = 1 * GIB
"""Of the GPU, by each process on it: CUDA context, kernels, cuBLAS and NCCL buffers. Not measured by us."""
CUDA_GRAPHS = 1 * GIB
"""vLLM's captured graphs, which its share of the GPU does not include."""
ENGINE_BATCH_TOKENS = 2048
"""vLLM 0.29's default for an engine in a program (``SchedulerConfig``): tokens of a forward pass."""

HOST_PROCESS_CUDA = 3 * GIB
"""Host memory of a worker beside a GPU: libraries and pinned buffers. Not measured by us."""
HOST_TRAINER, HOST_ENGINE, HOST_REST = 1 * GIB, 1 * GIB, 1 * GIB
"""Host memory without a GPU, beyond what is counted: a training worker, an engine, and driver, Ray and judge."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of one worker, by what they are for: in its device's memory, and in the host's."""

    device: Mapping[str, int]
    host: Mapping[str, int] = field(default_factory=dict)
    note: str = ""

    @property
    def device_bytes(self) -> int:
        return sum(self.device.values())

    @property
    def host_bytes(self) -> int:
        return sum(self.host.values())


@dataclass(frozen=True, slots=True)
class Training:
    """How models are trained and passed through: the keys of ``ds.*``, ``actor.*`` and ``train.*`` that matter."""

    ranks: int
    zero_stage: int
    tokens: int
    """Of a backward pass on one worker, padding included."""
    forward_tokens: int
    """Of a pass for log-probabilities."""
    checkpointing: bool = False
    adam_offload: bool = False
    muon: bool = False
    gradient_bytes: int = BF16
    overlap: bool = False
    adapters: int = 0
    adapter_rank: int = 0
    four_bit: bool = False
    entropy: bool = False
    average: bool = False
    """A moving average of the weights is kept."""
    reference_offload: bool = False
    on_gpu: bool = True

    @property
    def is_alone(self) -> bool:
        """Whether gradients and optimizer are handled in pieces (``SelfPlayStrategy``)."""
        return self.ranks == 1 and self.zero_stage == 2 and not self.adam_offload

    @property
    def flash_cross_entropy(self) -> bool:
        """FlashAttention's kernel, which the GPU's pins have: upstream uses it where it can be imported."""
        return self.on_gpu


def policy_need(shape: ModelShape, training: Training, vocabulary: int | None = None) -> Need:
    """One rank of a policy's workers, or of a critic's with ``vocabulary`` 0, which has a head of one output."""
    words = shape.vocabulary if vocabulary is None else vocabulary
    parameters = shape.parameters - (0 if words or shape.tied else shape.embedding)
    trained = training.adapters * shape.adapter_parameters(training.adapter_rank) or parameters
    ranks, stage = training.ranks, training.zero_stage
    shared = ranks if stage else 1
    state = trained * ADAM // shared
    if training.muon:
        embeddings = min(trained, shape.embedding * (1 if shape.tied else 2))
        state = ((trained - embeddings) * MUON + embeddings * ADAM) // shared
    gradients = training.gradient_bytes * trained // (ranks if stage >= 2 else 1)
    at_once = min(trained // ranks, SUB_GROUP_ELEMENTS) if stage == 3 else trained // shared
    bucket = _bucket(trained, training)
    if training.is_alone:
        piece = min(trained, max(PIECE_ELEMENTS, shape.embedding))
        bucket, at_once = BF16 * piece, trained if training.muon else piece
    step = FP32 * at_once
    backward = bucket + _backward(shape, training, words)
    forward = _forward(shape, training, words)
    device = {"weights": _weights(shape, parameters, training)}
    host: dict[str, int] = {}
    if training.adam_offload and stage:  # DeepSpeed's offload is ZeRO's; gradients and the fp32 step go with it
        host |= {"optimizer": state + step + BF16 * trained // shared}
        device |= {"gradients": 0 if stage == 3 else gradients, "optimizer": 0, "passes": max(backward, forward)}
    else:
        device |= {"gradients": gradients, "optimizer": state, "passes": max(backward, forward, step)}
    if training.adapters:
        device["weights"] += BF16 * trained
    if training.average:  # upstream asks for it in host memory, which DeepSpeed only does under ZeRO-3
        where = host if stage == 3 else device
        where["average"] = BF16 * parameters // (ranks if stage == 3 else 1)
    if words and not training.on_gpu and not training.adapters:
        device["sync"] = BF16 * parameters  # memory that the engines read new weights from
    return _with_process(device, host, training.on_gpu, loading=BF16 * parameters)


def reference_need(shape: ModelShape, training: Training) -> Need:
    """One rank of the frozen reference's workers."""
    device, host = {"weights": _weights(shape, shape.parameters, training)}, {}
    if training.reference_offload and training.zero_stage == 3:  # DeepSpeed offloads weights under ZeRO-3 only
        host["weights"] = BF16 * shape.parameters // training.ranks
        device["weights"] -= host["weights"]
    device["passes"] = _forward(shape, training, shape.vocabulary)
    return _with_process(device, host, training.on_gpu, loading=BF16 * shape.parameters)


def _weights(shape: ModelShape, parameters: int, training: Training) -> int:
    if training.four_bit:
        linear = shape.in_linear_layers
        return int(NF4 * linear) + BF16 * (parameters - linear)
    if training.zero_stage == 3 and training.ranks > 1:
        return BF16 * parameters // training.ranks + BF16 * min(parameters, LIVE_ELEMENTS)
    return BF16 * parameters


def _bucket(trained: int, training: Training) -> int:
    """Gradients on their way to the ranks that keep them. The whole buffer is taken on a GPU, whatever its use."""
    if not training.zero_stage:
        return 0
    elements = BUCKET_ELEMENTS if training.on_gpu else min(trained, BUCKET_ELEMENTS)
    return BF16 * elements * (2 if training.overlap else 1)


def layer_bytes(shape: ModelShape, tokens: int) -> int:
    """Activations that one block keeps for its backward pass: inputs of its linear layers, queries, keys, values,
    attention's output, two norms in fp32, and of the MLP both halves, the activation and the product."""
    attention = 3 * shape.hidden + 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    return tokens * (BF16 * (attention + shape.hidden + 4 * shape.intermediate) + 2 * FP32 * shape.hidden)


def _backward(shape: ModelShape, training: Training, words: int) -> int:
    one = layer_bytes(shape, training.tokens)
    kept = BF16 * training.tokens * shape.hidden * shape.layers + one if training.checkpointing else one * shape.layers
    # fp32 logits, their gradient, and its bf16 copy; autograd of gather and of logsumexp in chunks holds more.
    each = 2 * FP32 + BF16 if training.flash_cross_entropy else 4 * FP32
    each += 2 * FP32 if training.entropy else 0
    return kept + training.tokens * words * each


def _forward(shape: ModelShape, training: Training, words: int) -> int:
    """Log-probabilities without gradients: one block's activations, logits in bf16 and in fp32."""
    return layer_bytes(shape, training.forward_tokens) + training.forward_tokens * words * (BF16 + FP32)


def _with_process(device: dict[str, int], host: dict[str, int], on_gpu: bool, loading: int) -> Need:
    """``loading``: transformers reads a model into host memory before it goes to the GPU, in each worker."""
    if on_gpu:
        host = {**host, "process": HOST_PROCESS_CUDA, "loading": max(0, loading - sum(host.values()))}
        return Need({**device, "process": CUDA_PROCESS}, host)
    return Need({**device, "process": HOST_TRAINER}, host)


@dataclass(frozen=True, slots=True)
class Serving:
    """How an engine is started."""

    max_len: int
    tensor_parallel_size: int = 1
    share: float = 0.9
    """``vllm.gpu_memory_utilization``."""
    adapters: int = 0
    adapter_rank: int = 0
    """As vLLM rounds it up."""
    eager: bool = False
    sync_bytes: int = 0
    """Largest packet of a weight sync."""
    cpu_cache: int = 0
    """Bytes of cache of an engine without a GPU."""
    cpu_bytes: int = BF16
    """Of a number in such an engine: fp32 where the CPU has no fast bf16."""


def cache_bytes_per_token(shape: ModelShape, tensor_parallel_size: int = 1) -> int:
    """On one of the GPUs of an engine; with more GPUs than KV heads each holds a copy of one."""
    heads = max(1, shape.kv_heads // tensor_parallel_size)
    return 2 * shape.layers * heads * shape.head_dim * BF16


def engine_need(shape: ModelShape, serving: Serving, gpu_bytes: int | None) -> tuple[Need, int]:
    """One GPU of an engine, and how many sequences of ``max_len`` tokens its cache holds (0: it would not start).

    vLLM takes its share of the whole GPU, whoever else is on it: what weights and passes leave of that is cache.
    ``gpu_bytes`` None: no GPU, host memory.
    """
    parallel = serving.tensor_parallel_size
    weights = BF16 * shape.parameters // parallel
    weights += BF16 * serving.adapters * shape.adapter_parameters(serving.adapter_rank) // parallel
    hidden = BF16 * ENGINE_BATCH_TOKENS * (4 * shape.hidden + 3 * shape.intermediate // parallel)
    passes = hidden + TURNS_OF_ENGINE * shape.vocabulary * 3 * FP32  # logits, log-probabilities, the sampler's copy
    per_sequence = cache_bytes_per_token(shape, parallel) * serving.max_len
    if gpu_bytes is None:
        wider = serving.cpu_bytes // BF16
        packed = BF16 * shape.embedding if shape.tied else 0  # vLLM on the CPU keeps a packed copy of a tied head
        device = {"weights": wider * (weights + packed), "passes": passes, "cache": serving.cpu_cache,
                  "process": HOST_ENGINE}  # fmt: skip
        return Need(device), serving.cpu_cache // (wider * per_sequence)
    cache = int(serving.share * gpu_bytes) - weights - passes - CUDA_PROCESS
    # Outside of its share: graphs, and two packets of a sync, one being loaded while the next arrives.
    outside = (0 if serving.eager else CUDA_GRAPHS) + 2 * serving.sync_bytes
    device = {"weights": weights, "passes": passes, "cache": max(0, cache), "process": CUDA_PROCESS + outside}
    return Need(device, {"process": HOST_PROCESS_CUDA}), max(0, cache) // per_sequence
