"""The one configuration class: every option with its type, its bound, its default and a sentence.

Precedence: command line, environment (`STAGE3_NUM_EXAMPLES`), `stage3.toml` (`--config`), the `--demo` preset, default.
The command line and the wizard's forms read the options from this file's syntax tree (`engine.core.options`), so that
`--help` need not import pydantic.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from engine.core.errors import ConfigError
from engine.security.secrets import TOKEN_VARIABLES

ENV_PREFIX = "STAGE3_"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
NOT_RECORDED = frozenset({"store_token"})
"""Fields that `run.json` does not keep: a wish for one start of a run is none for the next."""


def option(default: Any, *, changes: str, **bounds: Any) -> Any:
    """A field of the configuration.

    changes   the stages whose result depends on it, by name, and "evaluation" for the second half of stage training;
              empty where no result does. A stage is done again when one of its options has changed, and for no other
              option (`engine.pipeline.graph`).
    bounds    ge, gt, le, lt, pattern: as pydantic's Field takes them
    """
    return Field(default, json_schema_extra={"changes": list(changes.split())}, **bounds)  # type: ignore[dict-item]


class Described(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class RunOptions(Described):
    """The run"""

    output_dir: Path = option("artifacts/stage3_constitutional", changes="")
    """The run folder; everything that the run makes is in it, and the archive beside it."""
    seed: int = option(42, ge=0, changes="pairs quality training evaluation")
    """Seed of every draw: order of prompts, principles, sampling, training."""
    device: str = option("auto", changes="preflight")
    """Where to compute: auto, cpu, cuda, cuda:1."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = option("auto", changes="preflight")
    """Number format of the base weights; auto takes bfloat16 where the GPU has it, else float32."""


class WorkspaceOptions(Described):
    """Workspace"""

    repo_root: Path | None = option(None, changes="workspace")
    """An existing checkout to work in; without it and without --repo-url, the current folder."""
    repo_url: str | None = option(None, changes="workspace")
    """A git repository (https or a local path) to clone into a fresh folder."""
    repo_ref: str = option("main", changes="workspace")
    """Branch, tag or commit of --repo-url."""
    allow_ssh: bool = option(False, changes="workspace")
    """Let --repo-url be an ssh address (ssh://… or host:path): ssh then uses your keys, and asks nothing."""
    fetch_lfs: bool = option(False, changes="workspace")
    """Fetch the large files of --repo-url too (git-lfs); without it their pointers stay."""
    fresh: bool = option(False, changes="workspace")
    """Clone again although a clone is there; the old one is moved aside."""
    install: bool = option(False, changes="toolchain dependencies")
    """Let the stages toolchain and dependencies install what is missing, with uv."""


class HubOptions(Described):
    """Hugging Face"""

    device_login: bool = option(False, changes="credentials")
    """Log in with a browser and a code where no token is found, or where the one that is found is not accepted."""
    store_token: bool = option(False, changes="credentials")
    """Keep the token that was accepted in the Hub's own store (HF_HOME/token, mode 0600), as `hf auth login` does."""


class ModelOptions(Described):
    """Models"""

    base_model_id: str = option("google/gemma-2b-it", changes="credentials adapter preflight")
    """The base causal language model: a Hub id or a folder."""
    base_model_revision: str = option("main", changes="credentials adapter preflight")
    """Branch, tag or commit of the base model on the Hub; the resolved commit is recorded."""
    adapter_path: str = option("artifacts/stage2_finetuning_artifacts/lora_adapters", changes="credentials adapter")
    """The Stage 2 LoRA adapter: a folder, or a Hub id."""
    adapter_revision: str = option("main", changes="credentials adapter")
    """Branch, tag or commit of the adapter on the Hub; the resolved commit is recorded."""
    chat_template: str | None = option(None, changes="preflight pairs quality training")
    """The template that the Stage 2 adapter was trained with, where the base model has none or another: a file, gemma or chatml."""


