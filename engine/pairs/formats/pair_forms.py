"""The forms of pairs: each turns a row into a `Pair`. The better reply becomes the revision, the worse one the draft."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from engine.models.chat import Conversation
from engine.pairs.data.conversations import add_turn, before_the_answer, hh_transcript, transcript_turns
from engine.pairs.data.record import Pair
from engine.pairs.data.rendered import rendered_turns, without_end_marks
from engine.pairs.formats.form import Form, column, first_column
from engine.pairs.formats.native_form import native_pair
from engine.pairs.formats.nested_values import unwrapped
from engine.pairs.formats.prompt_forms import NO_PROMPT, prompt_beside_replies, with_system
from engine.pairs.formats.values import Row, check_text, id_of, messages_in, number_in, type_name

Reply = tuple[Conversation | None, str]
"""(the conversation before the reply, if the value contains it; the reply)."""

BETTER_WORSE_COLUMNS = (
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("chosen_answer", "rejected_answer"),
    ("preferred_output", "non_preferred_output"),
    ("preferred", "dispreferred"),
    ("preferred_response", "dispreferred_response"),
    ("better", "worse"),
    ("better_response", "worse_response"),
    ("response_j", "response_k"),
    ("positive", "negative"),
    ("accepted", "rejected"),
    ("winner", "loser"),
    ("good", "bad"),
    ("chosen_conversations", "rejected_conversations"),
    ("messages", "rejected_response"),
    ("messages", "rejected_messages"),
)
"""Column names of the better and the worse reply: `chosen_response` in Argilla, `preferred_output` in OpenAI's files,
`response_j` in stack-exchange-paired, `chosen_conversations` in torchtune, `messages` with the reply in ms-swift."""
SCORES_OF_TWO = tuple(
    names
    for word in ("score", "rating", "reward")
    for names in (
        (f"{word}_chosen", f"{word}_rejected"),
        (f"chosen_{word}", f"rejected_{word}"),
        (f"chosen-{word}", f"rejected-{word}"),
    )
)
ANSWERS = (
    "answers", "responses", "completions", "generations", "candidates", "outputs", "all_generated_responses", "output",
    "summaries",
)  # fmt: skip
TEXTS = ("answer", "response", "text", "completion", "content", "output", "value", "generation")
SCORES = ("overall_score", "score", "rating", "reward", "fine-grained_score", "pm_score")
LISTS_OF_SCORES = ("ratings", "rating", "scores", "score", "rewards", "overall_ratings", "rm_scores", "all_rm_scores")
RANKS = ("rank", "ranks", "ranking")
"""The best answer has the lowest rank."""


# -- two replies, the better one named ---------------------------------------------------------------------------------


def _two_named(row: Row) -> Pair:
    better, worse = _first_of(row, BETTER_WORSE_COLUMNS)
    return _with_own_scores(pair_of_replies(row, row[better], row[worse], better, worse), row)


def _first_of(row: Row, names: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The first of these column groups that the row has completely. Raises ValueError."""
    found = next((each for each in names if all(row.get(name) is not None for name in each)), None)
    if found is None:
        raise ValueError(f"it has no matching pair of replies, such as {' and '.join(names[0][:2])}")
    return found


def _chosen_rejected(row: Row) -> Pair:
    if row.get("chosen") is None and any(None not in map(row.get, names) for names in BETTER_WORSE_COLUMNS):
        return _two_named(row)  # `accepted`, or ms-swift's messages, beside `rejected`
    return _with_own_scores(pair_of_replies(row, row["chosen"], row["rejected"], "chosen", "rejected"), row)


def _with_own_scores(pair: Pair, row: Row) -> Pair:
    """The pair with the scores of its row, if they differ. If the better reply has the lower score, the gate counts it."""
    for names in SCORES_OF_TWO:
        try:
            better, worse = (number_in(row.get(name), name) for name in names)
        except (TypeError, ValueError):
            continue
        return replace(pair, revised_score=better, base_score=worse) if better != worse else pair
    return pair


