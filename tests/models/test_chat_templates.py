"""The behaviour of a chat template is found by trying it: how it is called, what is trained, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import trl
from transformers import PreTrainedTokenizerBase

from engine.core.config import Stage3Config
from engine.core.errors import ConfigError, PreconditionError, UnsafeError
from engine.models.chat import ChatMessage, Conversation
from engine.models.chat_template import conversation_ids, reply_ids
from engine.models.loading import load_tokenizer
from engine.models.templates import termination
from engine.models.templates.behaviour import behaviour_of
from engine.models.templates.option import default_template
from engine.models.templates.thoughts import closes_thought, opens_thought, without_thought
from engine.run.folder import Run
from tests.support.templates import tokenizer_with
from tests.support.tiny_models import build_base

PUBLISHED = Path(trl.__file__).parent / "chat_templates"
CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"""
QUESTION: Conversation = [{"role": "user", "content": "How do I mend a tap?"}]
DIALOGUE: Conversation = [
    *QUESTION,
    {"role": "assistant", "content": "Close the valve."},
    {"role": "user", "content": "Then?"},
]
REPLY: ChatMessage = {"role": "assistant", "content": "Replace the washer."}


def published(name: str, **special: object) -> PreTrainedTokenizerBase:
    return tokenizer_with((PUBLISHED / f"{name}.jinja").read_text(encoding="utf-8"), **special)  # type: ignore[arg-type]


def prompt_and_reply(tokenizer: PreTrainedTokenizerBase, conversation: Conversation = QUESTION) -> tuple[str, str]:
    """The prompt and the reply of a training pair, as text."""
    prompt = conversation_ids(tokenizer, conversation, add_generation_prompt=True)
    return tokenizer.decode(prompt), tokenizer.decode(reply_ids(tokenizer, conversation, [REPLY]))


def fault(tokenizer: PreTrainedTokenizerBase) -> str:
    with pytest.raises(PreconditionError) as refused:
        reply_ids(tokenizer, QUESTION, [REPLY])
    assert behaviour_of(tokenizer).fault in refused.value.what
    return behaviour_of(tokenizer).fault


def test_a_bos_that_opens_every_turn_is_as_the_model_was_published():
    """SmolLM2's is <|im_start|>."""
    tokenizer = tokenizer_with(CHATML, bos="<|im_start|>", eos="<|im_end|>")
    prompt, reply = prompt_and_reply(tokenizer, DIALOGUE)
    assert prompt.count("<|im_start|>") == 4 and prompt.endswith("<|im_start|>assistant\n")
    assert reply == "Replace the washer.<|im_end|>\n"


def test_gemma_3_ends_a_reply_with_a_token_that_is_neither_its_eos_nor_listed_among_the_special_ones():
    tokenizer = published("gemma3", bos="<bos>", eos="<eos>", plain=("<end_of_turn>", "<start_of_turn>"))
    assert "<end_of_turn>" not in tokenizer.all_special_tokens
    prompt, reply = prompt_and_reply(tokenizer, DIALOGUE)
    assert prompt.startswith("<bos><start_of_turn>user\n") and prompt.count("<bos>") == 1
    assert reply == "Replace the washer.<end_of_turn>\n"
    assert tokenizer.convert_ids_to_tokens(behaviour_of(tokenizer).end) == "<end_of_turn>"


@pytest.mark.fault("C10")
def test_a_reply_ends_once_whatever_the_template_writes_after_it():
    tokenizer = published("phi3", bos="<s>", eos="<|endoftext|>")
    ids = tokenizer.apply_chat_template([*QUESTION, REPLY], return_dict=False)
    assert tokenizer.decode(ids).endswith("<|end|>\n<|endoftext|>")
    assert prompt_and_reply(tokenizer)[1] == "Replace the washer.<|end|>"


def test_a_template_that_ends_a_reply_only_before_the_next_turn_gets_that_end():
    """GLM's model stops at <|user|>."""
    tokenizer = published("glm4moe", bos=None, eos="<|endoftext|>", plain=("<think>", "</think>"))
    assert prompt_and_reply(tokenizer) == (
        "[gMASK]<sop><|user|>\nHow do I mend a tap?/nothink<|assistant|>\n<think></think>",
        "\nReplace the washer.<|user|>",
    )


def test_a_model_that_can_think_is_asked_not_to():
    tokenizer = published("qwen3", bos=None, eos="<|im_end|>", plain=("<think>", "</think>"))
    prompt, reply = prompt_and_reply(tokenizer, DIALOGUE)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert reply == "Replace the washer.<|im_end|>\n"


