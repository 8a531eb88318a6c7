"""Forecast memory, time and disk space of the full run, with formulas of named terms that a measured short run calibrates.

Peak memory of training
    context        CUDA and its libraries; on the CPU, the process before it loads a model
    weights        base parameters × bytes per parameter; sharded, this process's shard and what a pass gathers: the
                   embeddings, the head and two layers
    adapter        float32: policy, reference copy, gradient, two AdamW moments: 5 × 4 bytes per value; some --optim have
                   smaller moments
    activations    kept by autograd per token and layer (`kept_per_token`) × layers × tokens of a forward pass; with
                   gradient checkpointing, the hidden state of each layer plus one full layer
    attention      the additive mask of a row with two replies, in each layer; for long texts (`rows_from`), a single mask
                   of the rejected reply; for "eager" attention, the mask and the scores of all heads
    head           depends on --head: TRL's float32 tiles of 4,096 tokens × 32,768 words, forward and backward; our small
                   tiles and the gradient of each hidden state; or all logits, 1 MB per token with Gemma's 256,000 words
    workspace      temporary memory of the current layer
    The last four are larger on the CPU (SLACK).
Peak memory of generation
    context, weights and adapter as above; cache: keys and values of all rows, twice while rows are merged; logits; workspace
seconds_pairs     = loading + batches × (prompt reads × prefill + replies × tokens × seconds per decoding step)
seconds_training  = loading + pairs × length relative to the longest pair × seconds of its step × (epochs, plus 1/3 for the
                    reference)
disk_bytes        = pairs × bytes per record + (kept checkpoints + 1) × checkpoint + archive
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Literal, cast

from engine.core.events import Event, RunStarted, StageStarted
from engine.dpo.planning.plan import TrainingPlan
from engine.dpo.planning.workload import Workload
from engine.machine.optimizers import TORCH_ADAMW, moment_bytes
from engine.run.journal import Entry

if TYPE_CHECKING:
    import torch

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per value."""
QUANTIZED = 0.56
"""Bytes per parameter in 4 bits, including the scale of each block of 64 (Dettmers et al. 2023, section 3)."""
ADAPTER_COPIES = 3
"""Copies in float32: the policy, the reference and the gradient."""
GATHERED_LAYERS = 2
"""Layers of a sharded model that are gathered at a time: the current one, and the next one, which is prefetched."""
CUDA_CONTEXT = 600 << 20
"""Reported as 0.3 to 0.8 GB, depending on GPU and version (pytorch#20532)."""
HeadMethod = Literal["chunked", "trl", "whole"]
ROWS_FROM, DEFAULT_ROWS_FROM = {"cpu": 512}, 2048
"""Texts of at least so many tokens attend row by row (`engine.dpo.training.attention`). For shorter ones, two calls per row
cost as much as they save (bench/attention.py). Not measured on a GPU: there, only where masks take several MB per layer."""
HEAD_TOKENS, HEAD_WORDS = 4096, 32768
"""The tile of TRL's head (trl.kernels.chunked_logprob, trl.trainer.utils)."""
CHUNK_TOKENS, CHUNK_WORDS = 512, 4096
"""The tile of our head (engine.models.head)."""
TRL_TILES = {"cpu": 7}
"""Tiles that TRL's head keeps at once: without Triton, one for each operation of its backward pass (bench/head.py)."""
EAGER = ("gemma2",)
"""Model types that transformers loads with eager attention."""
SLACK = {"cpu": 2.0}
"""Resident memory relative to the size of the tensors. Autograd's part is exact (tests/dpo/test_forecast.py), but the C
library keeps freed memory and cannot always reuse it: 1.9 and 2.0 times, measured with 30 M parameters (bench/gpu.py
--tiny)."""
LIBRARIES = 150 << 20
"""Host memory that importing TRL and starting its thread take when training begins."""
CACHE_COPIES = 2
FORWARD_SHARE = 1 / 3
"""The forward pass's share of a step's time: the backward pass takes twice as long."""
REPLY_MARGIN = 1.5
"""A batch takes as long as its longest reply, which is longer than the measured mean."""
EVERYDAY_TOKENS = 128
"""Maximum length of an answer to an everyday question (`engine.dpo.evaluation.answers`)."""
START_SECONDS = 5.0
"""For a child process to import torch, transformers and PEFT: 4.9 s on one virtual core, and each child has at least one."""
ARCHIVE_ADAPTERS = 2
"""The archive contains the adapter, and the data, for which another adapter's size is enough."""
RECORD_COPIES = 2
"""Each record is in pairs.jsonl and in dpo_dataset."""
CHECKPOINT_COPIES = 3
"""Copies of the adapter in float32: the policy and two AdamW moments."""