def pair_of_replies(row: Row, better: Any, worse: Any, better_key: str, worse_key: str) -> Pair:
    """Make a pair of two replies, which may be texts, messages or transcripts. Raises TypeError, ValueError."""
    own, problem = _own_prompt(row)
    before_better, chosen = _reply(better, better_key, own is not None or problem is not None)
    before_worse, rejected = _reply(worse, worse_key, own is not None or problem is not None)
    before_better, before_worse = (
        before_better or before_worse,
        before_worse or before_better,
    )  # one may be a bare reply
    if before_better != before_worse:
        raise ValueError("chosen and rejected answer different conversations: they differ before the last turn")
    messages = _conversation(row, own, problem, before_better)
    return Pair(
        id=id_of(messages, chosen, rejected),
        prompt=messages[-1]["content"],
        messages=messages,
        base_response=rejected,
        revised_response=chosen,
    )


def _own_prompt(row: Row) -> tuple[Conversation | None, Exception | None]:
    """The prompt from its own columns, or why it is invalid, which does not matter if the replies contain the prompt."""
    try:
        return prompt_beside_replies(row), None
    except (KeyError, TypeError, ValueError) as error:
        return None, error


def _conversation(
    row: Row, own: Conversation | None, problem: Exception | None, before: Conversation | None
) -> Conversation:
    if before and before[0]["role"] == "user":
        return before_the_answer(with_system(row, before))
    if problem is not None:
        raise problem
    if own is None:
        raise ValueError(NO_PROMPT)
    turns: Conversation = [*own]
    for turn in before or ():
        add_turn(turns, turn["role"], turn["content"])
    return before_the_answer(turns)


def _reply(value: Any, key: str, has_own_prompt: bool) -> Reply:
    value = unwrapped(value, key)
    if isinstance(value, (list, dict)):
        return _reply_of_messages(value, key)
    if not isinstance(value, str):
        raise TypeError(f"{key} is {type_name(value)}, not a string")
    check_text(value, key)
    rendered = rendered_turns(value)
    if rendered is not None:
        return _reply_of_messages(rendered, key)
    value = without_end_marks(value)
    text = hh_transcript(value)
    if has_own_prompt and not text.startswith("\n\nHuman:"):
        # Keep the full text, so that the detectors see simulated turns.
        return None, value.strip()
    _, *replies = text.rpartition("\n\nHuman:")[2].split("\n\nAssistant:")
    if not replies:
        raise ValueError(f"there is no prompt, and {key} is not a transcript that ends with an assistant turn")
    turns = transcript_turns(text)
    before = turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns
    # Join consecutive turns of one speaker, as in conversations.
    return before or None, "\n\n".join(part.strip() for part in replies).strip()


def _reply_of_messages(value: Any, key: str) -> Reply:
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        raise TypeError(f"{key} is a list of {len(value)} texts, but a pair has one on each side")
    messages = messages_in(value, key)
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError(f"{key} does not end with an assistant message")
    before: Conversation = []
    for message in messages[:-1]:
        role = "assistant" if message["role"] == "assistant" else "user"
        if not before and role == "assistant":
            before.append(
                {"role": role, "content": message["content"].strip()}
            )  # continues a prompt that has its own column
        else:
            add_turn(before, role, message["content"].strip())
    return before or None, messages[-1]["content"]


# -- several replies, with ranks or scores -----------------------------------------------------------------------------


def _best_and_worst(row: Row, answers: list[Any], scores: list[float], key: str) -> Pair:
    """The best reply against the worst; among equals, the first."""
    if len(scores) < 2:
        raise ValueError(f"{len(scores)} of {key} have a rank or a score, but a pair needs two")
    best, worst = max(range(len(scores)), key=scores.__getitem__), min(range(len(scores)), key=scores.__getitem__)
    if scores[best] == scores[worst]:
        raise ValueError(f"all {key} have the same score: none is better")
    return pair_of_replies(row, answers[best], answers[worst], f"{key}[{best}]", f"{key}[{worst}]")


