"""The configuration: every option with its type, bounds, default and help sentence.

Precedence: command line, environment (`STAGE3_NUM_EXAMPLES`), `stage3.toml` (`--config`), the `--demo` preset, default.
The command line and the wizard's forms read the options from this file's syntax tree (`engine.core.options`), so
`--help` does not import pydantic.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from engine.core.errors import ConfigError
from engine.core.reading import read_toml
from engine.security.secrets import TOKEN_VARIABLES

ENV_PREFIX = "STAGE3_"
VARIABLE_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
NOT_RECORDED = frozenset({"store_token"})
"""Fields that `run.json` does not keep: they apply to one start of a run."""


def option(
    default: Any,
    *,
    changes: str,
    label: str,
    unit: str = "",
    topic: str = "",
    common: bool = False,
    **bounds: Any,
) -> Any:
    """A field of the configuration.

    changes   the stages whose result depends on this option, by name; "evaluation" is the second half of stage training;
              empty if it changes no result. A stage runs again only when one of its own options changes
              (`engine.pipeline.graph`).
    label     the name of the option in forms
    unit      the unit of the value in forms; "share" is a number from 0 to 1 that forms show in percent
    topic     the heading under which forms show the option; by default, that of its group
    common    whether `--help` shows it, as one of the twenty most used options; `--help-all` shows the rest
    bounds    ge, gt, le, lt, pattern, as in pydantic's Field
    """
    return Field(default, json_schema_extra={"changes": list(changes.split()), "common": common}, **bounds)  # type: ignore[dict-item]


def _addresses(value: Any) -> Any:
    """Addresses from repeated flags, a list, or text separated by commas or spaces, without duplicates; None if there are none."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return value  # pydantic reports what is wrong
    return tuple(dict.fromkeys(address for text in texts for address in text.replace(",", " ").split())) or None


Addresses = Annotated[tuple[str, ...] | None, BeforeValidator(_addresses)]
"""One or several addresses, in order; None if there are none."""


class OptionGroup(BaseModel):
    # Only the combined class is validated: building its parts too would add a tenth of a second to every start.
    model_config = ConfigDict(use_attribute_docstrings=True, defer_build=True)


