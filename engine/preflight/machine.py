"""Before the rehearsal: verify the download, choose the number format, read the model's shape and the free memory."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Iterator

from engine.core.config import Stage3Config
from engine.core.errors import DamagedState
from engine.core.events import Check, Event
from engine.dpo.planning.forecast import Shape, machine_of
from engine.machine.device import resolve_device
from engine.machine.gpus import read_gpus
from engine.machine.memory import free_memory
from engine.models.adapters.source import adapter_folder
from engine.models.chat_template import conversation_ids
from engine.models.downloads import verify_base
from engine.models.loading import hub_arguments, load_base, load_policy, load_tokenizer
from engine.models.number_format import choose_dtype, overflow_in_float16
from engine.pairs.generation.prompts import Prompt
from engine.preflight.plan_search import PlanInputs
from engine.run.folder import Run
from engine.security.sanitize import visible_line

GIB = 1 << 30
DTYPE_PROMPTS = 8


def plan_inputs(
    config: Stage3Config, run: Run, token: str | None, prompts: list[Prompt]
) -> Generator[Event, None, PlanInputs]:
    """Choose the number format; read the model's shape and the machine's memory."""
    from transformers import AutoConfig

    def overflow() -> str:
        half = config.model_copy(update={"dtype": "float16"})
        tokenizer = load_tokenizer(half, token)
        encoded = [
            conversation_ids(tokenizer, prompt.messages, add_generation_prompt=True)
            for prompt in prompts[:DTYPE_PROMPTS]
        ]
        policy = load_policy(load_base(half, token), adapter_folder(config, run, token), trainable=True)
        try:
            return overflow_in_float16(policy, [ids[: config.max_length] for ids in encoded])
        finally:
            del policy
            free_memory()

    yield from check_download(config)
    dtype, why = choose_dtype(config, overflow)
    yield Check("number format", "ok", f"{dtype} on {resolve_device(config)}: {why}")
    model_config = AutoConfig.from_pretrained(config.base_model_id, **hub_arguments(config, token))
    machine = machine_of(resolve_device(config))
    where = "the GPU" if machine.device_type == "cuda" else "this computer"
    yield Check("memory", "ok", f"{machine.room / GIB:.1f} of {machine.total / GIB:.1f} GiB of {where} are available")
    yield from gpu_memory_held_by_others(machine.device_type)
    chosen = config.model_copy(update={"dtype": dtype})
    return PlanInputs(chosen, Shape.of(model_config, run.result("adapter")), machine, why)


def check_download(config: Stage3Config) -> Iterator[Check]:
    """Raises DamagedState if a cached file of the base model does not match the hash in its name."""
    cached = verify_base(config)
    if cached.damaged:
        names = ", ".join(str(path) for path in cached.damaged)
        yield Check("download", "failed", visible_line(f"damaged: {names}", 400))
        raise DamagedState(
            f"{len(cached.damaged)} of {cached.files} files of {config.base_model_id} in the Hub's cache are damaged.",
            f"Their content does not match the hash in their names: {names}.",
            f"Remove them (rm {shlex.join(map(str, cached.damaged))}), then run the same command again to download them.",
        )
    if cached.files:
        yield Check("download", "ok", f"{cached.files} files, {cached.bytes / GIB:.1f} GiB, hashes match")


def gpu_memory_held_by_others(device_type: str) -> Iterator[Check]:
    """List other processes that hold GPU memory. The program never ends them."""
    if device_type != "cuda":
        return
    report = read_gpus(with_holders=True)
    for gpu, holders in zip(report.gpus, report.holders, strict=True):
        if holders:
            held = f"GPU {gpu.index}: {', '.join(map(str, holders))}"
            yield Check("memory used by others", "warning", visible_line(held))