def _ranked(row: Row) -> Pair:
    """A list of objects, each with a text and a rank or a score. Objects with neither are left out."""
    key, answers = _answers(row)
    texts, scores = [], []
    for number, answer in enumerate(answers):
        if not isinstance(answer, dict):
            raise TypeError(f"{key}[{number}] is {type_name(answer)}, not an object with a text and a rank or a score")
        score = _score_of(answer, f"{key}[{number}]")
        if score is not None:
            texts.append(first_column(answer, TEXTS)[1])
            scores.append(score)
    return _best_and_worst(row, texts, scores, key)


def _score_of(answer: Row, where: str) -> float | None:
    for name in (*RANKS, *SCORES):
        if answer.get(name) is not None:
            number = number_in(answer[name], f"{name} of {where}")
            return -number if name in RANKS else number
    return None


def _rated(row: Row) -> Pair:
    """A list of texts and a parallel list of scores or ranks."""
    key, answers = _answers(row)
    name, values = first_column(row, (*LISTS_OF_SCORES, *RANKS))
    if not isinstance(values, list) or len(values) != len(answers):
        raise ValueError(f"{name} must be a list with one number for each of {key}")
    known = [
        number for number, value in enumerate(values) if value is not None and value == value
    ]  # a judge may have failed on some
    numbers = [number_in(values[number], f"{name}[{number}]") * (-1 if name in RANKS else 1) for number in known]
    return _best_and_worst(row, [answers[number] for number in known], numbers, key)


def _in_order(row: Row) -> Pair:
    """A list of texts, best first."""
    key, answers = _answers(row)
    if not all(isinstance(answer, (str, list)) for answer in answers):
        raise TypeError(f"{key} is not a list of replies, best first")
    return pair_of_replies(row, answers[0], answers[-1], f"{key}[0]", f"{key}[{len(answers) - 1}]")


def _answers(row: Row) -> tuple[str, list[Any]]:
    key, answers = next(
        ((name, row[name]) for name in ANSWERS if isinstance(row.get(name), list)), first_column(row, ANSWERS)
    )
    if not isinstance(answers, list):
        raise TypeError(f"{key} is {type_name(answers)}, not a list of replies")
    if len(answers) < 2:
        raise ValueError(f"{key} has {len(answers)} replies, but a pair needs two")
    return key, answers


# -- two replies, and which one is better ------------------------------------------------------------------------------

FIRST, SECOND = 1.0, -1.0


def _scored_two(row: Row) -> Pair:
    first, second, *names = _first_of(row, SCORED_TWO)
    scores = [number_in(row[name], name) for name in names]
    if scores[0] == scores[1]:
        raise ValueError(f"{names[0]} and {names[1]} are equal: neither reply is better")
    return _ordered(row, first, second, scores[0] - scores[1])


def _choice(first: str, second: str, choice: str, prefers: Callable[[Any], float]) -> Callable[[Row], Pair]:
    def read(row: Row) -> Pair:
        preferred = prefers(row[choice])
        if not preferred:
            raise ValueError(f"{choice} is {str(row[choice])[:40]!a}: neither reply is better")
        return _ordered(row, first, second, preferred)

    return read


def _ordered(row: Row, first: str, second: str, first_is_better: float) -> Pair:
    better, worse = (first, second) if first_is_better > 0 else (second, first)
    return pair_of_replies(row, row[better], row[worse], better, worse)


def _signed(value: Any) -> float:
    """HelpSteer: a negative value prefers the first reply, a positive one the second."""
    return -number_in(value, "the preference")


def _from_zero(value: Any) -> float:
    """Index of the better reply, 0 or 1."""
    return {0.0: FIRST, 1.0: SECOND}.get(number_in(value, "the choice"), 0.0)


def _from_one(value: Any) -> float:
    """Number of the better reply, 1 or 2."""
    return {1.0: FIRST, 2.0: SECOND}.get(number_in(value, "the choice"), 0.0)