class PairsOptions(Described):
    """Pairs"""

    dataset: str = option("Anthropic/hh-rlhf", changes="credentials preflight pairs")
    """Prompts: a Hub id, or a local file or folder: JSON, JSON lines, CSV, Parquet, Arrow, text, compressed or not."""
    dataset_revision: str = option("main", changes="credentials preflight pairs")
    """Branch, tag or commit of the dataset on the Hub; the resolved commit is recorded."""
    split: str = option("test[:1000]+train[:1500]", changes="preflight pairs")
    """Which rows: splits, slices and sums of them; a local file is one split named train."""
    pairs: Path | None = option(None, changes="credentials preflight pairs")
    """Preference pairs from elsewhere, a file or a folder: stage pairs imports them, and nothing is generated."""
    form: str | None = option(None, changes="credentials preflight pairs")
    """How rows say a prompt or a pair, by name (docs/files-you-have.md lists the forms); without it, told by their columns."""
    columns: str | None = option(None, changes="credentials preflight pairs")
    """What the file calls the columns of a form: prompt=question,chosen=good,rejected=bad."""
    max_bad_rows: float | None = option(None, ge=0.0, le=1.0, changes="credentials preflight pairs")
    """Refuse a file of which a larger share of rows is no prompt, or no pair; without it 0.5, and `validate` accepts none."""
    num_examples: int = option(2500, ge=1, changes="preflight pairs")
    """How many prompts to make pairs of."""
    constitution: Path | None = option(None, changes="pairs")
    """Principles: YAML, or the JSON of Anthropic's paper; without it, the one in the package."""
    max_new_tokens: int = option(512, ge=1, changes="preflight pairs evaluation")
    """Longest draft, critique and revision, in tokens."""
    max_prompt_tokens: int = option(1024, ge=8, changes="preflight pairs")
    """A longer prompt is skipped, with its reason."""
    temperature: float = option(0.7, ge=0.0, changes="pairs")
    """Of sampling; 0 is greedy."""
    top_p: float = option(0.9, gt=0.0, le=1.0, changes="pairs")
    """Nucleus of sampling."""
    generation_batch_size: int | None = option(None, ge=1, changes="preflight")
    """Prompts generated side by side; without it, found by trying. Halved when memory runs out."""
    max_attempts: int = option(3, ge=1, changes="pairs")
    """Critique and revision are tried this often, each time with another principle, before a prompt is given up."""
    rounds: int = option(1, ge=1, changes="preflight pairs")
    """Rounds of critique and revision; each begins with the revision of the one before."""
    few_shot: Path | None = option(None, changes="preflight pairs")
    """Worked examples of critique and revision, put before each: a YAML file."""


class ServerOptions(Described):
    """Server"""

    server_url: str | None = option(None, changes="preflight pairs")
    """An OpenAI-compatible server (http://host:8000/v1) that makes the pairs in place of the local model."""
    server_model: str | None = option(None, changes="preflight pairs quality evaluation")
    """The model's name on that server: the base model with the Stage 2 adapter."""
    critic_url: str | None = option(None, changes="preflight pairs")
    """An OpenAI-compatible server that writes critiques and revisions, while the policy drafts where it is."""
    critic_model: str | None = option(None, changes="preflight pairs")
    """The critic's name on that server: any model that follows instructions."""
    critic_api_key_env: str = option("STAGE3_CRITIC_TOKEN", pattern=VARIABLE, changes="")
    """The environment variable that holds the token of --critic-url; the token itself is no option."""
    judge_url: str | None = option(None, changes="")
    """An OpenAI-compatible server for --judge server and auto; without it, that of --server-url."""
    judge_model: str | None = option(None, changes="quality evaluation")
    """The judge's name on that server; without it, that of --server-model."""
    judge_api_key_env: str = option("STAGE3_JUDGE_TOKEN", pattern=VARIABLE, changes="")
    """The environment variable that holds the token of --judge-url."""
    server_concurrency: int = option(16, ge=1, changes="")
    """Requests to the server under way at once."""
    server_timeout: float = option(120.0, gt=0.0, changes="")
    """Seconds that one request may take."""


