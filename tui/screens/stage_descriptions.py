"""What each stage will do with the options as they are: sentences for people who meet it for the first time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.core.layout import ARCHIVE_SUFFIX
from engine.run.state import RunState
from tui.formatting import duration, plural

if TYPE_CHECKING:
    from engine.core.config import Stage3Config

Plan = Callable[["Stage3Config"], tuple[str, ...]]


def description_of(stage: str, config: Stage3Config, state: RunState) -> tuple[str, ...]:
    """A few sentences; the forecast of preflight is the last of them, where there is one."""
    seconds = None if state.forecast is None else state.forecast.seconds.get(stage)
    forecast = (f"By preflight's forecast it takes about {duration(seconds)}.",) if seconds else ()
    return (*DESCRIPTIONS[stage](config), *forecast)


def _workspace(config: Stage3Config) -> tuple[str, ...]:
    if config.repo_url is None:
        where = f"Works in {config.repo_root or 'the current folder'} as it is: nothing is cloned, and nothing in it is changed."
    else:
        where = (
            f"Clones {config.repo_url} at {config.repo_ref} into a fresh folder. One that is in the way is moved aside, never "
            "deleted."
        )
    return (where, f"The run itself goes to {config.output_dir}.")


def _toolchain(config: Stage3Config) -> tuple[str, ...]:
    missing = (
        "What is missing and can be installed, is."
        if config.install
        else "Nothing is installed; what is missing says how."
    )
    return ("Looks for Python, uv, git, tmux and the GPU's driver, each with its version.", missing)


def _credentials(config: Stage3Config) -> tuple[str, ...]:
    writes = f", and write to {config.push_to_hub}" if config.push_to_hub else ""
    return (
        f"Asks the Hub whether this account may read {config.base_model_id} and {config.dataset}{writes}, before anything is "
        "downloaded.",
        "Where model, adapter and dataset are files here, no token is needed and the stage is skipped.",
    )


def _dependencies(config: Stage3Config) -> tuple[str, ...]:
    how = (
        "and installs what is missing with uv" if config.install else "and installs nothing (the option install would)"
    )
    return (
        f"Compares the installed packages with what the run needs, {how}.",
        "Then imports them and computes on the device, in a process of its own.",
    )


def _adapter(config: Stage3Config) -> tuple[str, ...]:
    return (
        f"Reads the Stage 2 adapter at {config.adapter_path}: every tensor present, of the right shape, finite.",
        f"Then loads {config.base_model_id} and looks whether switching the adapter on changes what it says.",
    )


def _preflight(config: Stage3Config) -> tuple[str, ...]:
    return (
        "The long run in small, on the same code: one pair, steps on the longest pair, a checkpoint, a resume, an archive.",
        "It chooses the number format and how a batch is cut, and forecasts time, memory and disk of the whole.",
    )


def _pairs(config: Stage3Config) -> tuple[str, ...]:
    if config.pairs is not None:
        return (
            f"Imports the pairs of {config.pairs.name} (the option pairs). Nothing is generated.",
            "A row that is no pair is left out, and named.",
            "What people decided about them beside the file is taken over.",
        )
    who = f"{config.server_model} on {config.server_url}" if config.server_url else "the Stage 2 policy"
    critic = f"{config.critic_model} on {config.critic_url} " if config.critic_url else ""
    return (
        f"Takes {config.num_examples:,} prompts of {config.dataset} ({config.split}). To each, {who} drafts an answer, "
        f"{critic}criticises it in the light of a principle, and revises it.",
        f"A revision that is no reply of its own is tried again, {plural(config.max_attempts, 'attempt')} in all.",
        "Every pair is on disk before it is counted: stopping costs nothing.",
    )


def _quality(config: Stage3Config) -> tuple[str, ...]:
    judge = {
        "none": "Nobody scores them (the option judge).",
        "auto": "A judge that passes its exam scores them: a server, the reward model or the policy itself.",
    }.get(config.judge, f"The judge {config.judge} scores them, where it passes its exam.")
    return (
        f"Looks at every pair for what makes it useless. {judge}",
        f"Training is refused with under {config.min_usable_share:.0%} usable of what was made, or fewer than "
        f"{config.min_pairs:,} pairs to train on. You may look at each (b), accept, reject, swap and edit.",
    )


def _training(config: Stage3Config) -> tuple[str, ...]:
    epochs = f"{config.num_train_epochs:g} epoch" + ("" if config.num_train_epochs == 1 else "s")
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    return (
        f"DPO of the Stage 2 adapter against itself: {epochs}, batches of {batch}, learning rate {config.learning_rate:g}, "
        f"beta {config.beta:g}; a checkpoint every {plural(config.save_steps, 'step')}.",
        f"Then both answer up to {plural(config.eval_prompts, 'held-out prompt')}, and the verdict says whether Stage 3 is better.",
    )


def _packaging(config: Stage3Config) -> tuple[str, ...]:
    seen = "where everybody may see it" if config.push_public else "in private"
    to = f"Then it pushes the adapter to {config.push_to_hub}, {seen}, in one commit."
    pushed = (to,) if config.push_to_hub else ()
    return (
        f"Packs the adapter, its pairs and its reports into {config.output_dir.name}{ARCHIVE_SUFFIX} beside the run folder.",
        "The archive is opened and loaded in a fresh process before it gets its name.",
        *pushed,
    )


DESCRIPTIONS: dict[str, Plan] = {
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