def _is_first(value: Any) -> float:
    """SHP: 1 if the first reply is better."""
    return {1.0: FIRST, 0.0: SECOND}.get(number_in(value, "the label"), 0.0)


def _letter(value: Any) -> float:
    """`model_a`, `A`, `response_b`: the last word counts. A tie, or both bad, prefers neither."""
    words = str(value).strip().casefold().replace("_", " ").split()
    return {"a": FIRST, "b": SECOND}.get(words[-1] if words else "", 0.0)


_VERDICT = re.compile(r"\W*(?:model|response|answer|output|assistant)?[ _-]?([ab12])\W*", re.IGNORECASE)
_COMPARED = re.compile(r"\W*([ab])\s*(>+|<+)\s*[ab]\W*", re.IGNORECASE)
_VERDICTS = ("winner", "preference", "preferred", "label", "verdict", "choice", "comparison.selected")
_COMPARED_TWO = (
    ("response_1", "response_2"),
    ("response1", "response2"),
    ("response_a", "response_b"),
    ("answer_a", "answer_b"),
    ("answer_1", "answer_2"),
    ("answer1", "answer2"),
    ("output_1", "output_2"),
    ("output_a", "output_b"),
)


def _verdict_in_words(row: Row) -> Pair:
    first, second = _first_of(row, _COMPARED_TWO)
    name, verdict = first_column(row, _VERDICTS)
    return _ordered(row, first, second, _parse_verdict(name, verdict))


def _parse_verdict(name: str, value: Any) -> float:
    """`model_a`, `[[B]]`, `response_2`, `A>>B`, Label Studio's `left`. A bare number is refused: it may count from 0 or 1."""
    text = value.strip() if isinstance(value, str) else ""
    compared, verdict = _COMPARED.fullmatch(text), _VERDICT.fullmatch(text)
    if compared:
        return FIRST if (compared[1].casefold() == "a") == (compared[2][0] == ">") else SECOND
    if verdict and not text.isdigit():
        return FIRST if verdict[1].casefold() in "a1" else SECOND
    if text.casefold() in ("left", "right"):
        return FIRST if text.casefold() == "left" else SECOND
    raise ValueError(f"{name} is {str(value)[:40]!a}: it names neither reply as the better one")


def _one_hot(row: Row) -> Pair:
    wins = [number_in(row[name], name) for name in ("winner_model_a", "winner_model_b")]
    if wins[0] == wins[1]:
        raise ValueError("winner_model_a and winner_model_b are equal: neither reply is better")
    return _ordered(row, "response_a", "response_b", wins[0] - wins[1])


def _tree(row: Row) -> Pair:
    """The replies to the first prompt of a tree; what follows them is left out."""
    replies = column(row, "prompt.replies")
    if not isinstance(replies, list):
        raise TypeError(f"prompt.replies is {type_name(replies)}, not a list of replies")
    return _ranked({"prompt": row["prompt"].get("text"), "answers": replies})


CHOICES: tuple[tuple[str, str, str, str, Callable[[Any], float], str], ...] = (
    ("safe-rlhf", "response_0", "response_1", "better_response_id", _from_zero, "PKU-SafeRLHF"),
    ("helpsteer2", "response_1", "response_2", "preference_strength", _signed, "HelpSteer2"),
    ("helpsteer3", "response1", "response2", "overall_preference", _signed, "HelpSteer3"),
    ("shp", "human_ref_A", "human_ref_B", "labels", _is_first, "SHP"),
    ("arena", "conversation_a", "conversation_b", "winner", _letter, "LMSYS arena; a tie is left out"),
    ("arena-responses", "response_a", "response_b", "winner", _letter, "other arenas"),
    ("alpaca-eval", "output_1", "output_2", "preference", _from_one, "AlpacaEval"),
)
"""(form, first reply, second reply, choice column, how to read the choice, who uses it)."""
SCORED_TWO = (
    ("answer_0", "answer_1", "score_0", "score_1"),
    ("response_0", "response_1", "score_0", "score_1"),
    ("response_1", "response_2", "score_1", "score_2"),
    ("answer_1", "answer_2", "score_1", "score_2"),
    ("response_a", "response_b", "score_a", "score_b"),
    ("answer_a", "answer_b", "score_a", "score_b"),
)


