"""Published chat templates: those of the installed trl, and of axolotl's wheel if it is available. None is in this repository.

Each is either accepted, with the same ids as TRL's DPOTrainer, or refused with the right reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trl
from datasets import Dataset, disable_progress_bars
from trl import DPOConfig, DPOTrainer
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from engine.models.chat import ChatMessage, Conversation
from engine.models.chat_template import conversation_ids, reply_ids
from engine.models.templates.behaviour import behaviour_of
from engine.models.templates.rendering import template_messages
from tests.support.templates import published_tokenizer

WHEEL = "STAGE3_AXOLOTL_WHEEL"
"""The environment variable with the path of axolotl's wheel; without it, pip downloads the wheel."""

QUESTION: Conversation = [{"role": "user", "content": "How do I mend a tap?"}]
REPLY: ChatMessage = {"role": "assistant", "content": "Replace the washer."}
WORSE: ChatMessage = {"role": "assistant", "content": "I cannot say."}
DIALOGUE: Conversation = [
    *QUESTION,
    {"role": "assistant", "content": "Close the valve."},
    {"role": "user", "content": "Then?"},
]
CONVERSATIONS: tuple[Conversation, ...] = (QUESTION, DIALOGUE, [{"role": "system", "content": "Be brief."}, *DIALOGUE])

REFUSED = {
    "deepseek_r1_distill": "opens a thought where the reply should begin",
    "deepseekv3": "opens a thought where the reply should begin",
    "llava": "no special token at which generation could stop",
}
"""The templates that cannot work, and why. trl's template `deepseekv3` is that of DeepSeek-R1."""
TEXT_AFTER_END = {"phi3", "phi3_5", "command_a", "command_a_rag", "command_a_tool_use"}
"""These write more after the end of a reply: a second end, or another turn of the model. TRL trains on it."""
WITHOUT_END = {"glm4moe"}
"""These write no end after the last reply. TRL trains without one."""
THOUGHT_IN_THE_PROMPT = {"gemma4", "gemma4_unified"}
"""These open the turn with an empty thought, which they omit before a reply. TRL's prompt lacks it."""


@cache
def trl_templates() -> dict[str, str]:
    folder = Path(trl.__file__).parent / "chat_templates"
    found = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.jinja")}
    return {name: text for name, text in sorted(found.items()) if not name.endswith("_training")}


def axolotl_templates(folder: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel(folder)) as packed:
        names = [name for name in packed.namelist() if name.endswith(".jinja")]
        return {Path(name).stem: packed.read(name).decode() for name in sorted(names)}


def wheel(folder: Path) -> Path:
    if os.environ.get(WHEEL):
        return Path(os.environ[WHEEL])
    pip = shutil.which("pip")
    if pip is None:
        pytest.skip(f"pip is not available to download axolotl's wheel, and {WHEEL} is not set")
    command = [pip, "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), "axolotl"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("pip did not download axolotl's wheel within a minute")
    if done.returncode:
        pytest.skip(f"pip cannot download axolotl's wheel: {done.stderr.strip().splitlines()[-1:]}")
    return next(folder.glob("axolotl*.whl"))


def verdict_on(name: str, template: str) -> str:
    """`accepted`, or the fault. Accepted templates are compared with TRL's ids."""
    tokenizer = published_tokenizer(template)
    behaviour = behaviour_of(tokenizer)
    if behaviour.fault:
        return behaviour.fault
    for conversation, theirs in zip(CONVERSATIONS, trl_ids(tokenizer), strict=True):
        prompt = conversation_ids(tokenizer, conversation, add_generation_prompt=True)
        for reply, key in ((REPLY, "chosen_ids"), (WORSE, "rejected_ids")):
            answer_ids = reply_ids(tokenizer, conversation, [reply])
            assert answer_ids.count(behaviour.end) == 1
            assert_trl_ids(name, prompt + answer_ids, theirs["prompt_ids"] + theirs[key], tokenizer)
    return "accepted"


def assert_trl_ids(name: str, ours: list[int], theirs: list[int], tokenizer: Any) -> None:
    behaviour = behaviour_of(tokenizer)
    if name in THOUGHT_IN_THE_PROMPT and behaviour.only_in_prompt:
        thought = tokenizer.encode(behaviour.only_in_prompt, add_special_tokens=False)
        start = next(i for i in range(len(ours)) if ours[i : i + len(thought)] == thought)
        ours = ours[:start] + ours[start + len(thought) :]
    if name in TEXT_AFTER_END and theirs != ours:
        assert ours[-1] == behaviour.end and theirs[: len(ours)] == ours
    elif name in WITHOUT_END:
        assert ours == [*theirs, behaviour.end]
    else:
        assert ours == theirs


def trl_ids(tokenizer: Any) -> list[dict[str, list[int]]]:
    """The ids that DPOTrainer makes from the conversations, with the same arguments."""
    disable_progress_bars()
    options = behaviour_of(tokenizer).options
    rows = []
    for conversation in CONVERSATIONS:
        sides = {"prompt": conversation, "chosen": [REPLY], "rejected": [WORSE]}
        row: dict[str, Any] = {key: template_messages(messages, options) for key, messages in sides.items()}
        rows.append(row | ({"chat_template_kwargs": dict(options.switches)} if options.switches else {}))
    settings = DPOConfig(output_dir=".", max_length=None, report_to="none", use_cpu=True, bf16=False)
    return list(
        DPOTrainer._prepare_dataset(SimpleNamespace(), Dataset.from_list(rows), tokenizer, settings, "train")  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", trl_templates())
def test_a_template_of_trl(name: str):
    assert REFUSED.get(name, "accepted") in verdict_on(name, trl_templates()[name])


def test_the_templates_of_axolotl(tmp_path: Path):
    templates = axolotl_templates(tmp_path)
    found = {name: verdict_on(name, text) for name, text in templates.items()}
    assert len(found) >= 30
    assert {name: seen for name, seen in found.items() if REFUSED.get(name, "accepted") not in seen} == {}


@pytest.mark.parametrize("name", trl_templates())
def test_the_reply_is_what_trl_masks_as_the_assistants(name: str):
    """If TRL has a training version of the template, its mask shows where a reply begins and ends."""
    tokenizer = published_tokenizer(trl_templates()[name])
    behaviour = behaviour_of(tokenizer)
    try:
        training = get_training_chat_template(tokenizer)
    except (ValueError, TypeError) as error:
        pytest.skip(f"TRL has none: {error}")
    if training is None or behaviour.fault:
        pytest.skip("TRL has none, or the template is refused")
    assert has_generation_markers(training)
    masked = tokenizer.apply_chat_template(
        template_messages([*QUESTION, REPLY], behaviour.options),
        chat_template=training,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **behaviour.options.switches,
    )
    theirs = [token for token, in_reply in zip(masked["input_ids"], masked["assistant_masks"], strict=True) if in_reply]
    ours = reply_ids(tokenizer, QUESTION, [REPLY])
    assert tokenizer.decode(ours).removesuffix(tokenizer.decode(behaviour.appended)).strip() in tokenizer.decode(theirs)
