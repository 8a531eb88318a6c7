"""The language of the demo: household questions, good and bad answers to them, critiques and revisions.

A model of half a million parameters can learn all of it, so the demo drafts, criticises and revises in readable English. The
sentences are in topics.yaml. For any question outside the grammar the model writes nonsense, and the judge scores it 0.0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Literal

import yaml

from engine.pairs.generation.dialogue import Conversation, revision_prompt
from engine.pairs.principles.constitution import Constitution, Principle

SOURCE = Path(__file__).with_name("topics.yaml")

Kind = Literal["best", "good", "careless", "curt", "rude", "astray", "broken"]
"""The kinds of answers, in this order: good with a tip, good, careless, short and unhelpful, rude and careless, an answer to
another question, and not in the grammar at all."""

Mix = Mapping[Kind, float]
"""Weights of the kinds of drafts."""

BASE_MIX: Mix = {"careless": 0.30, "rude": 0.10, "curt": 0.20, "good": 0.40}
STAGE2_MIX: Mix = {"careless": 0.53, "rude": 0.15, "curt": 0.20, "good": 0.12}
"""Helpful in form but mostly careless, so that there is something to improve."""

HELD_OUT_SHARE = 0.15
GREETED_SHARE = 1 / 3


@dataclass(frozen=True)
class Fault:
    """A careless answer, and the parts of a critique of it."""

    text: str
    fault: str
    tells: str
    why: str

    @property
    def finding(self) -> tuple[str, str, str]:
        return self.fault, self.tells, self.why


@dataclass(frozen=True)
class Advice:
    """A good answer, and how a critique asks for it."""

    text: str
    should: str


@dataclass(frozen=True)
class Topic:
    """The sentences about one topic. Each contains the topic's word as `{x}`, so that an answer can be matched to its question."""

    id: str
    words: tuple[str, ...]
    questions: tuple[str, ...]
    careless: tuple[Fault, ...]
    curt: tuple[str, ...]
    good: tuple[Advice, ...]
    tip: Advice


@dataclass(frozen=True)
class Grammar:
    topics: tuple[Topic, ...]
    greetings: tuple[tuple[str, str], ...]
    contexts: tuple[str, ...]
    rude: tuple[str, ...]
    principles: tuple[dict[str, str], ...]
    """Written to constitution.yaml, where the program reads them."""


@dataclass(frozen=True)
class Question:
    topic: Topic
    template: str
    word: str
    context: str = ""

    @property
    def core(self) -> str:
        """The question without its context. It decides between train and test."""
        return self.template.format(x=self.word)

    @property
    def text(self) -> str:
        return f"{self.context} {self.core}" if self.context else self.core

    @property
    def held_out(self) -> bool:
        """Whether the question is in the test set, decided by its hash, so that no list is needed."""
        return int(hashlib.sha256(self.core.encode()).hexdigest()[:8], 16) / 2**32 < HELD_OUT_SHARE


@dataclass(frozen=True)
class Answer:
    kind: Kind
    text: str
    topic: Topic
    word: str
    careless: Fault | None = None


@cache
def grammar() -> Grammar:
    data = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))
    return Grammar(
        topics=tuple(_topic(entry) for entry in data["topics"]),
        greetings=tuple((hello, reply) for hello, reply in data["greetings"]),
        contexts=tuple(data["contexts"]),
        rude=tuple(data["rude"]),
        principles=tuple(data["principles"]),
    )


def questions(*, held_out: bool) -> list[Question]:
    """All questions of train or of test, without context, in a fixed order."""
    all_questions = [
        Question(t, template, word) for t in grammar().topics for template in t.questions for word in t.words
    ]
    return [q for q in all_questions if q.held_out == held_out]


def draw_prompt(random: Random, question: Question) -> Conversation:
    """A conversation that ends with the question, usually with a context, and in a third of cases after a greeting."""
    context = random.choice(["", *grammar().contexts])
    in_context = Question(question.topic, question.template, question.word, context)
    prompt: Conversation = []
    if random.random() < GREETED_SHARE:
        hello, reply = random.choice(grammar().greetings)
        prompt = [{"role": "user", "content": hello}, {"role": "assistant", "content": reply}]
    return [*prompt, {"role": "user", "content": in_context.text}]