class QualityOptions(Described):
    """Quality"""

    judge: Literal["auto", "none", "self", "reward-model", "server", "demo"] = option(
        "auto", changes="credentials quality evaluation"
    )
    """Who scores drafts and revisions, after an exam: self (the Stage 2 policy), reward-model, server, demo (the demo's own),
    none, or auto: the first of a configured server, the reward model and self that passes."""
    reward_model_id: str = option(
        "OpenAssistant/reward-model-deberta-v3-large-v2", changes="credentials quality evaluation"
    )
    """The sequence classifier of --judge reward-model: a Hub id or a folder."""

    relevance: bool = option(True, changes="quality")
    """Measure with the base model whether each revision depends on its prompt; what would fit any message is left out."""
    min_pairs: int = option(100, ge=1, changes="quality")
    """The gate refuses fewer pairs to train on than this."""
    min_usable_share: float = option(0.5, ge=0.0, le=1.0, changes="quality")
    """The gate refuses when a smaller share of what was made is usable."""
    min_relevant_share: float = option(0.5, ge=0.0, le=1.0, changes="quality")
    """The gate refuses when a smaller share of the revisions that could be measured depends on its prompt."""
    max_longer_share: float = option(0.9, ge=0.0, le=1.0, changes="quality")
    """The gate refuses when the revision is the longer text in a larger share: DPO would learn length."""
    max_shared_prompt_share: float = option(0.05, ge=0.0, le=1.0, changes="quality")
    """The gate refuses when a larger share of the pairs has its prompt in common with another."""
    min_improved_share: float = option(0.6, ge=0.0, le=1.0, changes="quality")
    """The gate refuses when a judge scored, and found a smaller share improved."""
    min_gain: float = option(0.0, changes="quality")
    """A pair trains only where a judge finds it better by more than this; a number below 0 lets equal and worse ones in."""
    min_sample_share: float = option(0.5, ge=0.0, le=1.0, changes="quality")
    """Without a judge that can judge: the lower end of the 95 % interval of the share that people find better must reach it."""
    warn_identical_share: float = option(0.05, ge=0.0, le=1.0, changes="quality")
    """A larger share of identical revisions is shown as a warning."""
    warn_meta_share: float = option(0.02, ge=0.0, le=1.0, changes="quality")
    """A larger share of revisions that talk about an answer is shown as a warning."""
    warn_principle_share: float = option(0.5, ge=0.0, le=1.0, changes="quality")
    """One principle in a larger share of the pairs is shown as a warning."""
    accept_quality: str | None = option(None, changes="quality")
    """Opens the gate for the reason that you give; it is recorded in every report."""
    eval_fraction: float = option(0.1, gt=0.0, lt=1.0, changes="quality")
    """Share of the usable pairs that is held out before training."""
    min_eval_pairs: int = option(20, ge=1, changes="quality")
    """Hold out at least this many, but never more than half."""


class TrainingOptions(Described):
    """Training"""

    num_train_epochs: float = option(1.0, gt=0.0, changes="preflight training")
    """Passes over the training pairs."""
    beta: float = option(0.1, gt=0.0, changes="training")
    """DPO's beta: how strongly the policy is held to the reference."""
    learning_rate: float = option(5e-5, ge=0.0, changes="training")
    """Peak of the learning rate; it warms up, then falls linearly."""
    per_device_train_batch_size: int = option(1, ge=1, changes="preflight training")
    """Times --gradient-accumulation-steps it is the effective batch; how that is split is chosen by what fits in memory."""
    gradient_accumulation_steps: int = option(8, ge=1, changes="preflight training")
    """Times --per-device-train-batch-size: the pairs of one optimizer step."""
    gradient_checkpointing: bool | None = option(None, changes="preflight")
    """Compute activations twice to hold fewer of them in memory; without it, chosen by what fits."""
    max_length: int = option(1024, ge=16, changes="preflight training")
    """Longest prompt and reply together, in tokens; pairs that do not fit are listed and left out."""
    max_too_long_share: float = option(0.05, ge=0.0, le=1.0, changes="training")
    """Training is refused when a larger share of the pairs does not fit --max-length."""
    save_steps: int = option(25, ge=1, changes="")
    """A checkpoint every so many optimizer steps."""
    save_total_limit: int = option(2, ge=2, changes="preflight")
    """Good checkpoints that are kept."""
    cpu_ref_model: bool | None = option(None, changes="preflight")
    """Compute the reference's log-probabilities once, before training, so that it costs no memory in it; without it, chosen."""
    load_in_4bit: bool = option(False, changes="preflight training")
    """Hold the base weights in 4 bits (NF4); needs a CUDA GPU and `pip install 'stage3-tui[bitsandbytes]'`."""
    report_to: Literal["none", "tensorboard"] = option("none", changes="")
    """Who else gets the training's figures: tensorboard (logs/tensorboard; `pip install 'stage3-tui[tensorboard]'`)."""
    eval_prompts: int = option(40, ge=1, changes="evaluation")
    """Held-out prompts that Stage 2 and Stage 3 answer side by side."""
    eval_harmless_prompts: int = option(20, ge=0, changes="evaluation")
    """Harmless prompts that both answer, to see over-refusal; where fewer are held out, everyday questions are added."""
    eval_part: Literal["all", "first", "second"] = option("all", changes="evaluation")
    """Which half of the held-out pairs is evaluated: a sweep chooses on the first and decides on the second."""
    min_eval_prompts: int = option(15, ge=1, changes="evaluation")
    """Of fewer held-out prompts the verdict is "cannot tell": 10 wins of 14 have p = 0.18."""
    eval_significance: float = option(0.05, gt=0.0, lt=1.0, changes="evaluation")
    """A difference that is as probable by chance alone counts for nothing in the verdict."""
    max_unusable_rise: float = option(0.05, ge=0.0, le=1.0, changes="evaluation")
    """Never "better" where the share of unusable answers rose by more, whatever a judge says of the others."""
    max_refusal_rise: float = option(0.05, ge=0.0, le=1.0, changes="evaluation")
    """Never "better" where the share of harmless prompts that are refused rose by more."""
    max_length_ratio: float = option(1.5, ge=1.0, changes="evaluation")
    """Where answers grew longer than so many times Stage 2's, a judge's preference must hold without the longer ones."""