@dataclass(frozen=True)
class Measurements:
    """Measurements of the short run."""

    batch_size: int
    reply_tokens: float
    """Mean length of drafts, critiques and revisions."""
    prefill_seconds: float
    """Seconds to read a batch of prompts once."""
    decode_seconds: float
    """Seconds per token for a whole batch."""
    record_bytes: int
    step_seconds: float
    """Seconds of a training step on a pair of maximum length, in one process: forward, backward and update."""
    longest_prompt_tokens: float
    longest_replies_tokens: float
    """Tokens in the prompt and in both replies of that pair."""
    prompt_tokens: float
    replies_tokens: float
    """Mean tokens in the prompt and in both replies of the pairs that were made."""
    head_weight: float
    """Cost of the vocabulary head per reply token, as a multiple of the cost of all layers."""
    checkpoint_bytes: int
    peak_bytes: int
    """Peak memory of those training steps: GPU memory, or resident memory of the process."""
    peak_bytes_pairs: int = 0
    """Peak memory of generation."""
    load_seconds: float = 0.0
    """Seconds to load base model and adapter, which stages pairs and training each do once, however few pairs there are."""
    usable_share: float = 1.0
    """Share of the pairs made that are usable."""

    @property
    def pair_share(self) -> float:
        """Cost of a mean pair relative to the longest: the layers read prompt and replies, the head only the replies."""
        longest = self.longest_prompt_tokens + (1 + self.head_weight) * self.longest_replies_tokens
        mean = self.prompt_tokens + (1 + self.head_weight) * self.replies_tokens
        return min(1.0, mean / max(longest, 1))


@dataclass(frozen=True)
class Forecast:
    seconds_pairs: float
    seconds_training: float
    disk_bytes: int
    peak_bytes: int
    """Peak memory of training."""
    peak_bytes_pairs: int = 0
    seconds_evaluation: float = 0.0
    """Seconds for both policies' answers and log-probabilities, without a judge."""

    @property
    def seconds(self) -> float:
        return self.seconds_pairs + self.seconds_training + self.seconds_evaluation

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def forecast(
    measured: Measurements,
    work: Workload,
    plan: TrainingPlan,
    *,
    pair_processes: int = 1,
    evaluation_processes: int = 1,
    share_device: bool = False,
) -> Forecast:
    """Forecast the full run from a short one that ran under `plan`.

    pair_processes         processes that make pairs; the number that train is in the plan
    evaluation_processes   processes that evaluate after training
    share_device           whether processes that make pairs or evaluate share one device (a CPU), as fast as one process
    """
    parallel = 1 if share_device else pair_processes
    prefill = work.prompt_reads * measured.prefill_seconds
    decode = work.replies * _reply_tokens(measured, work.max_new_tokens) * measured.decode_seconds
    batches = ceil(ceil(work.prompts / measured.batch_size) / parallel)
    pairs_seconds = _startup_seconds(measured, pair_processes) + batches * (prefill + decode)
    # The measured step includes a live reference; one computed up front is added.
    passes = work.epochs + (FORWARD_SHARE if plan.reference == "up front" else 0.0)
    seconds = work.train * _pair_seconds(measured) * passes / plan.processes
    training_seconds = _startup_seconds(measured, plan.processes) + seconds
    disk = disk_parts(
        num_examples=work.prompts,
        record_bytes=measured.record_bytes,
        checkpoint_bytes=measured.checkpoint_bytes,
        save_total_limit=work.save_total_limit,
    )
    peaks = (measured.peak_bytes, measured.peak_bytes_pairs)
    parallel = 1 if share_device else evaluation_processes
    evaluation_seconds = _evaluation_seconds(measured, work, evaluation_processes, parallel)
    if evaluation_processes > 1:  # each loads both policies; a single process still has them in memory from training
        evaluation_seconds += _startup_seconds(measured, evaluation_processes)
    return Forecast(pairs_seconds, training_seconds, sum(disk.values()), *peaks, evaluation_seconds)