def draw_answer(random: Random, question: Question, mix: Mix) -> Answer:
    kind = random.choices(list(mix), weights=list(mix.values()))[0]
    return random.choice([a for a in answers(question.topic, question.word) if a.kind == kind])


def criticise(answer: Answer, principle: Principle, advice: Advice) -> tuple[str, str]:
    """A critique of `answer` that asks for `advice`, and the revision that follows it.

    If the answer is already good, the topic's tip is added instead, so that no revision equals its draft.
    """
    topic, word = answer.topic, answer.word
    if answer.kind == "good":
        critique = f"The response is kind and sound already. It could also {topic.tip.should}."
        revision = f"{answer.text} {topic.tip.text}"
    elif answer.careless is None:
        critique = f"The response is curt and leaves the user alone. It should be friendly and {advice.should}."
        revision = advice.text.format(x=word)
    else:
        rude = answer.kind == "rude"
        fault, tells, why = (part.format(x=word) for part in answer.careless.finding)
        critique = (
            f"The response is {'rude and ' if rude else ''}{fault}. It tells the user to {tells}, which {why}. "
            f"It should {'be kind and ' if rude else ''}{advice.should}."
        )
        revision = advice.text.format(x=word)
    return f"On {principle.id}: {critique}", revision


def draw_conversation(random: Random, question: Question, constitution: Constitution, mix: Mix) -> Conversation:
    """A complete conversation as the program conducts it: question, draft, critique, revision."""
    prompt = draw_prompt(random, question)
    answer = draw_answer(random, question, mix)
    principle = constitution.draw(random)
    critique, revision = criticise(answer, principle, random.choice(answer.topic.good))
    # The revision's prompt starts with the critique's, so one sequence trains all three generations.
    return [
        *revision_prompt(prompt, answer.text, critique, principle),
        {"role": "assistant", "content": revision},
    ]


def answers(topic: Topic, word: str) -> list[Answer]:
    """All answers in the grammar to a question about `word`."""
    good = [Answer("good", a.text.format(x=word), topic, word) for a in topic.good]
    best = [Answer("best", f"{a.text} {topic.tip.text}", topic, word) for a in good]
    careless = [Answer("careless", f.text.format(x=word), topic, word, f) for f in topic.careless]
    rude = [Answer("rude", f"{r} {a.text}", topic, word, a.careless) for r in grammar().rude for a in careless]
    curt = [Answer("curt", text.format(x=word), topic, word) for text in topic.curt]
    return [*good, *best, *careless, *rude, *curt]


def read_question(conversation: Conversation) -> Question | None:
    """The conversation's last question; None if it is not in the grammar."""
    text = conversation[-1]["content"].strip() if conversation else ""
    context = next((c for c in grammar().contexts if text.startswith(f"{c} ")), "")
    found = _questions().get(text.removeprefix(context).strip())
    return found and Question(found.topic, found.template, found.word, context)


def read_answer(conversation: Conversation, reply: str) -> Kind:
    """The kind of answer that `reply` is to the conversation's question. Never raises; anything unknown is "broken"."""
    answer = _answers().get(" ".join(reply.split()))
    if answer is None:
        return "broken"
    question = read_question(conversation)
    if question is None or (question.topic.id, question.word) != (answer.topic.id, answer.word):
        return "astray"
    return answer.kind


@cache
def _questions() -> dict[str, Question]:
    return {q.core: q for held_out in (False, True) for q in questions(held_out=held_out)}


@cache
def _answers() -> dict[str, Answer]:
    return {a.text: a for t in grammar().topics for word in t.words for a in answers(t, word)}


def _topic(entry: dict[str, Any]) -> Topic:
    return Topic(
        id=entry["id"],
        words=tuple(entry["words"]),
        questions=tuple(entry["questions"]),
        careless=tuple(Fault(**fault) for fault in entry["careless"]),
        curt=tuple(entry["curt"]),
        good=tuple(Advice(**advice) for advice in entry["good"]),
        tip=Advice(**entry["tip"]),
    )