def test_an_empty_thought_that_only_the_rendering_with_a_reply_has_belongs_to_the_prompt():
    template = CHATML.replace(
        "+ m.content", "+ ('<think>\\n\\n</think>\\n' if m.role == 'assistant' else '') + m.content"
    )
    tokenizer = tokenizer_with(template, bos=None, eos="<|im_end|>")
    prompt, reply = prompt_and_reply(tokenizer)
    assert prompt.endswith("assistant\n<think>\n\n</think>\n") and reply == "Replace the washer.<|im_end|>\n"


def test_an_empty_thought_that_only_the_opened_turn_has_stays_in_the_prompt():
    """Gemma 4, 12B and up."""
    template = CHATML.replace("assistant\n{%", "assistant\n<think></think>{%")
    tokenizer = tokenizer_with(template, bos=None, eos="<|im_end|>")
    prompt, reply = prompt_and_reply(tokenizer)
    assert prompt.endswith("assistant\n<think></think>") and reply == "Replace the washer.<|im_end|>\n"


def test_a_template_that_always_opens_a_thought_is_refused_with_its_text():
    tokenizer = published("deepseek_r1_distill", bos="<｜begin▁of▁sentence｜>", eos="<｜end▁of▁sentence｜>")
    assert "it opens a thought where the reply should begin" in fault(tokenizer)
    assert "<think>" in fault(tokenizer)
    with pytest.raises(PreconditionError) as refused:
        reply_ids(tokenizer, QUESTION, [REPLY])
    assert "remove the opening tag of the thought" in refused.value.what_to_do


def test_a_template_without_an_end_of_turn_is_refused_with_its_text():
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}\
{% if add_generation_prompt %}assistant: {% endif %}"
    assert "after a reply it writes '\\n', and no special token" in fault(tokenizer_with(template))


@pytest.mark.fault("C10")
def test_two_bos_in_a_row_are_refused():
    assert "two BOS" in fault(tokenizer_with("{{ bos_token }}{{ bos_token }}" + CHATML, eos="<|im_end|>"))


def test_a_bos_that_the_tokenizer_lacks_is_refused():
    assert "has none" in fault(tokenizer_with("{{ bos_token }}" + CHATML, bos=None, eos="<|im_end|>"))


@pytest.mark.parametrize("expression", ["|tojson", ".split()|join(' ')", "[:200]", "|replace('\\n', ' ')"])
def test_a_template_that_changes_text_is_refused(expression: str):
    tokenizer = tokenizer_with(CHATML.replace("m.content", f"m.content{expression}"), bos=None, eos="<|im_end|>")
    assert "it changes the text of a message" in fault(tokenizer)


@pytest.mark.parametrize(
    "expression", ["{{ 1/0 }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ range(10**9) }}"]
)
def test_whatever_a_template_raises_is_reported(expression: str):
    assert "refuses to render a short conversation" in fault(tokenizer_with(expression + CHATML, eos="<|im_end|>"))


def test_a_template_whose_prompt_depends_on_what_follows_is_refused_with_the_place():
    tokenizer = tokenizer_with("{{ messages|length }} turns\n" + CHATML, bos=None, eos="<|im_end|>")
    assert "renders the prompt differently when a reply follows, from '1 turns" in fault(tokenizer)


def test_of_several_templates_the_default_is_used():
    tokenizer = published("qwen3", bos=None, eos="<|im_end|>", plain=("<think>", "</think>"))
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ broken"}  # type: ignore[assignment]
    assert prompt_and_reply(tokenizer)[0].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


DOUBLES = "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}"
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("expression", [DOUBLES, LOOPS])
def test_a_template_that_does_not_end_is_refused_before_this_process_renders_it(
    expression: str, bare: Path, config, tmp_path: Path
):
    (tmp_path / "t.jinja").write_text(expression + CHATML)
    with pytest.raises(UnsafeError, match="does not end"):
        with_option(bare, config, chat_template=str(tmp_path / "t.jinja"))


def test_a_template_with_generation_tags_is_tried_like_any_other():
    termination.require_termination(
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", "mine"
    )


def test_a_template_that_loses_text_is_refused():
    assert "is missing from what it renders" in fault(
        tokenizer_with(CHATML.replace("m.content", "''"), eos="<|im_end|>")
    )
    only_last = CHATML.replace("in messages", "in messages[-1:]")
    assert "a turn of the user is missing" in fault(tokenizer_with(only_last, eos="<|im_end|>"))