class RunOptions(OptionGroup):
    """The run"""

    output_dir: Path = option("artifacts/stage3_constitutional", changes="", common=True, label="Run folder")
    """The run folder. It holds everything that the run makes; the archive is written next to it."""
    seed: int = option(42, ge=0, changes="pairs quality training evaluation", common=True, label="Random seed")
    """Random seed for prompt order, principles, sampling and training."""
    device: str = option("auto", changes="preflight", common=True, label="Device")
    """Device to compute on: auto, cpu, cuda, cuda:1."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = option(
        "auto", changes="preflight", label="Number format of the weights"
    )
    """Number format of the base weights. auto: bfloat16 if the GPU supports it, else float32."""


class WorkspaceOptions(OptionGroup):
    """Workspace"""

    repo_root: Path | None = option(None, changes="workspace", label="Existing checkout")
    """Existing checkout to work in. Default: the current folder, unless --repo-url is given."""
    repo_url: str | None = option(None, changes="workspace", label="Repository to clone")
    """Git repository to clone into a new folder: an https address or a local path."""
    repo_ref: str = option("main", changes="workspace", label="Branch, tag or commit")
    """Branch, tag or commit of --repo-url to check out."""
    allow_ssh: bool = option(False, changes="workspace", label="Allow ssh addresses")
    """Allow an ssh address in --repo-url (ssh://… or host:path). ssh uses your keys and never prompts."""
    fetch_lfs: bool = option(False, changes="workspace", label="Fetch large files")
    """Also fetch the large files of --repo-url (git-lfs). Otherwise only their pointers are cloned."""
    fresh: bool = option(False, changes="workspace", label="Clone again")
    """Clone again even if a clone exists. The old one is moved aside."""
    install: bool = option(False, changes="toolchain dependencies", label="Install what is missing")
    """Let stages toolchain and dependencies install missing packages with uv."""


class HubOptions(OptionGroup):
    """Hugging Face"""

    device_login: bool = option(False, changes="credentials", label="Log in with a browser")
    """Log in with a browser and a code if no token is found, or if the Hub rejects it."""
    store_token: bool = option(False, changes="credentials", label="Save the token")
    """Save an accepted token in the Hub's own store (HF_HOME/token, mode 0600), like `hf auth login`."""


class ModelOptions(OptionGroup):
    """Models"""

    base_model_id: str = option(
        "google/gemma-2b-it", changes="credentials adapter preflight", common=True, label="Base model"
    )
    """Base model, a causal language model: a Hub id or a folder."""
    base_model_revision: str = option("main", changes="credentials adapter preflight", label="Base model's revision")
    """Branch, tag or commit of the base model on the Hub. The run records the resolved commit."""
    adapter_path: str = option(
        "artifacts/stage2_finetuning_artifacts/lora_adapters",
        changes="credentials adapter",
        common=True,
        label="Stage 2 adapter",
    )
    """Stage 2 LoRA adapter: a folder or a Hub id."""
    adapter_revision: str = option("main", changes="credentials adapter", label="Adapter's revision")
    """Branch, tag or commit of the adapter on the Hub. The run records the resolved commit."""
    chat_template: str | None = option(None, changes="preflight pairs quality training", label="Chat template")
    """Chat template of the Stage 2 training, if the base model has none or another: a file, gemma or chatml."""


class PairsOptions(OptionGroup):
    """Pairs"""

    dataset: str = option(
        "Anthropic/hh-rlhf", changes="credentials preflight pairs", common=True, label="Prompts from", topic="Prompts"
    )
    """Prompts: a Hub id, or a local file or folder: JSON, JSON lines, CSV, Parquet, Arrow or text, compressed or not."""
    dataset_revision: str = option(
        "main", changes="credentials preflight pairs", label="Dataset's revision", topic="Prompts"
    )
    """Branch, tag or commit of the dataset on the Hub. The run records the resolved commit."""
    split: str = option(
        "test[:1000]+train[:1500]", changes="preflight pairs", common=True, label="Rows to use", topic="Prompts"
    )
    """Rows to use: splits, slices and sums of them. A local file has one split, train. The default is for Anthropic/hh-rlhf; in
    another dataset without these splits, all rows are used."""
    pairs: Path | None = option(
        None, changes="credentials preflight pairs", common=True, label="Pairs that exist already", topic="Prompts"
    )
    """File or folder of existing preference pairs. Stage pairs imports them instead of generating."""
    form: str | None = option(None, changes="credentials preflight pairs", label="Form of the rows", topic="Prompts")
    """Form of the rows (docs/files-you-have.md lists them). Default: detected from the columns."""
    columns: str | None = option(
        None, changes="credentials preflight pairs", label="Names of the columns", topic="Prompts"
    )
    """The file's names for the columns of a form: prompt=question,chosen=good,rejected=bad."""
    max_bad_rows: float | None = option(
        None,
        ge=0.0,
        le=1.0,
        changes="credentials preflight pairs",
        label="Bad rows at most",
        unit="share",
        topic="Prompts",
    )
    """Refuse a file if a larger share of its rows is not a prompt or pair. Default: 0.5; in `validate`, none."""
    num_examples: int = option(
        2500, ge=1, changes="preflight pairs", common=True, label="Number of prompts", topic="Prompts"
    )
    """Number of prompts to make pairs from."""
    target_pairs: int | None = option(
        None, ge=1, changes="preflight pairs", label="Usable pairs wanted", topic="Prompts"
    )
    """Generate until this many pairs are usable, instead of from a fixed --num-examples."""
    method: Literal["critique-revision", "contrast", "best-of-n"] = option(
        "critique-revision", changes="preflight pairs", common=True, label="How a pair is made", topic="Method"
    )
    """How a pair is made: the policy revises its own draft (critique-revision), answers under a principle and under its
    opposite (contrast), or a judge orders several drafts (best-of-n)."""
    num_drafts: int = option(4, ge=2, changes="preflight pairs", label="Drafts with best-of-n", topic="Method")
    """Drafts of each prompt with --method best-of-n; the best one is chosen, the worst one rejected."""
    constitution: Path | None = option(None, changes="pairs", common=True, label="Constitution", topic="Method")
    """File of principles: YAML, or the JSON of Anthropic's paper. Default: the constitution in the package."""
    max_new_tokens: int = option(
        512,
        ge=1,
        changes="preflight pairs evaluation",
        common=True,
        label="Longest answer",
        unit="tokens",
        topic="Generation",
    )
    """Maximum tokens in a draft, critique or revision."""
    max_prompt_tokens: int = option(
        1024, ge=8, changes="preflight pairs", label="Longest prompt", unit="tokens", topic="Prompts"
    )
    """Maximum tokens in a prompt. Longer prompts are skipped, with the reason recorded."""
    temperature: float = option(0.7, ge=0.0, changes="pairs", label="Temperature", topic="Generation")
    """Sampling temperature. 0 is greedy."""
    top_p: float = option(0.9, gt=0.0, le=1.0, changes="pairs", label="Nucleus (top p)", topic="Generation")
    """Nucleus sampling: the probability mass to sample from."""
    generation_batch_size: int | None = option(
        None, ge=1, changes="preflight", label="Prompts in a batch", topic="Generation"
    )
    """Prompts in one generation batch. Default: the largest that fits. Halved if memory runs out."""
    max_attempts: int = option(3, ge=1, changes="pairs", label="Attempts at a prompt", topic="Method")
    """Attempts at critique and revision per prompt, each with another principle."""
    rounds: int = option(1, ge=1, changes="preflight pairs", label="Rounds of revision", topic="Method")
    """Rounds of critique and revision. Each starts from the previous revision."""
    few_shot: Path | None = option(None, changes="preflight pairs", label="Worked examples", topic="Method")
    """YAML file of worked examples of critique and revision, shown before each critique."""
    pilot_prompts: int = option(24, ge=0, changes="preflight", label="Prompts of the pilot", topic="Preflight")
    """Prompts in preflight's pilot, which makes and judges pairs and refuses if the gate is out of reach. 0: one prompt only."""


class ServerOptions(OptionGroup):
    """Server"""

    server_url: Addresses | None = option(
        None, changes="preflight pairs", common=True, label="Server that makes the pairs", topic="Policy"
    )
    """OpenAI-compatible server (http://host:8000/v1) that makes the pairs instead of the local model. May be repeated."""
    server_model: str | None = option(
        None, changes="preflight pairs quality evaluation", label="Model on that server", topic="Policy"
    )
    """Name of the model on that server: the base model with the Stage 2 adapter."""
    critic_url: Addresses | None = option(None, changes="preflight pairs", label="Server of the critic", topic="Critic")
    """OpenAI-compatible server that writes critiques and revisions; the policy still writes the drafts. May be repeated."""
    critic_model: str | None = option(None, changes="preflight pairs", label="Model of the critic", topic="Critic")
    """Name of the critic on that server: any model that follows instructions."""
    critic_api_key_env: str = option(
        "STAGE3_CRITIC_TOKEN", pattern=VARIABLE_NAME, changes="", label="Variable with its token", topic="Critic"
    )
    """Environment variable that holds the token for --critic-url. The token itself cannot be an option."""
    judge_url: Addresses | None = option(None, changes="", label="Server of the judge", topic="Judge")
    """OpenAI-compatible server for --judge server and auto. Default: --server-url. May be repeated."""
    judge_model: str | None = option(None, changes="quality evaluation", label="Model of the judge", topic="Judge")
    """Name of the judge on that server. Default: --server-model."""
    judge_api_key_env: str = option(
        "STAGE3_JUDGE_TOKEN", pattern=VARIABLE_NAME, changes="", label="Variable with its token", topic="Judge"
    )
    """Environment variable that holds the token for --judge-url."""
    server_concurrency: int = option(16, ge=1, changes="", label="Requests at once", topic="Requests")
    """Maximum concurrent requests to each server."""
    server_timeout: float = option(120.0, gt=0.0, changes="", label="Timeout of a request", unit="s", topic="Requests")
    """Timeout of one request, in seconds."""
    max_failed_share: float = option(
        0.05, ge=0.0, le=1.0, changes="", label="Failed prompts, at most", unit="share", topic="Requests"
    )
    """Stop if a server fails on a larger share of the prompts (at least 5) while it answers others."""


class QualityOptions(OptionGroup):
    """Quality"""

    judge: Literal["auto", "none", "self", "reward-model", "server", "demo"] = option(
        "auto", changes="credentials pairs quality evaluation", common=True, label="Judge", topic="Judge"
    )
    """Who scores drafts and revisions, after an exam: self (the Stage 2 policy), reward-model, server, demo (the demo's own),
    none, or auto: the first of a configured server, the reward model and self that passes."""
    reward_model_id: str = option(
        "OpenAssistant/reward-model-deberta-v3-large-v2",
        changes="credentials quality evaluation",
        label="Reward model",
        topic="Judge",
    )
    """Sequence classifier for --judge reward-model: a Hub id or a folder."""

    relevance: bool = option(True, changes="quality", label="Measure relevance", topic="Gate")
    """Measure with the base model whether each revision depends on its prompt, and leave out those that would fit any prompt."""
    min_pairs: int = option(100, ge=1, changes="quality", label="Training pairs, at least", topic="Gate")
    """The gate refuses a set with fewer training pairs."""
    min_usable_share: float = option(
        0.5, ge=0.0, le=1.0, changes="quality", label="Usable, at least", unit="share", topic="Gate"
    )
    """The gate refuses a set if a smaller share of its pairs is usable."""
    min_relevant_share: float = option(
        0.5, ge=0.0, le=1.0, changes="quality", label="Relevant, at least", unit="share", topic="Gate"
    )
    """The gate refuses a set if a smaller share of its measured revisions depends on the prompt."""
    max_longer_share: float = option(
        0.9, ge=0.0, le=1.0, changes="quality", label="Chosen is longer, at most", unit="share", topic="Gate"
    )
    """The gate refuses a set if the chosen text is longer in a larger share: DPO would learn length."""
    max_shared_prompt_share: float = option(
        0.05, ge=0.0, le=1.0, changes="quality", label="Shared prompts, at most", unit="share", topic="Gate"
    )
    """The gate refuses a set if a larger share of its pairs has a prompt in common with another pair."""
    min_improved_share: float = option(
        0.6, ge=0.0, le=1.0, changes="quality", label="Improved, at least", unit="share", topic="Gate"
    )
    """The gate refuses a set if a judge scored it and found a smaller share improved."""
    min_gain: float = option(0.0, changes="quality", label="Gain of a pair, above", topic="Gate")
    """A pair trains only if a judge finds it better by more than this; a number below 0 lets equal and worse ones in."""
    min_sample_share: float = option(
        0.5, ge=0.0, le=1.0, changes="quality", label="Better by people, at least", unit="share", topic="Gate"
    )
    """If no judge passed its exam, the lower end of the 95 % interval of the share that people find better must reach this."""
    warn_identical_share: float = option(
        0.05, ge=0.0, le=1.0, changes="quality", label="Identical, above", unit="share", topic="Warnings"
    )
    """Warn if a larger share of the revisions is identical to the draft."""
    warn_meta_share: float = option(
        0.02, ge=0.0, le=1.0, changes="quality", label="Meta, above", unit="share", topic="Warnings"
    )
    """Warn if a larger share of the revisions talks about an answer instead of giving one."""
    warn_principle_share: float = option(
        0.5, ge=0.0, le=1.0, changes="quality", label="One principle, above", unit="share", topic="Warnings"
    )
    """Warn if a single principle was used for a larger share of the pairs."""
    accept_quality: str | None = option(
        None, changes="quality", common=True, label="Open the gate anyway, because", topic="Gate"
    )
    """Open the gate anyway, for the reason you give. Every report records it."""
    eval_fraction: float = option(
        0.1, gt=0.0, lt=1.0, changes="quality", label="Held out for evaluation", unit="share", topic="Held-out pairs"
    )
    """Share of the usable pairs to hold out for evaluation."""
    min_eval_pairs: int = option(20, ge=1, changes="quality", label="Held-out pairs, at least", topic="Held-out pairs")
    """Minimum number of pairs to hold out, up to half of them."""


class TrainingOptions(OptionGroup):
    """Training"""

    num_train_epochs: float = option(
        1.0, gt=0.0, changes="preflight training", common=True, label="Passes over the pairs", topic="Optimizer"
    )
    """Number of passes over the training pairs."""
    beta: float = option(0.1, gt=0.0, changes="training", common=True, label="Beta", topic="Optimizer")
    """DPO's beta: higher keeps the policy closer to the reference."""
    learning_rate: float = option(
        5e-5, ge=0.0, changes="training", common=True, label="Peak learning rate", topic="Optimizer"
    )
    """Peak learning rate, after warm-up and before linear decay."""
    per_device_train_batch_size: int = option(
        1, ge=1, changes="preflight training", label="Pairs in a batch", topic="Optimizer"
    )
    """Times --gradient-accumulation-steps, the number of pairs in one optimizer step. The program splits them to fit the memory."""
    gradient_accumulation_steps: int = option(
        8, ge=1, changes="preflight training", label="Batches in a step", topic="Optimizer"
    )
    """Times --per-device-train-batch-size, the number of pairs in one optimizer step."""
    optim: Literal["adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = option(
        "adamw_torch_fused", changes="preflight training", label="Optimizer", topic="Optimizer"
    )
    """AdamW, by transformers' names: torch's own; with 8-bit state; paged out of a full GPU (CUDA only). All but torch's need
    the extra `bitsandbytes`."""
    gradient_checkpointing: bool | None = option(
        None, changes="preflight", label="Gradient checkpointing", topic="Memory"
    )
    """Recompute activations to save memory. Default: only if needed."""
    max_length: int = option(
        1024, ge=16, changes="preflight training", common=True, label="Longest pair", unit="tokens", topic="Memory"
    )
    """Maximum tokens in prompt and reply together. Longer pairs are listed and left out."""
    max_too_long_share: float = option(
        0.05, ge=0.0, le=1.0, changes="training", label="Pairs too long, at most", unit="share", topic="Memory"
    )
    """Refuse, in the gate and in training, if a larger share of the pairs exceeds --max-length."""
    save_steps: int = option(25, ge=1, changes="", label="Checkpoint every", unit="steps", topic="Checkpoints")
    """Optimizer steps between checkpoints."""
    save_total_limit: int = option(2, ge=2, changes="preflight", label="Checkpoints to keep", topic="Checkpoints")
    """Number of good checkpoints to keep."""
    cpu_ref_model: bool | None = option(None, changes="preflight", label="Reference computed before", topic="Memory")
    """Compute the reference's log-probabilities before training, to save memory during it. Default: chosen by what fits."""
    head: Literal["auto", "chunked", "trl", "whole"] = option(
        "auto", changes="preflight", label="Head over the vocabulary", topic="Memory"
    )
    """How log-probabilities are computed from hidden states. chunked: in small tiles, with the gradient in the same pass;
    trl: in TRL's tiles; whole: all logits at once. auto: trl on a GPU, else chunked."""
    load_in_4bit: bool = option(False, changes="preflight training", label="Base weights in 4 bits", topic="Memory")
    """Load the base weights in 4 bits (NF4). Needs a CUDA GPU and the extra `bitsandbytes`."""
    num_processes: int | None = option(None, ge=1, changes="preflight", label="Processes", topic="Processes")
    """Number of processes, on all machines together, that make pairs, score them and train, one per GPU. It must divide the
    pairs of one optimizer step. Default: one per GPU, or one per machine without GPUs."""
    sharding: Literal["ddp", "fsdp"] = option("ddp", changes="preflight", label="Base weights", topic="Processes")
    """With several processes: each holds the whole base model (ddp) or a shard of it (fsdp)."""
    num_machines: int = option(1, ge=1, changes="preflight", label="Machines that train", topic="Processes")
    """Number of machines that train together, on one run folder that all of them can access."""
    machine_rank: int = option(0, ge=0, changes="", label="Number of this machine", topic="Processes")
    """Number of this machine, from 0. Machine 0 does the whole run; the others join its training."""
    main_process_ip: str | None = option(None, changes="", label="Address of machine 0", topic="Processes")
    """With --num-machines: the address of machine 0."""
    main_process_port: int = option(29500, ge=1, le=65535, changes="", label="Port on machine 0", topic="Processes")
    """With --num-machines: a free port on machine 0."""
    report_to: Literal["none", "tensorboard"] = option("none", changes="", label="Report to", topic="Checkpoints")
    """Also write training figures for TensorBoard, in logs/tensorboard. Needs the extra `tensorboard`."""
    eval_prompts: int = option(40, ge=1, changes="evaluation", label="Held-out prompts to answer", topic="Evaluation")
    """Number of held-out prompts that Stage 2 and Stage 3 both answer."""
    eval_harmless_prompts: int = option(
        20, ge=0, changes="evaluation", label="Harmless prompts to answer", topic="Evaluation"
    )
    """Number of harmless prompts that both answer, to detect over-refusal. Everyday questions fill a shortage."""
    eval_part: Literal["all", "first", "second"] = option(
        "all", changes="evaluation", label="Half of the held-out pairs", topic="Evaluation"
    )
    """Half of the held-out pairs to evaluate on. A sweep chooses on the first and reports on the second."""
    min_eval_prompts: int = option(
        15, ge=1, changes="evaluation", label="Prompts for a verdict, at least", topic="Verdict"
    )
    """With fewer held-out prompts, the verdict is "cannot tell": 10 wins of 14 have p = 0.18."""
    eval_significance: float = option(
        0.05, gt=0.0, lt=1.0, changes="evaluation", label="Significance of the tests", topic="Verdict"
    )
    """The verdict ignores a difference with a higher p-value."""
    max_unusable_rise: float = option(
        0.05,
        ge=0.0,
        le=1.0,
        changes="evaluation",
        label="Rise of broken answers, at most",
        unit="share",
        topic="Verdict",
    )
    """Never "better" if the share of unusable answers rose by more, whatever the judge says."""
    max_refusal_rise: float = option(
        0.05, ge=0.0, le=1.0, changes="evaluation", label="Rise of refusals, at most", unit="share", topic="Verdict"
    )
    """Never "better" if the share of refused harmless prompts rose by more."""
    max_length_ratio: float = option(
        1.5, ge=1.0, changes="evaluation", label="Longer than Stage 2, at most", unit="times", topic="Verdict"
    )
    """If answers are longer than Stage 2's by more than this factor, the judge's preference must also hold on the others."""


class PackagingOptions(OptionGroup):
    """Packaging"""

    push_to_hub: str | None = option(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*$",
        changes="credentials packaging",
        common=True,
        label="Push to the Hub as",
    )
    """Hub repository (owner/name) to push the adapter, its card and the evaluation to, in one commit."""
    push_public: bool = option(False, changes="credentials packaging", label="Push to a public repository")
    """Push to a public repository. Otherwise a new repository is private, and a public one is refused."""
    accept_lookalikes: str | None = option(None, changes="packaging", label="Pack look-alikes, because")
    """Pack text that only looks like a key or token, for the reason you give. The run records it."""


class DisplayOptions(OptionGroup):
    """Display"""

    theme: str | None = option(None, changes="", label="Theme")
    """Theme: a built-in one, or one from $XDG_CONFIG_HOME/stage3-tui/themes. Default: the last one chosen."""
    mouse: bool = option(True, changes="", label="Mouse")
    """Use the mouse in the wizard. --no-mouse leaves it to the terminal."""
    ascii: bool | None = option(None, changes="", label="ASCII only")
    """Draw with ASCII only. Default: if the terminal or the locale has no Unicode."""
    charts: Literal["auto", "braille", "blocks"] = option("auto", changes="", label="Charts in")
    """Draw charts with braille dots or with half blocks. auto: blocks on the Linux console, whose font has no braille."""


class Stage3Config(
    DisplayOptions,
    PackagingOptions,
    TrainingOptions,
    QualityOptions,
    ServerOptions,
    PairsOptions,
    ModelOptions,
    HubOptions,
    WorkspaceOptions,
    RunOptions,
):
    """All options, resolved and frozen."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=False,  # it has no fields of its own, and its parts have read their docstrings
        validate_default=True,
        defer_build=False,
    )

    @field_validator("num_processes")
    @classmethod
    def _require_equal_batches(cls, number: int | None, info: ValidationInfo) -> int | None:
        size: int | None = info.data.get("per_device_train_batch_size")
        accumulation: int | None = info.data.get("gradient_accumulation_steps")
        if number is None or size is None or accumulation is None:  # an invalid one has its own error
            return number
        pairs = size * accumulation
        if pairs % number:
            below, above = nearest_divisors(pairs, number)
            nearest = (
                f"nearest possible numbers are {below} and {above}" if above else f"largest possible number is {below}"
            )
            raise ValueError(
                f"{pairs} pairs of one optimizer step (--per-device-train-batch-size {size} × "
                f"--gradient-accumulation-steps {accumulation}) cannot be divided evenly among {number} processes; the {nearest}"
            )
        return number

    @field_validator("sharding")
    @classmethod
    def _require_shardable_state(cls, sharding: str, info: ValidationInfo) -> str:
        if sharding == "fsdp" and info.data.get("load_in_4bit"):
            raise ValueError("4-bit weights (--load-in-4bit) cannot be sharded: every process keeps all of them")
        default_optim = cls.model_fields["optim"].default
        optim = info.data.get("optim", default_optim)
        if sharding == "fsdp" and optim != default_optim:
            raise ValueError(f"The state of --optim {optim} cannot be sharded: use {default_optim} with fsdp")
        return sharding

    @field_validator("num_machines")
    @classmethod
    def _require_equal_machines(cls, machines: int, info: ValidationInfo) -> int:
        processes: int | None = info.data.get("num_processes")
        if processes is not None and processes % machines:
            raise ValueError(
                f"{processes} processes (--num-processes) cannot be divided evenly among {machines} machines"
            )
        return machines

    @field_validator("machine_rank")
    @classmethod
    def _require_existing_machine(cls, rank: int, info: ValidationInfo) -> int:
        machines: int | None = info.data.get("num_machines")
        if machines is not None and rank >= machines:
            raise ValueError(f"The last of {machines} machines (--num-machines) is number {machines - 1}")
        return rank

    @field_validator("main_process_ip")
    @classmethod
    def _require_rendezvous_address(cls, address: str | None, info: ValidationInfo) -> str | None:
        if address is None and info.data.get("num_machines", 1) > 1:
            raise ValueError("Several machines (--num-machines) need the address of machine 0")
        return address


def nearest_divisors(pairs: int, number: int) -> tuple[int, int | None]:
    """The divisors of `pairs` nearest to `number`: one not above it, and one above it (None if there is none)."""
    divisors = [size for size in range(1, pairs + 1) if pairs % size == 0]
    return max(size for size in divisors if size <= number), min(
        (size for size in divisors if size > number), default=None
    )


def load_config(
    command_line: Mapping[str, Any] | None = None,
    *,
    toml: Path | None = None,
    preset: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Stage3Config:
    """Resolve the configuration. Raises ConfigError, which names the option, its value and where the value came from."""
    given = dict(command_line or {})
    from_environment = _environment_values(os.environ if environment is None else environment)
    from_file = _toml_values(toml)
    for source, values in (("the command line", given), ("the environment", from_environment), (str(toml), from_file)):
        _refuse_unknown(values, source)
        _refuse_invalid_path(values, source)
    try:
        return Stage3Config(**{**(preset or {}), **from_file, **from_environment, **given})
    except ValidationError as error:
        raise _invalid_value(error, given, from_environment, str(toml), from_file) from None


def with_changes(config: Stage3Config, changes: Mapping[str, Any]) -> tuple[Stage3Config | None, dict[str, str]]:
    """The configuration with all `changes` (values, or text as on the command line), or None and the reason for each invalid
    change.
    """
    before = {name: getattr(config, name) for name in type(config).model_fields}
    reasons = {}
    for name, value in changes.items():
        try:
            load_config({**before, name: value}, environment={})
        except ConfigError as error:
            reasons[name] = error.why
    if reasons:
        return None, reasons
    try:
        return load_config({**before, **changes}, environment={}), {}
    except ConfigError as error:  # each is valid alone, but not all together
        return None, dict.fromkeys(changes, str(error))


def _environment_values(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        key.removeprefix(ENV_PREFIX).lower(): value
        for key, value in environment.items()
        if key.startswith(ENV_PREFIX) and key not in TOKEN_VARIABLES
    }


def _toml_values(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return {key.replace("-", "_"): value for key, value in read_toml(path).items()}
    except OSError as error:
        raise ConfigError(
            f"Cannot read the configuration {path}.", str(error), "Pass another file with --config."
        ) from error
    except ValueError as error:
        raise ConfigError(f"The configuration {path} is not valid TOML.", str(error), "Correct that line.") from error


def _refuse_unknown(values: Mapping[str, Any], source: str) -> None:
    known = Stage3Config.model_fields
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"Unknown option {key!r} in {source}.",
                "It would have no effect.",
                f"Did you mean {nearest!r}? `stage3-tui --help` lists all options.",
            )


def _refuse_invalid_path(values: Mapping[str, Any], source: str) -> None:
    """An empty path would mean the working directory, which is never intended."""
    for key, value in values.items():
        is_a_path = Stage3Config.model_fields[key].annotation in (Path, Path | None)
        if is_a_path and isinstance(value, str) and (not value or "\0" in value):
            raise ConfigError(
                f"{key} in {source} is not a path: {value!r}.",
                "It is empty, or contains a NUL character.",
                "Pass a path, or omit the option.",
            )


def _invalid_value(
    error: ValidationError,
    given: Mapping[str, Any],
    from_environment: Mapping[str, Any],
    file_name: str,
    from_file: Mapping[str, Any],
) -> ConfigError:
    first = error.errors()[0]
    key = str(first["loc"][0])
    source = (
        "the command line"
        if key in given
        else f"the environment ({ENV_PREFIX}{key.upper()})"
        if key in from_environment
        else file_name
        if key in from_file
        else ""
        if first["input"] is None
        else "the preset"
    )
    sentence = Stage3Config.model_fields[key].description or ""
    return ConfigError(
        f"Invalid value for {key}: {first['input']!r} (from {source})." if source else f"{key} is missing.",
        f"{first['msg'].removeprefix('Value error, ')}.",
        f"{key}: {sentence}",
    )