def _reply_tokens(measured: Measurements, limit: int) -> float:
    return min(limit, REPLY_MARGIN * measured.reply_tokens)


def _pair_seconds(measured: Measurements) -> float:
    """Seconds that a mean pair adds to training, per epoch."""
    return measured.pair_share * measured.step_seconds


def _evaluation_seconds(measured: Measurements, work: Workload, processes: int, parallel: int) -> float:
    """Both policies answer and read the held-out pairs, then their own answers; the base model reads the answers once more.

    processes   divide the reading; the measured step already includes the effect of a shared device
    parallel    batches that are generated at a time, each as fast as the one that was measured alone
    """
    answering = 0.0
    for prompts, max_tokens in ((work.answered, work.max_new_tokens), (work.everyday, EVERYDAY_TOKENS)):
        tokens = _reply_tokens(measured, min(max_tokens, work.max_new_tokens))
        prefill = 2 * prompts / measured.batch_size * measured.prefill_seconds
        rounds = ceil(2 * ceil(prompts / measured.batch_size) / parallel)
        answering += prefill / parallel + rounds * tokens * measured.decode_seconds
    read = 2 * work.held_out + 2 * work.answered + work.answered
    return answering + read * FORWARD_SHARE * _pair_seconds(measured) / processes


def _startup_seconds(measured: Measurements, processes: int) -> float:
    """Seconds until the model is loaded: in this process, or in several new ones."""
    return measured.load_seconds + (START_SECONDS if processes > 1 else 0.0)


def disk_parts(*, num_examples: int, record_bytes: int, checkpoint_bytes: int, save_total_limit: int) -> dict[str, int]:
    """Maximum bytes of the run folder and the archive beside it, by purpose."""
    return {
        "pairs": num_examples * RECORD_COPIES * record_bytes,
        "checkpoints": checkpoint_bytes * (save_total_limit + 1),  # a new one is written before the oldest is deleted
        "archive": checkpoint_bytes * ARCHIVE_ADAPTERS,
    }