def _summaries(row: Row) -> Pair:
    _, answers = _answers(row)
    number = number_in(row["choice"], "choice")
    if number not in (0.0, 1.0):
        raise ValueError("choice must be 0 or 1")
    texts = [first_column(answer, TEXTS)[1] if isinstance(answer, dict) else answer for answer in answers[:2]]
    return pair_of_replies(row, texts[int(number)], texts[1 - int(number)], "the chosen summary", "the other summary")


# -- labelled replies, one per row -------------------------------------------------------------------------------------


class NotPaired(ValueError):
    """A KTO row: one reply labelled good or bad, without a second one to compare it with."""


def _kto(row: Row) -> Pair:
    name, label = first_column(row, ("label", "kto_tag"))
    raise NotPaired(
        f"a KTO row: one reply with {name} ({str(label)[:40]}) and no second reply to compare; DPO trains on pairs"
    )


# -- the table ---------------------------------------------------------------------------------------------------------


def _columns(names: Sequence[tuple[str, ...]], position: int) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each[position] for each in names))


PAIR_FORMS: tuple[Form[Pair], ...] = (
    Form("draft-revision", (("base_response", "revised_response"),), native_pair, "this program, and the notebook"),
    Form(
        "chosen-rejected",
        (("chosen", "rejected"),),
        _chosen_rejected,
        "TRL, UltraFeedback, orca, hh-rlhf, LLaMA-Factory (ShareGPT and Alpaca): texts, messages or transcripts; the prompt in "
        "its own column (any form of prompt) or in front of both replies",
    ),
    Form(
        "better-worse",
        (_columns(BETTER_WORSE_COLUMNS, 0), _columns(BETTER_WORSE_COLUMNS, 1)),
        _two_named,
        "Argilla, OpenAI's preference files, stack-exchange-paired, torchtune, ms-swift",
    ),
    *(
        Form(name, ((first,), (second,), (choice,)), _choice(first, second, choice, prefers), who)
        for name, first, second, choice, prefers, who in CHOICES
    ),
    Form(
        "scored-two",
        tuple(_columns(SCORED_TWO, position) for position in range(4)),
        _scored_two,
        "WebGPT comparisons; equal scores are left out",
    ),
    Form(
        "verdict",
        (*(_columns(_COMPARED_TWO, position) for position in range(2)), _VERDICTS),
        _verdict_in_words,
        "JudgeBench, PPE, Label Studio: two replies, and which is better in words",
    ),
    Form(
        "arena-one-hot",
        (("response_a",), ("response_b",), ("winner_model_a",), ("winner_model_b",)),
        _one_hot,
        "LMSYS's competition on Kaggle",
    ),
    Form("tree", (("prompt.replies",),), _tree, "OpenAssistant's trees: best against worst reply to the first prompt"),
    Form("summaries", (("summaries",), ("choice",)), _summaries, "summarize_from_feedback"),
    Form(
        "rated",
        (ANSWERS, (*LISTS_OF_SCORES, *RANKS)),
        _rated,
        "distilabel, Argilla: a list of replies and a list of scores; best against worst",
    ),
    Form(
        "ranked",
        (tuple(name for name in ANSWERS if name != "output"),),
        _ranked,
        "Nectar, UltraFeedback: a list of replies, each with a rank or a score; best against worst",
    ),
    Form("alpaca-ranking", (("output",),), _in_order, "LLaMA-Factory: a list of replies, the better one first"),
    Form(
        "kto",
        (("label", "kto_tag"), ("completion", "response", "messages", "conversations", "prompt")),
        _kto,
        "TRL and LLaMA-Factory for KTO: refused, because rows are not paired",
        refuses=True,
    ),
)
