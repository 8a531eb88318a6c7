"""Stage 5: check that the Stage 2 adapter is complete, finite, fits this base model, and changes its output."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from engine.core.errors import Stage3Error
from engine.core.events import Check, Event
from engine.core.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from engine.models.adapters.effect import effect_on_logits, logits_of, refuse_rounded
from engine.models.adapters.expected_tensors import ExpectedTensors, base_model_errors, expected_adapter
from engine.models.adapters.folder import refuse_pickles
from engine.models.adapters.settings import AdapterSettings, read_settings
from engine.models.adapters.source import AdapterSource, adapter_source, local_adapter, require_hub_sha256
from engine.models.adapters.summary import Line, settings_lines, share_of_base, size
from engine.models.adapters.tensor_mismatch import refuse_mismatch
from engine.models.adapters.trainable import refuse_untrainable
from engine.models.adapters.vocabulary import refuse_larger_vocabulary
from engine.models.adapters.weights import (
    Weights,
    load_weights,
    number_format,
    read_weights_header,
    refuse_bad_numbers,
    zero_lora_b_modules,
)
from engine.models.loading import load_base, load_policy, load_tokenizer
from engine.models.tensors import hash_tensors
from engine.models.tokenizer_probe import probe_tokenizer
from engine.run.results import AdapterResult
from engine.security.sanitize import visible_line
from engine.stages.base import Context, StageEnd, StageRun
from engine.storage.files import sha256_of_file

T = TypeVar("T")


def evidence(context: Context) -> dict[str, Any]:
    """A local adapter is identified by its files, wherever they are; one on the Hub by its revision, resolved once."""
    config, local = context.config, local_adapter(context.config, context.run)
    if local is None:
        return {"adapter_path": config.adapter_path, "adapter_revision": config.adapter_revision}
    return {"the adapter's weights": _hash(local / ADAPTER_WEIGHTS), ADAPTER_CONFIG: _hash(local / ADAPTER_CONFIG)}


READ_AS = {"adapter_path": lambda config: None, "adapter_revision": lambda config: None}  # `evidence` has them


def run(context: Context) -> StageRun:
    source = yield from _checked("folder", lambda: adapter_source(context.config, context.run, context.token_text))
    yield Check("folder", "ok", str(source))
    settings, expected, weights = yield from _check_without_base(context, source)
    context.stop.raise_if_requested()
    tensors_sha256 = hash_tensors(weights.tensors)
    result = _result(context, source, settings, expected, weights, tensors_sha256)
    del weights
    found = yield from _check_with_base(context, source, settings, tensors_sha256)
    return StageEnd(
        f"rank {result.rank}, {result.trainable_parameters:,} parameters, effect {found['effect']:.3g}",
        replace(result, **found),
    )


def _check_without_base(
    context: Context, source: AdapterSource
) -> Generator[Event, None, tuple[AdapterSettings, ExpectedTensors, Weights]]:
    """Run the checks that need no base weights: folder, configuration, tensor names and shapes, the adapter's own numbers."""
    config, folder = context.config, source.folder
    for name in (yield from _checked("folder", lambda: refuse_pickles(folder))):
        yield Check(visible_line(name, 80), "warning", "a trainer's pickle; never opened")
    for name in source.not_downloaded:
        yield Check(visible_line(name, 80), "warning", "a pickle in the repository; not downloaded")
    settings = yield from _checked("configuration", lambda: read_settings(folder))
    yield from _checked("configuration", lambda: refuse_untrainable(settings))
    expected = yield from _checked("base model", lambda: expected_adapter(config, settings, context.token_text))
    yield from _as_checks(settings_lines(config, settings, expected))

    header = yield from _checked("tensors", lambda: read_weights_header(folder))
    yield from _checked("tensors", lambda: refuse_mismatch(settings, expected, header.shapes))
    share = share_of_base(header.parameters, expected.base.parameters)
    yield Check("trainable parameters", "ok", share)
    count_tokens = partial(_token_count, context)
    for name in (
        yield from _checked("vocabulary", lambda: refuse_larger_vocabulary(folder, expected.base, count_tokens))
    ):
        yield Check(name, "warning", "unreadable; the base model's tokenizer is used")

    weights = yield from _checked("tensors", lambda: load_weights(folder))
    yield Check("size", "ok", f"{size(weights.bytes)}, {number_format(header)}")
    yield from _checked("sha256", lambda: require_hub_sha256(source, weights.sha256))
    yield Check("sha256", "ok", weights.sha256)
    yield from _checked("tensors", lambda: refuse_bad_numbers(weights.tensors))
    silent = zero_lora_b_modules(weights.tensors)
    zero = f"; {len(silent)} lora_B are zero: those modules have no effect" if silent else ", not zero"
    details = f"{len(header.tensors)}: all present, shapes match the base model, finite{zero}"
    yield Check("tensors", "warning" if silent else "ok", details)
    return settings, expected, weights