def test_a_template_that_requires_parts_gets_parts():
    tokenizer = published("idefics3", bos="<|begin_of_text|>", eos="<end_of_utterance>")
    assert prompt_and_reply(tokenizer) == (
        "<|begin_of_text|>User: How do I mend a tap?<end_of_utterance>\nAssistant:",
        " Replace the washer.<end_of_utterance>\n",
    )


def test_a_system_message_has_its_own_turn_if_the_template_supports_it():
    tokenizer = tokenizer_with(CHATML, bos=None, eos="<|im_end|>")
    prompt, _ = prompt_and_reply(tokenizer, [{"role": "system", "content": "Be brief."}, *QUESTION])
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow")


@pytest.mark.fault("C11")
@pytest.mark.parametrize("expression", ["{{ raise_exception('System role not supported') }}", ""])
def test_a_system_message_goes_into_the_first_user_turn_if_the_template_refuses_or_ignores_it(expression: str):
    template = CHATML.replace("{{ '<|im", "{% if m.role == 'system' %}" + expression + "{% else %}{{ '<|im").replace(
        "{% endfor", "{% endif %}{% endfor"
    )
    tokenizer = tokenizer_with(template, bos=None, eos="<|im_end|>")
    prompt, reply = prompt_and_reply(tokenizer, [{"role": "system", "content": "Be brief."}, *QUESTION])
    assert prompt.startswith("<|im_start|>user\nBe brief.\n\nHow do I mend a tap?<|im_end|>")
    assert reply == "Replace the washer.<|im_end|>\n"


def test_a_system_message_after_worked_examples_goes_into_the_user_turn_that_follows():
    tokenizer = tokenizer_with(CHATML, bos=None, eos="<|im_end|>")
    examples: Conversation = [*QUESTION, REPLY]
    prompt, _ = prompt_and_reply(tokenizer, [*examples, {"role": "system", "content": "Be brief."}, *QUESTION])
    assert "system" not in prompt and "user\nBe brief.\n\nHow" in prompt


def test_the_prompt_is_a_prefix_of_prompt_and_reply_even_if_a_token_would_span_both():
    template = CHATML.replace("m.role + '\n'", "m.role + ' re'").replace("assistant\n", "assistant re")
    tokenizer = tokenizer_with(template, bos=None, eos="<|im_end|>")
    reply = reply_ids(tokenizer, QUESTION, [{"role": "assistant", "content": "place the washer"}])
    full = conversation_ids(
        tokenizer, [*QUESTION, {"role": "assistant", "content": "place the washer"}], add_generation_prompt=False
    )
    prompt = conversation_ids(tokenizer, QUESTION, add_generation_prompt=True)
    assert full[: len(prompt)] != prompt, "the tokenizer does not join 're' and 'place', so this proves nothing"
    assert tokenizer.decode(prompt + reply) == tokenizer.decode(full)


@pytest.mark.fault("C9")
@pytest.mark.parametrize("plain", [(), ("<think>", "</think>")])
def test_the_templates_own_control_tokens_are_text_in_a_message(plain: tuple[str, ...]):
    tokenizer = published("qwen3", bos=None, eos="<|im_end|>", plain=plain)
    text = "Say <think> and </think>, <|im_end|>\n<|im_start|>"
    reply = reply_ids(tokenizer, QUESTION, [{"role": "assistant", "content": text}])
    control_tokens = [token for token in reply if token in tokenizer.added_tokens_decoder]
    assert tokenizer.convert_ids_to_tokens(control_tokens) == ["<|im_end|>"]
    assert tokenizer.decode(reply) == text + "<|im_end|>\n"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>\nFirst the valve.\n</think>\n\nClose it.", "Close it."),
        ("First the valve.\n</think>\n\nClose it.", "Close it."),
        ("[THINK]First[/THINK]Close it.", "Close it."),
        ("<|channel>thought\nFirst<channel|>Close it.", "Close it."),
        ("Close it.", "Close it."),
        ("Use <b>both</b> hands.", "Use <b>both</b> hands."),
    ],
)
def test_a_thought_is_not_part_of_a_draft(text: str, left: str):
    assert without_thought(text) == left


@pytest.mark.parametrize(
    "text", ["<think>\n\n</think>\n\n", "<|channel>thought\n<channel|>", "[THINK][/THINK]", "</think>"]
)
def test_a_closed_thought_is_distinguished_from_an_open_one(text: str):
    assert closes_thought(text) and not opens_thought(text)
    assert not closes_thought("Close the valve.")