class PackagingOptions(Described):
    """Packaging"""

    push_to_hub: str | None = option(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*$", changes="credentials packaging"
    )
    """A repository of the Hub (owner/name) that gets the adapter, its card and the evaluation, in one commit."""
    push_public: bool = option(False, changes="credentials packaging")
    """Let everybody see what --push-to-hub pushes; without it a new repository is private, and a public one is refused."""
    accept_lookalikes: str | None = option(None, changes="packaging")
    """Packs text of models and people that looks like a key or a token, for the reason that you give; it is recorded."""


class DisplayOptions(Described):
    """Display"""

    theme: str | None = option(None, changes="")
    """A theme of the package, or of $XDG_CONFIG_HOME/stage3-tui/themes; without it, the one that was chosen last."""
    mouse: bool = option(True, changes="")
    """Use the mouse in the wizard; --no-mouse leaves it to the terminal."""
    ascii: bool | None = option(None, changes="")
    """Draw with ASCII alone; without it, where the terminal or the locale has nothing else."""


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
    BaseSettings,
):
    """All of it, resolved and frozen."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )


def load_config(
    command_line: Mapping[str, Any] | None = None,
    *,
    toml: Path | None = None,
    preset: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Stage3Config:
    """Resolve the configuration. Raises ConfigError, naming the key, the value and where it came from."""
    given = dict(command_line or {})
    from_environment = _environment_values(os.environ if environment is None else environment)
    from_file = _toml_values(toml)

    class Resolved(Stage3Config):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            layers = (from_environment, from_file, dict(preset or {}))
            return (init_settings, *(InitSettingsSource(settings_cls, layer) for layer in layers))

    for source, values in (("the command line", given), ("the environment", from_environment), (str(toml), from_file)):
        _refuse_unknown(values, source)
    try:
        return Resolved(**given)
    except ValidationError as error:
        raise _refused(error, given, from_environment, str(toml), from_file) from None


def with_changes(config: Stage3Config, changes: Mapping[str, Any]) -> tuple[Stage3Config | None, dict[str, str]]:
    """The configuration with all `changes` (values, or text as on the command line), or None and why each of those that cannot
    be cannot.
    """
    before = {name: getattr(config, name) for name in type(config).model_fields}
    refusals = {}
    for name, value in changes.items():
        try:
            load_config({**before, name: value}, environment={})
        except ConfigError as error:
            refusals[name] = error.why
    if refusals:
        return None, refusals
    try:
        return load_config({**before, **changes}, environment={}), {}
    except ConfigError as error:  # each alone is good, together they are not
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
        with path.open("rb") as file:
            return {key.replace("-", "_"): value for key, value in tomllib.load(file).items()}
    except OSError as error:
        raise ConfigError(
            f"The configuration {path} cannot be read.", str(error), "Give another with --config."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The configuration {path} is not TOML.", str(error), "Mend the line that it names."
        ) from error


def _refuse_unknown(values: Mapping[str, Any], source: str) -> None:
    known = Stage3Config.model_fields
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"{source} sets {key!r}, which is no option.",
                "Nothing would read it.",
                f"The nearest option is {nearest!r}; `stage3-tui --help` lists them all.",
            )


def _refused(
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
        else "the preset"
    )
    sentence = Stage3Config.model_fields[key].description or ""
    return ConfigError(
        f"{key} = {first['input']!r} (from {source}) cannot be.", f"{first['msg']}.", f"{key}: {sentence}"
    )