def _check_with_base(
    context: Context, source: AdapterSource, settings: AdapterSettings, tensors_sha256: str
) -> Generator[Event, None, dict[str, Any]]:
    """Load base model and adapter as every later stage does; check that the tensors match the file and have an effect."""
    config, token = context.config, context.token_text

    def load() -> Any:
        with base_model_errors(config):
            _inspect_tokenizer(context)
            return load_tokenizer(config, token), load_base(config, token)

    tokenizer, base = yield from _checked("base model", load)
    commit = getattr(base.config, "_commit_hash", None)
    parameters = sum(parameter.numel() for parameter in base.parameters())
    at = f" {commit}" if commit else ""
    yield Check("base model", "ok", f"{config.base_model_id}{at}, {parameters:,} parameters")

    before = logits_of(base, tokenizer)
    policy = load_policy(base, source.folder)
    note = yield from _checked("effect", lambda: refuse_rounded(policy, tensors_sha256))
    if note:
        yield Check("number format", "warning", note)
    effect = yield from _checked("effect", lambda: effect_on_logits(policy, tokenizer, before))
    yield Check("effect", "ok", f"switching it on changes a logit by up to {effect:.4g}")
    return {"effect": effect, "base_model_commit": commit, "base_parameters": parameters}


def _token_count(context: Context) -> int:
    with base_model_errors(context.config):
        _inspect_tokenizer(context)
        return len(load_tokenizer(context.config, context.token_text))


def _inspect_tokenizer(context: Context) -> None:
    model, revision = context.config.base_model_id, context.config.base_model_revision
    probe_tokenizer(model, revision, context.token_text, "--base-model-id", context.stop)


def _result(
    context: Context,
    source: AdapterSource,
    settings: AdapterSettings,
    expected: ExpectedTensors,
    weights: Weights,
    tensors_sha256: str,
) -> AdapterResult:
    lora = settings.lora
    return AdapterResult(
        tensors_sha256=tensors_sha256,
        base_model_id=context.config.base_model_id,
        folder=str(source.folder),
        adapter_id=source.repo_id,
        adapter_revision=source.revision,
        adapter_commit=source.commit,
        adapter_sha256=weights.sha256,
        rank=lora.r,
        alpha=lora.lora_alpha,
        rank_pattern=dict(lora.rank_pattern or {}),
        alpha_pattern=dict(lora.alpha_pattern or {}),
        variant=settings.variant,
        target_modules=tuple(expected.target_modules),
        modules_to_save=tuple(sorted(lora.modules_to_save or [])),
        trainable_parameters=weights.header.parameters,
        bytes=weights.bytes,
        named_base=settings.named_base,
    )


def _checked(line: str, work: Callable[[], T]) -> Generator[Event, None, T]:
    """Return the result of `work`. If it raises, report the check `line` as failed first."""
    try:
        return work()
    except Stage3Error as error:
        yield Check(line, "failed", error.what)
        raise


def _as_checks(lines: Iterable[Line]) -> Generator[Event, None, None]:
    for name, status, detail in lines:
        yield Check(name, status, detail)


def _hash(path: Any) -> str | None:
    return sha256_of_file(path) if path.is_file() else None
