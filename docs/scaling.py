"""The tables in docs/scaling.md that are computed, not measured: memory, time, disk and network on paper.

Memory and disk use the program's own formulas (engine/dpo/planning/forecast.py). So does the time, except that a run
measures the seconds per step and per token in preflight, and here they are derived from floating-point operations and
bytes.

Operations per token and parameter: 2 forward (Kaplan et al. 2020, section 2.1), 2 backward through a frozen weight, 2
more for the gradient of a trained weight, 2 more if activations are recomputed; 2 forward for the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil
from types import SimpleNamespace

from engine.dpo.planning.forecast import (
    CHECKPOINT_COPIES,
    CUDA_CONTEXT,
    Measurements,
    Shape,
    disk_parts,
    forecast,
    training_memory,
)
from engine.dpo.planning.plan import TrainingPlan
from engine.dpo.planning.workload import Workload

GB = 1e9
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 16
LIVE = TrainingPlan(1, 8, True, "live", "bfloat16")
"""One pair at a time, activations recomputed, the reference in each step."""
UTILISATION = 0.2
"""Share of a GPU's peak; `published_table` compares it with published figures."""
PAIR_TOKENS = 1000
"""Prompt and reply, for both replies."""
BYTES_PER_TOKEN = 4
"""For English text."""


@dataclass(frozen=True)
class Gpu:
    name: str
    flops: float
    """Dense bfloat16 operations per second (data sheet)."""
    memory_bandwidth: float
    """Bytes of memory read per second (data sheet)."""


A100 = Gpu("A100 80 GB", 312e12, 2.0e12)
H100 = Gpu("H100 80 GB", 989e12, 3.35e12)


def model(rank: int = RANK, **dimensions: int) -> Shape:
    """The shape of a model with these dimensions in its config.json and LoRA on all projections."""
    config = SimpleNamespace(model_type="llama", **dimensions)
    config.get_text_config = lambda: config
    bare = Shape.of(config, {"target_modules": TARGETS, "rank": rank})
    sides = {"q_proj": bare.q, "k_proj": bare.kv, "v_proj": bare.kv, "o_proj": bare.q}
    both = sum(bare.hidden + sides.get(name, bare.intermediate) for name in TARGETS)
    adapter = {"target_modules": TARGETS, "rank": rank, "trainable_parameters": rank * bare.layers * both}
    return Shape.of(config, adapter)


def dimensions(
    hidden: int, layers: int, intermediate: int, heads: int, kv: int, head: int, vocabulary: int, tied: int
) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": head,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


MISTRAL = dimensions(4096, 32, 14336, 32, 8, 128, 32000, 0)
QWEN = dimensions(3584, 28, 18944, 28, 4, 128, 152064, 0)
MODELS = {
    "SmolLM2 135M": model(**dimensions(576, 30, 1536, 9, 3, 64, 49152, 1)),
    "Gemma 2B": model(**dimensions(2048, 18, 16384, 8, 1, 256, 256000, 1)),
    "Mistral 7B": model(**MISTRAL),
    "Qwen2.5 7B": model(**QWEN),
    "Llama 3.1 70B": model(**dimensions(8192, 80, 28672, 64, 8, 128, 128256, 0)),
}


def table(head: str, rows: Iterable[Iterable[object]]) -> str:
    columns = head.count("|") + 1
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([f"| {head} |", "|" + "---|" * columns, *lines])


SHARDS = 4
"""Number of GPUs in the last column."""


# -- memory ------------------------------------------------------------------------------------------------------------


def memory(
    shape: Shape, plan: TrainingPlan, length: int, *, four_bits: bool = False, shards: int = 1
) -> dict[str, float]:
    terms = training_memory(
        shape,
        plan,
        max_length=length,
        context=CUDA_CONTEXT,
        quantization_arguments=four_bits,
        shards=shards,
    )
    return {name: size / GB for name, size in terms.items()}