@pytest.mark.parametrize("text", ["</think><think>\n", "<|START_THINKING|>", "<seed:think>", "[THINK]"])
def test_an_open_thought_is_detected(text: str):
    assert opens_thought(text) and not closes_thought(text)


# -- --chat-template ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained base model, whose tokenizer has Gemma's special tokens but no template."""
    base = build_base(tmp_path_factory.mktemp("bare") / "base")
    (base / "chat_template.jinja").unlink()
    return base


def with_option(bare: Path, config: Callable[..., Stage3Config], **options: object) -> PreTrainedTokenizerBase:
    return load_tokenizer(config(base_model_id=str(bare), **options))


def test_a_model_without_a_template_is_refused_with_the_option_that_provides_one(bare: Path, config, tmp_path: Path):
    with pytest.raises(PreconditionError, match="has no chat template") as refused:
        with_option(bare, config)
    assert "--chat-template" in refused.value.what_to_do and "gemma or chatml" in refused.value.what_to_do
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    with pytest.raises(PreconditionError) as refused:
        with_option(bare, config, adapter_path=str(tmp_path))
    assert f"--chat-template {tmp_path / 'chat_template.jinja'}" in refused.value.what_to_do


def test_gemmas_template_can_be_used_for_a_pretrained_gemma(bare: Path, config):
    tokenizer = with_option(bare, config, chat_template="gemma")
    prompt, reply = prompt_and_reply(tokenizer)
    assert prompt == "<bos><start_of_turn>user\nHow do I mend a tap?<end_of_turn>\n<start_of_turn>model\n"
    assert reply == "Replace the washer.<end_of_turn>\n"


def test_a_template_whose_control_tokens_the_tokenizer_lacks_is_refused(bare: Path, config):
    tokenizer = with_option(bare, config, chat_template="chatml")
    assert "'<|im_end|>\\n', and no special token" in fault(tokenizer)


def test_a_file_is_the_template_and_is_saved_with_the_tokenizer(bare: Path, config, tmp_path: Path):
    mine = tmp_path / "mine.jinja"
    mine.write_text(CHATML.replace("<|im_end|>", "<end_of_turn>"))
    tokenizer = with_option(bare, config, chat_template=str(mine))
    assert prompt_and_reply(tokenizer)[1] == "Replace the washer.<end_of_turn>\n"
    tokenizer.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved/chat_template.jinja").read_text() == mine.read_text()


@pytest.mark.fault("C11")
@pytest.mark.parametrize(("text", "why"), [(None, "FileNotFoundError"), ("hello", "does not use `messages`")])
def test_a_file_that_is_not_a_template_is_refused(text: str | None, why: str, bare: Path, config, tmp_path: Path):
    if text is not None:
        (tmp_path / "mine.jinja").write_text(text)
    with pytest.raises(ConfigError) as refused:
        with_option(bare, config, chat_template=str(tmp_path / "mine.jinja"))
    assert why in refused.value.why


# -- the date -----------------------------------------------------------------------------------------------------------


def test_a_template_that_writes_the_date_uses_the_date_of_the_runs_preflight(bare: Path, config, tmp_path: Path):
    dated = tmp_path / "dated.jinja"
    dated.write_text("Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML.replace("<|im_end|>", "<end_of_turn>"))
    options = {"chat_template": str(dated), "output_dir": tmp_path / "run"}
    today = date.today().strftime("%d %b %Y")
    assert prompt_and_reply(with_option(bare, config, **options))[0].startswith(f"Today is {today}.")
    Run(tmp_path / "run").record_stage("preflight", status="done", result={"date": "2026-02-03"})
    prompt, reply = prompt_and_reply(with_option(bare, config, **options))
    assert prompt.startswith("Today is 03 Feb 2026.") and reply == "Replace the washer.<end_of_turn>\n"


def test_of_templates_by_name_the_default_or_the_only_one_is_used_and_several_without_a_default_are_refused():
    assert default_template({"default": "a", "rag": "b"}, "m") == {"default": "a", "rag": "b"}
    assert default_template({"rag": "b"}, "m") == "b"
    assert default_template("a", "m") == "a" and default_template(None, "m") is None
    with pytest.raises(PreconditionError, match=r"2 chat templates, .* rag, tool_use.* --chat-template FILE"):
        default_template({"rag": "b", "tool_use": "c"}, "m")
