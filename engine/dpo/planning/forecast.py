"""What the long run will take: memory, time and disk. Formulas of named terms; a short run that was measured sets them right.

memory at the peak of the training
    context        what CUDA and its libraries take in a process; on the CPU, what the process held before it loaded a model
    weights        base parameters × bytes of one
    adapter        float32: the policy's, the reference's copy, the gradient, two moments of AdamW: 5 × 4 bytes a number
    activations    what autograd keeps of a token and a layer (`kept_per_token`) × layers × tokens of a forward pass; computed
                   twice: the hidden state of each layer, and all of one layer
    attention      the mask of a row that two replies share, as numbers, in each layer; and if attention is written out
                   ("eager") the scores of all heads
    head           TRL's head takes 4,096 tokens by 32,768 words at a time, in float32, forward and backward: without that
                   Gemma's 256,000 words would take 1 MB a token
    workspace      what the layer at work needs and gives back
    the last four are more on the CPU (SLACK)
memory at the peak of the generation
    context, weights, adapter as above; cache: keys and values of all rows, twice while rows are joined; logits of a row; workspace
seconds_pairs     = batches × (readings × prefill + steps × tokens × seconds per decoding step)
seconds_training  = pairs × share of the longest pair × seconds of its step × (epochs, and 1/3 for the reference)
bytes             = pairs × bytes a record + (kept checkpoints + 1) × checkpoint + archive
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from engine.core.events import Event, RunStarted, StageStarted
from engine.dpo.planning.plan import TrainingPlan
from engine.run.journal import Entry

if TYPE_CHECKING:
    import torch

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""
QUANTIZED = 0.56
"""Bytes of a parameter in 4 bits, with the scales of its blocks of 64 (Dettmers et al. 2023, section 3)."""
ADAPTER_COPIES = 5
CUDA_CONTEXT = 600 << 20
"""Measured by others at 0.3 to 0.8 GB, by GPU and version (pytorch#20532)."""
HEAD_TOKENS, HEAD_WORDS = 4096, 32768
"""The tile of TRL's head (trl.kernels.chunked_logprob, trl.trainer.utils)."""
EAGER = ("gemma2",)
"""Architectures that transformers loads with attention written out in matrix products."""
SLACK = {"cpu": 2.0}
"""Resident memory against what the tensors hold. Autograd's part is exact (tests/dpo/test_forecast.py); the C library keeps what is
freed and cannot always use it again: 1.9 and 2.0 times, measured with a model of 30 M parameters (bench/gpu.py --tiny)."""
LIBRARIES = 150 << 20
"""Of host memory, what TRL's import and a thread of its own take once the training begins."""
CACHE_COPIES = 2
FORWARD_SHARE = 1 / 3
"""Of the time of a step: the backward pass takes twice as long as the forward pass."""
REPLY_MARGIN = 1.5
"""A batch ends with its longest reply; that is longer than the one reply that was measured."""
ARCHIVE_ADAPTERS = 2
"""The archive holds the adapter and the data; as much again as the adapter is room enough for the data."""
COPIES_OF_A_RECORD = 2
"""In pairs.jsonl, and as it trains in dpo_dataset."""
CHECKPOINT_COPIES = 3
"""Of the adapter's numbers, in float32: the policy's and two moments of AdamW."""


@dataclass(frozen=True)
class Measurements:
    """The short run."""

    batch_size: int
    reply_tokens: float
    """Mean tokens of draft, critique and revision."""
    prefill_seconds: float
    """Reading a batch of prompts, once."""
    decode_seconds: float
    """One token of every row of a batch."""
    record_bytes: int
    step_seconds: float
    """Forward, backward and update on one pair of the longest kind."""
    longest_tokens: int
    pair_tokens: float
    """Mean tokens of prompt and reply of the pair that was made."""
    checkpoint_bytes: int
    peak_bytes: int
    """Memory at the peak of those training steps: of the GPU if there is one, else resident memory of the process."""
    peak_bytes_pairs: int = 0
    """The same of the generation."""


@dataclass(frozen=True)
class Forecast:
    seconds_pairs: float
    seconds_training: float
    disk_bytes: int
    peak_bytes: int
    """Of the training."""
    peak_bytes_pairs: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def forecast(
    measured: Measurements,
    *,
    num_examples: int,
    replies: int,
    readings: float,
    max_new_tokens: int,
    epochs: float,
    save_total_limit: int,
    plan: TrainingPlan,
) -> Forecast:
    """Of the whole, from the run in small that was made under `plan`.

    replies, readings   of one pair (`engine.pairs.generation.effort`)
    """
    tokens = min(max_new_tokens, REPLY_MARGIN * measured.reply_tokens)
    batches = ceil(num_examples / measured.batch_size)
    reading = readings * measured.prefill_seconds
    saying = replies * tokens * measured.decode_seconds
    pairs_seconds = batches * (reading + saying)
    share = min(1.0, measured.pair_tokens / max(measured.longest_tokens, 1))
    # A live reference is in the step that was measured; one that is computed once comes on top.
    passes = epochs + (FORWARD_SHARE if plan.reference == "up front" else 0.0)
    training_seconds = num_examples * share * measured.step_seconds * passes
    disk = disk_parts(
        num_examples=num_examples,
        record_bytes=measured.record_bytes,
        checkpoint_bytes=measured.checkpoint_bytes,
        save_total_limit=save_total_limit,
    )
    peaks = (measured.peak_bytes, measured.peak_bytes_pairs)
    return Forecast(pairs_seconds, training_seconds, sum(disk.values()), *peaks)


def disk_parts(*, num_examples: int, record_bytes: int, checkpoint_bytes: int, save_total_limit: int) -> dict[str, int]:
    """Bytes that the run folder will hold at the most, and the archive beside it, by what they are for."""
    return {
        "pairs": num_examples * COPIES_OF_A_RECORD * record_bytes,
        "checkpoints": checkpoint_bytes * (save_total_limit + 1),  # one is written before the oldest goes
        "archive": checkpoint_bytes * ARCHIVE_ADAPTERS,
    }


def against_measured(forecast: Mapping[str, Any], measured: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Of each name in both: the forecast, what was measured, and (forecast - measured) / measured."""
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
    """Seconds from each start of `stage` to the last event of the kinds `until` in it, over all processes that worked at it."""
    clock = WorkClock(stage, until)
    for entry in entries:
        clock.see(entry)
    return clock.seconds


class WorkClock:
    """`seconds_at_work`, for entries that come one by one."""

    def __init__(self, stage: str, until: tuple[type[Event], ...]) -> None:
        self._stage, self._until = stage, until
        self._before = 0.0
        self._started: float | None = None
        self._last: float | None = None

    def see(self, entry: Entry) -> None:
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
    """What the memory of a model and its adapter follows from."""

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
    """Names of the projections that the adapter is on: q_proj, down_proj, …"""
    eager: bool = False

    @property
    def q(self) -> int:
        """Numbers of all query heads of a token."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        return self.kv_heads * self.head_dim

    @classmethod
    def of(cls, model_config: Any, adapter: Mapping[str, Any]) -> Shape:
        """From a transformers configuration and what the stage adapter recorded."""
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
    """Bytes that autograd keeps of one token in one layer: exact for Gemma and Llama with LoRA (tests/dpo/test_forecast.py).

    In 16 bits each projection with LoRA keeps its own copy of its input, in float32 they share it.
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


def weight_bytes(shape: Shape, dtype: str, in_4bit: bool) -> int:
    width, projections = (
        WIDTH[dtype],
        shape.hidden * shape.layers * (2 * shape.q + 2 * shape.kv + 3 * shape.intermediate),
    )
    if not in_4bit:
        return width * shape.base_parameters
    return int(QUANTIZED * projections) + width * shape.vocab * shape.hidden


def training_memory(
    shape: Shape, plan: TrainingPlan, *, max_length: int, context: int, in_4bit: bool = False, slack: float = 1.0
) -> dict[str, int]:
    """Bytes at the peak of a step on the longest pairs, by term."""
    width, layer = WIDTH[plan.dtype], kept_per_token(shape, plan.dtype)
    row = 2 * max_length
    """Two replies of nearly all of the length: a pair whose prompt takes no part of it is the largest."""
    tokens = plan.micro_batch * row
    deep = shape.hidden * width * shape.layers + layer if plan.gradient_checkpointing else layer * shape.layers
    square = plan.micro_batch * row * row
    attention = square * width + square * shape.heads * (2 * width + 4) * shape.eager
    workspace = tokens * width * (2 * shape.intermediate + 4 * shape.hidden)
    return {
        "context": context,
        "weights": weight_bytes(shape, plan.dtype, in_4bit),
        "adapter": ADAPTER_COPIES * 4 * shape.adapter_parameters,
        "activations": int(slack * tokens * deep),
        "attention": int(slack * attention * (1 if plan.gradient_checkpointing else shape.layers)),
        "head": int(slack * head_memory(shape, tokens)),
        "workspace": int(slack * workspace * (2 if plan.reference == "live" else 1)),
    }


def head_memory(shape: Shape, tokens: int) -> int:
    words = min(shape.vocab, HEAD_WORDS)
    return 2 * 4 * min(tokens, HEAD_TOKENS) * words + 4 * words * shape.hidden + 2 * 4 * tokens * shape.hidden


def generation_memory(
    shape: Shape, dtype: str, *, rows: int, longest: int, context: int, in_4bit: bool = False
) -> dict[str, int]:
    """Bytes at the peak of the generation of `rows` side by side, each of `longest` tokens with its reply, by term."""
    width = WIDTH[dtype]
    return {
        "context": context,
        "weights": weight_bytes(shape, dtype, in_4bit),
        "adapter": 4 * shape.adapter_parameters,
        "cache": CACHE_COPIES * rows * longest * shape.layers * 2 * shape.kv * width,
        "logits": rows * shape.vocab * (width + 3 * 4),
        "workspace": rows * longest * width * (2 * shape.intermediate + 4 * shape.hidden),
    }


@dataclass(frozen=True)
class Machine:
    """What the device, and the computer around it, have."""

    device_type: str
    total: int
    """Bytes of the device's memory; of the computer's, if it computes itself."""
    room: int
    """What of it this process may fill: what is free, and what it has already."""
    context: int
    """Bytes that are gone before a model is loaded."""
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
    # A share that was set for this process (set_per_process_memory_fraction) is all that its allocator gives.
    share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(device)
    room = min(free + torch.cuda.memory_reserved(device), int(share * total)) + CUDA_CONTEXT
    return Machine("cuda", total, room, CUDA_CONTEXT, memory.available)