def memory_table() -> str:
    def row(name: str, shape: Shape) -> list[object]:
        terms = memory(shape, LIVE, 1024)
        kept = memory(shape, TrainingPlan(1, 8, False, "live", "bfloat16"), 1024)
        quantized = memory(shape, LIVE, 1024, four_bits=True)
        shown = [f"{terms[term]:.1f}" for term in ("weights", "adapter", "activations", "head")]
        sharded = memory(shape, LIVE, 1024, shards=SHARDS)
        sums = [f"{sum(parts.values()):.1f}" for parts in (terms, kept, quantized, sharded)]
        return [name, f"{shape.base_parameters / 1e9:.2f}", f"{shape.adapter_parameters / 1e6:.0f}", *shown, *sums]

    head = "model | parameters, 10⁹ | adapter, 10⁶ | weights | adapter | activations | head | total | not recomputed | 4 bits"
    head += f" | each of {SHARDS} GPUs"
    return table(head, (row(*item) for item in MODELS.items()))


# -- time --------------------------------------------------------------------------------------------------------------


def training_operations(shape: Shape, *, recomputed: bool = True, full: bool = False) -> float:
    """Floating-point operations per token, for policy and reference."""
    recompute = 2 * recomputed
    if full:
        return (2 + 4 + recompute + 2) * shape.base_parameters
    return (2 + 2 + recompute + 2) * shape.base_parameters + (2 + 4 + recompute) * shape.adapter_parameters


def measurements(
    shape: Shape, gpu: Gpu, *, batch: int, prompt: int, reply: int, pair: float, operations: float
) -> Measurements:
    """What preflight would measure on this GPU at the assumed utilisation."""
    speed = UTILISATION * gpu.flops
    return Measurements(
        batch_size=batch,
        reply_tokens=reply,
        prefill_seconds=2 * shape.base_parameters * prompt * batch / speed,
        decode_seconds=2 * shape.base_parameters / gpu.memory_bandwidth,  # each token reads all weights once
        record_bytes=record_bytes(prompt, reply),
        step_seconds=operations * pair / speed,
        longest_prompt_tokens=1,
        longest_replies_tokens=0,
        prompt_tokens=1,
        replies_tokens=0,
        head_weight=0.0,
        checkpoint_bytes=checkpoint_bytes(shape),
        peak_bytes=0,
    )


def hours(
    shape: Shape, gpu: Gpu, *, pairs: int, pair: float = PAIR_TOKENS, epochs: float = 1.0, operations: float = 0.0
) -> tuple[float, float]:
    """Hours to (make the pairs, train) on one GPU."""
    measured = measurements(
        shape, gpu, batch=64, prompt=200, reply=200, pair=pair, operations=operations or training_operations(shape)
    )
    work = Workload(
        prompts=pairs,
        train=pairs,
        held_out=0,
        replies=3,
        prompt_reads=1.5,
        max_new_tokens=512,
        epochs=epochs,
        save_total_limit=2,
        answered=0,
        everyday=0,
    )
    result = forecast(measured, work, LIVE)
    return result.seconds_pairs / 3600, result.seconds_training / 3600


def time_table() -> str:
    def row(name: str, shape: Shape) -> list[object]:
        small, large = hours(shape, A100, pairs=2500), hours(shape, A100, pairs=100_000)
        return [name, *(f"{value:.2f}" for value in small), *(f"{value:.1f}" for value in large)]

    head = "model | 2,500 pairs: making | training | 100,000 pairs: making | training"
    return table(head, (row(*item) for item in MODELS.items()))


# -- disk and network --------------------------------------------------------------------------------------------------


def record_bytes(prompt: int, reply: int) -> int:
    """Size of prompt, draft, critique and revision as text."""
    return BYTES_PER_TOKEN * (prompt + 3 * reply)


def checkpoint_bytes(shape: Shape) -> int:
    return CHECKPOINT_COPIES * 4 * shape.adapter_parameters


def disk_table() -> str:
    shape = MODELS["Mistral 7B"]

    def row(pairs: int) -> list[object]:
        parts = disk_parts(
            num_examples=pairs,
            record_bytes=record_bytes(200, 200),
            checkpoint_bytes=checkpoint_bytes(shape),
            save_total_limit=2,
        )
        return [f"{pairs:,}", *(f"{size / GB:.2f}" for size in parts.values()), f"{sum(parts.values()) / GB:.2f}"]

    return table(
        "number of pairs | pairs, GB | checkpoints, GB | archive, GB | total, GB", map(row, (2500, 100_000, 1_000_000))
    )


