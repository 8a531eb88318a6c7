"""Describe to first-time users what each stage will do with the current options."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.core.layout import ARCHIVE_SUFFIX
from engine.core.wording import plural
from engine.run.state import RunState
from tui.formatting import duration

if TYPE_CHECKING:
    from engine.core.config import Stage3Config

Describe = Callable[["Stage3Config"], tuple[str, ...]]


def description_of(stage: str, config: Stage3Config, state: RunState) -> tuple[str, ...]:
    """A few sentences; the last one is preflight's forecast, if there is one."""
    seconds = None if state.forecast is None else state.forecast.seconds.get(stage)
    forecast = (f"Preflight forecasts about {duration(seconds)}.",) if seconds else ()
    return (*DESCRIPTIONS[stage](config), *forecast)


def _workspace(config: Stage3Config) -> tuple[str, ...]:
    if config.repo_url is None:
        where = (
            f"Works in {config.repo_root or 'the current folder'} as it is, without cloning or changing anything in it."
        )
    else:
        where = (
            f"Clones {config.repo_url} at {config.repo_ref} into a new folder. A folder in the way is moved aside, never "
            "deleted."
        )
    return (where, f"The run folder is {config.output_dir}.")


def _toolchain(config: Stage3Config) -> tuple[str, ...]:
    missing = (
        "Installs missing programs if it can."
        if config.install
        else "Installs nothing, but explains how to get what is missing."
    )
    return ("Looks for Python, uv, git, tmux and the GPU driver, and their versions.", missing)


def _credentials(config: Stage3Config) -> tuple[str, ...]:
    writes = f", and write to {config.push_to_hub}" if config.push_to_hub else ""
    return (
        f"Asks the Hub whether this account may read {config.base_model_id} and {config.dataset}{writes}, before any "
        "download.",
        "If model, adapter and dataset are local, no token is needed, and the stage is skipped.",
    )


def _dependencies(config: Stage3Config) -> tuple[str, ...]:
    how = (
        "and installs what is missing with uv"
        if config.install
        else "without installing anything (see the option install)"
    )
    return (
        f"Compares the installed packages with what the run needs, {how}.",
        "Then imports them and computes on the device, in a separate process.",
    )


def _adapter(config: Stage3Config) -> tuple[str, ...]:
    return (
        f"Reads the Stage 2 adapter at {config.adapter_path}: every tensor present, finite and of the right shape.",
        f"Then loads {config.base_model_id} and checks that the adapter changes its output.",
    )


def _preflight(config: Stage3Config) -> tuple[str, ...]:
    return (
        "Rehearses the run with the same code: one pair, steps on the longest pair, a checkpoint, a resume, an archive.",
        "Chooses the number format and how to split batches, and forecasts time, memory and disk.",
    )


def _critique_revision(config: Stage3Config) -> tuple[str, tuple[str, ...]]:
    critic = f"{config.critic_model} on {_servers(config.critic_url)} " if config.critic_url else ""
    return f"drafts an answer, {critic}critiques it in the light of a principle, and revises it.", (
        f"An unusable revision is tried again, up to {plural(config.max_attempts, 'attempt')} in all.",
    )


def _servers(urls: tuple[str, ...]) -> str:
    return urls[0] if len(urls) == 1 else plural(len(urls), "server")


def _contrast(config: Stage3Config) -> tuple[str, tuple[str, ...]]:
    return "answers as an assistant that follows a principle (chosen), and as one that does the opposite (rejected).", (
        f"If the chosen answer is unusable, both are tried again, up to {plural(config.max_attempts, 'attempt')} in all.",
    )


def _best_of_n(config: Stage3Config) -> tuple[str, tuple[str, ...]]:
    return f"writes {config.num_drafts} drafts; the judge {config.judge} chooses the best and rejects the worst.", ()


METHODS = {"critique-revision": _critique_revision, "contrast": _contrast, "best-of-n": _best_of_n}


def _pairs(config: Stage3Config) -> tuple[str, ...]:
    if config.pairs is not None:
        return (
            f"Imports the pairs of {config.pairs.name} (the option pairs). Nothing is generated.",
            "Rows that are not pairs are left out and reported.",
            "Decisions saved beside the file apply.",
        )
    who = f"{config.server_model} on {_servers(config.server_url)}" if config.server_url else "the Stage 2 policy"
    how, again = METHODS[config.method](config)
    source = f"of {config.dataset}"
    takes = f"Takes {config.num_examples:,} prompts {source}."
    if config.target_pairs:
        takes = f"Takes prompts {source} until {config.target_pairs:,} pairs are usable."
    return (
        f"{takes} For each, {who} {how}",
        *again,
        "Every pair is on disk before it counts, so you can stop at any time.",
    )


def _quality(config: Stage3Config) -> tuple[str, ...]:
    judge = {
        "none": "No judge scores them (the option judge).",
        "auto": "A judge that passes its exam scores them: a server, the reward model or the policy itself.",
    }.get(config.judge, f"The judge {config.judge} scores them if it passes its exam.")
    return (
        f"Checks every pair for reasons against it. {judge}",
        f"Refuses training if less than {config.min_usable_share:.0%} is usable, or fewer than {config.min_pairs:,} pairs "
        "remain. You can browse the pairs (b), and accept, reject, swap or edit each.",
    )


def _training(config: Stage3Config) -> tuple[str, ...]:
    epochs = f"{config.num_train_epochs:g} epoch" + ("" if config.num_train_epochs == 1 else "s")
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    return (
        f"Trains the Stage 2 adapter by DPO against itself: {epochs}, batches of {batch}, learning rate "
        f"{config.learning_rate:g}, beta {config.beta:g}; a checkpoint every {plural(config.save_steps, 'step')}.",
        f"Then both answer up to {plural(config.eval_prompts, 'held-out prompt')}, and a verdict says whether Stage 3 is better.",
        "To train with several settings and pick the best, run `stage3-tui sweep --beta 0.05,0.1,0.3` in a shell.",
    )


def _packaging(config: Stage3Config) -> tuple[str, ...]:
    visibility = "public" if config.push_public else "private"
    push = f"Then pushes the adapter to {config.push_to_hub} ({visibility}), in one commit."
    pushes = (push,) if config.push_to_hub else ()
    return (
        f"Packs the adapter, its pairs and its reports into {config.output_dir.name}{ARCHIVE_SUFFIX} beside the run folder.",
        "Tests the archive by loading it in a fresh process before giving it its final name.",
        *pushes,
    )


DESCRIPTIONS: dict[str, Describe] = {
    "workspace": _workspace,
    "toolchain": _toolchain,
    "credentials": _credentials,
    "dependencies": _dependencies,
    "adapter": _adapter,
    "preflight": _preflight,
    "pairs": _pairs,
    "quality": _quality,
    "training": _training,
    "packaging": _packaging,
}