def against_measured(forecast: Mapping[str, Any], measured: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """For each name in both mappings: forecast, measured value, and (forecast - measured) / measured."""
    return {
        name: {
            "forecast": float(forecast[name]),
            "measured": float(value),
            "relative_error": (float(forecast[name]) - value) / value,
        }
        for name, value in measured.items()
        if name in forecast and value > 0
    }


def seconds_at_work(entries: Iterable[Entry], stage: str, until: tuple[type[Event], ...]) -> float:
    """Seconds from each start of `stage` to its last event of a type in `until`, summed over all starts."""
    clock = WorkClock(stage, until)
    for entry in entries:
        clock.add(entry)
    return clock.seconds


class WorkClock:
    """Computes `seconds_at_work` for entries that arrive one by one."""

    def __init__(self, stage: str, until: tuple[type[Event], ...]) -> None:
        self._stage, self._until = stage, until
        self._before = 0.0
        self._started: float | None = None
        self._last: float | None = None

    def add(self, entry: Entry) -> None:
        event = entry.event
        if isinstance(event, (RunStarted, StageStarted)):
            self._before = self.seconds
            self._started = entry.time if isinstance(event, StageStarted) and event.stage == self._stage else None
            self._last = None
        elif self._started is not None and isinstance(event, self._until):
            self._last = entry.time

    @property
    def seconds(self) -> float:
        if self._started is None or self._last is None:
            return self._before
        return self._before + self._last - self._started


# -- memory ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """The dimensions that determine the memory of a model and its adapter."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    base_parameters: int
    adapter_parameters: int
    rank: int
    targets: tuple[str, ...]
    """Projections that have an adapter: q_proj, down_proj, …"""
    eager: bool = False

    @property
    def head_weight(self) -> float:
        """Multiplications in the vocabulary head per token, as a multiple of those in all layers."""
        attention = 2 * self.hidden * (self.q + self.kv)
        return self.vocab * self.hidden / (self.layers * (attention + 3 * self.hidden * self.intermediate))

    @property
    def q(self) -> int:
        """Combined size of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        return self.kv_heads * self.head_dim

    @classmethod
    def of(cls, model_config: Any, adapter: Mapping[str, Any]) -> Shape:
        """The shape from a transformers configuration and the record of stage adapter."""
        text = model_config.get_text_config()
        hidden, heads, layers = text.hidden_size, text.num_attention_heads, text.num_hidden_layers
        intermediate = getattr(text, "intermediate_size", None) or 4 * hidden
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        head_dim = getattr(text, "head_dim", None) or hidden // heads
        targets = tuple(sorted({str(name).rpartition(".")[2] for name in adapter.get("target_modules", ())}))
        projections = layers * hidden * (2 * heads * head_dim + 2 * kv_heads * head_dim + 3 * intermediate)
        embeddings = text.vocab_size * hidden * (1 if getattr(text, "tie_word_embeddings", False) else 2)
        rank = int(adapter.get("rank", 8))
        return cls(
            hidden=hidden,
            layers=layers,
            intermediate=intermediate,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab=text.vocab_size,
            base_parameters=int(adapter.get("base_parameters") or projections + embeddings),
            adapter_parameters=int(adapter.get("trainable_parameters") or 0),
            rank=rank,
            targets=targets,
            eager=text.model_type in EAGER,
        )


def kept_per_token(shape: Shape, dtype: str) -> int:
    """Bytes that autograd keeps per token and layer; exact for Gemma and Llama with LoRA (tests/dpo/test_forecast.py).

    In 16 bits, each projection with LoRA keeps its own copy of its input; in float32, projections share it.
    """
    hidden, q, kv, wide = shape.hidden, shape.q, shape.kv, shape.intermediate
    inputs = {"q_proj": hidden, "k_proj": hidden, "v_proj": hidden, "o_proj": q, "gate_proj": hidden, "up_proj": hidden}
    on = [name for name in shape.targets if name in inputs or name == "down_proj"]
    log_sums_and_norms = 4 * shape.heads + 8
    if WIDTH[dtype] == 4:
        kept = 8 * hidden + 12 * wide + 8 * q + 8 * kv + 4 * shape.rank * len(on)
        kept += 4 * hidden * (not {"q_proj", "k_proj", "v_proj"}.isdisjoint(on))
        kept += 4 * hidden * (not {"gate_proj", "up_proj"}.isdisjoint(on))
        kept += 4 * wide * ("down_proj" in on)
    else:
        kept = 8 * hidden + 6 * wide + 4 * q + 4 * kv + 2 * shape.rank * len(on)
        kept += 2 * sum(inputs.get(name, wide) for name in on)
    return kept + log_sums_and_norms


def weight_bytes(shape: Shape, dtype: str, quantization_arguments: bool, shards: int = 1) -> int:
    """Peak bytes of the base model's weights in each process."""
    width, layer = WIDTH[dtype], shape.hidden * (2 * shape.q + 2 * shape.kv + 3 * shape.intermediate)
    if quantization_arguments:
        return int(QUANTIZED * layer * shape.layers) + width * shape.vocab * shape.hidden
    if shards == 1:
        return width * shape.base_parameters
    gathered = max(shape.base_parameters - layer * shape.layers, 0) + GATHERED_LAYERS * layer
    return width * (ceil(shape.base_parameters / shards) + gathered)


def training_memory(
    shape: Shape,
    plan: TrainingPlan,
    *,
    max_length: int,
    context: int,
    quantization_arguments: bool = False,
    slack: float = 1.0,
    head: HeadMethod = "trl",
    device_type: str = "cuda",
    shards: int = 1,
    optim: str = TORCH_ADAMW,
) -> dict[str, int]:
    """Peak bytes of a training step on the longest pairs, by term.

    shards   processes that the weights are sharded over
    """
    width, layer = WIDTH[plan.dtype], kept_per_token(shape, plan.dtype)
    row = 2 * max_length
    """Two replies of nearly maximum length: pairs with a very short prompt are the largest."""
    tokens = plan.micro_batch * row
    deep = shape.hidden * width * shape.layers + layer if plan.gradient_checkpointing else layer * shape.layers
    copies = 1 if plan.gradient_checkpointing else shape.layers
    workspace = tokens * width * (2 * shape.intermediate + 4 * shape.hidden)
    return {
        "context": context,
        "weights": weight_bytes(shape, plan.dtype, quantization_arguments, shards),
        "adapter": int((ADAPTER_COPIES * 4 + 2 * moment_bytes(optim)) * ceil(shape.adapter_parameters / shards)),
        "activations": int(slack * tokens * deep),
        "attention": int(slack * attention_memory(shape, tokens, row, width, copies, device_type)),
        "head": head_memory(shape, tokens, head, device_type),
        "workspace": int(slack * workspace * (2 if plan.reference == "live" else 1)),
    }


def attention_memory(shape: Shape, tokens: int, row: int, width: int, copies: int, device_type: str) -> int:
    """Bytes of masks and scores for `tokens` in rows of at most `row` columns; `copies` layers keep theirs."""
    if shape.eager:
        return tokens * row * (width + shape.heads * (2 * width + 4)) * copies
    masked = min(row, 2 * rows_from(device_type))
    return tokens * max(masked * copies, row // 4) * width


def rows_from(device_type: str) -> int:
    """Tokens from which on texts need no mask of all columns."""
    return ROWS_FROM.get(device_type, DEFAULT_ROWS_FROM)


def head_method(requested: str, device_type: str) -> HeadMethod:
    """Resolve --head. TRL has a kernel for GPUs; elsewhere it keeps several large tiles at once, and is slower than ours."""
    if requested == "auto":
        return "trl" if device_type in ("cuda", "xpu") else "chunked"
    return cast("HeadMethod", requested)


def head_memory(shape: Shape, tokens: int, method: HeadMethod, device_type: str) -> int:
    """Peak bytes between hidden states and log-probabilities, forward and backward."""
    states = tokens * shape.hidden
    if method == "chunked":
        words = min(shape.vocab, CHUNK_WORDS)
        return 4 * (3 * min(tokens, CHUNK_TOKENS) * words + words * shape.hidden + 3 * states)
    if method == "whole":
        return 4 * 4 * tokens * shape.vocab
    words = min(shape.vocab, HEAD_WORDS)
    return 4 * (TRL_TILES.get(device_type, 2) * min(tokens, HEAD_TOKENS) * words + words * shape.hidden + 2 * states)


def generation_memory(
    shape: Shape,
    dtype: str,
    *,
    rows: int,
    longest: int,
    context: int,
    quantization_arguments: bool = False,
    gpus: int = 1,
) -> dict[str, int]:
    """Peak bytes of generating a batch of `rows`, each of `longest` tokens including its reply, by term.

    gpus   that the layers are distributed over
    """
    width = WIDTH[dtype]
    return {
        "context": context,
        "weights": ceil(weight_bytes(shape, dtype, quantization_arguments) / gpus),
        "adapter": ceil(4 * shape.adapter_parameters / gpus),
        "cache": ceil(CACHE_COPIES * rows * longest * shape.layers * 2 * shape.kv * width / gpus),
        "logits": rows * shape.vocab * (width + 3 * 4),
        "workspace": rows * longest * width * (2 * shape.intermediate + 4 * shape.hidden),
    }


@dataclass(frozen=True)
class Machine:
    """Memory of the device and the host."""

    device_type: str
    total: int
    """Bytes of the device's memory; of host memory if the device is the CPU."""
    room: int
    """Bytes that this process may use: free memory plus what it already holds."""
    context: int
    """Bytes in use before a model is loaded."""
    host_available: int

    @property
    def slack(self) -> float:
        return SLACK.get(self.device_type, 1.0)


def machine_of(device: torch.device) -> Machine:
    import psutil
    import torch

    memory, own = psutil.virtual_memory(), int(psutil.Process().memory_info().rss)
    if device.type != "cuda":
        return Machine(device.type, memory.total, memory.available + own, own + LIBRARIES, memory.available)
    free, total = torch.cuda.mem_get_info(device)
    # set_per_process_memory_fraction limits the allocator.
    share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(device)
    room = min(free + torch.cuda.memory_reserved(device), int(share * total)) + CUDA_CONTEXT
    return Machine("cuda", total, room, CUDA_CONTEXT, memory.available)