NVLINK, ETHERNET = 300e9, 12.5e9
"""Bytes per second and process: NVLink of an A100 in one direction; 100 Gbit/s between machines."""
STEP_PAIRS = 64


def ring(size: float, processes: int, rounds: int) -> float:
    """Bytes that each process sends: a ring passes (W-1)/W of the data in each round."""
    return rounds * size * (processes - 1) / processes


def process_table() -> str:
    shape = MODELS["Mistral 7B"]

    def row(processes: int) -> list[object]:
        passes = ceil(STEP_PAIRS / processes)
        compute = passes * training_operations(shape) * PAIR_TOKENS / (UTILISATION * A100.flops)
        ddp = ring(4 * shape.adapter_parameters, processes, 2)  # gradients: reduce, then gather
        fsdp = ddp + passes * ring(2 * shape.base_parameters, processes, 3)  # weights: reference, forward, backward
        link = NVLINK if processes <= 8 else ETHERNET
        seconds = (f"{compute + sent / link:.2f}" for sent in (ddp, fsdp))
        return [processes, passes, f"{compute:.2f}", f"{ddp / GB:.2f}", f"{fsdp / GB:.0f}", *seconds]

    head = (
        "processes | pairs per process | compute, s | DDP sends, GB | FSDP sends, GB | step with DDP, s | with FSDP, s"
    )
    return table(head, map(row, (1, 2, 8, 16, 64)))


# -- published figures -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    what: str
    arithmetic: float
    least: float
    most: float
    unit: str

    @property
    def ratio(self) -> float:
        """The arithmetic divided by the published value; 1 inside a published range."""
        return self.arithmetic / min(max(self.arithmetic, self.least), self.most)


ULTRAFEEDBACK_BYTES = 281_196_481 / 60_917
"""Bytes per row (the dataset's card): a prompt and two conversations, so the prompt three times and each reply once."""


def pair_tokens_bounds() -> tuple[float, float]:
    """Bounds for the tokens of an untruncated UltraFeedback pair: from a row without replies to a row without a prompt."""
    row = ULTRAFEEDBACK_BYTES / BYTES_PER_TOKEN
    return 2 / 3 * row, row


def zephyr() -> Published:
    shape = model(**MISTRAL)
    operations = training_operations(shape, recomputed=False, full=True)
    _, one = hours(shape, A100, pairs=61_966, epochs=3, operations=operations)
    return Published("Zephyr 7B β: all parameters, 61,966 pairs, 3 epochs, 16 × A100", one / 16, 2, 4, "h")


def schmid() -> Published:
    shape = model(rank=256, **MISTRAL)
    _, one = hours(shape, H100, pairs=11_000)
    return Published("Mistral 7B: LoRA of rank 256 in 4 bits, 11,000 pairs, 1 epoch, 1 × H100", one, 1.5, 1.5, "h")


def schmid_memory() -> Published:
    peak = sum(memory(model(rank=256, **MISTRAL), LIVE, 1512, four_bits=True).values())
    return Published(
        "the same with its smallest settings: one pair at a time, 1,512 tokens; a 24 GB GPU suffices", peak, 0, 24, "GB"
    )


def qwen_memory() -> Published:
    peak = sum(memory(MODELS["Qwen2.5 7B"], LIVE, 2048).values())
    return Published(
        "Qwen2.5 7B: LoRA of rank 16, one pair at a time, 2,048 tokens, activations recomputed",
        peak,
        19.08,
        19.08,
        "GB",
    )


CHECKS: tuple[Callable[[], Published], ...] = (zephyr, schmid, schmid_memory, qwen_memory)


def published_table() -> str:
    def row(check: Published) -> list[object]:
        published = f"{check.least:g} to {check.most:g}" if check.least < check.most else f"{check.most:g}"
        published = published if check.least else f"at most {check.most:g}"
        return [check.what, f"{check.arithmetic:.1f} {check.unit}", f"{published} {check.unit}", f"{check.ratio:.2f}"]

    return table("training | arithmetic | published | ratio", (row(check()) for check in CHECKS))


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "scaling-memory": ("scaling.md", memory_table),
    "scaling-time": ("scaling.md", time_table),
    "scaling-disk": ("scaling.md", disk_table),
    "scaling-processes": ("scaling.md", process_table),
    "scaling-published": ("scaling.md", published_table),
}
"""For docs/tables.py."""
