"""The demo's judge. It recognises every sentence of the grammar, so its scores are right by construction.

It is only for --demo: anything outside the grammar scores 0.0, however good it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from engine.demo.grammar import Kind, Question, answers, questions, read_answer
from engine.models.chat import Conversation
from engine.pairs.judges.base import Comparison, ScorePair
from engine.pairs.judges.exam import Exam, ExamItem

SCORES: dict[Kind, float] = {
    "best": 1.0,
    "good": 0.9,
    "curt": 0.3,
    "careless": 0.2,
    "rude": 0.1,
    "astray": 0.0,
    "broken": 0.0,
}


class GrammarJudge:
    """Scores from 0.0 (not a sentence of the grammar) to 1.0 (a good answer with a tip)."""

    name = "demo"
    about = "the demo's grammar, right by construction; 0 (not in the grammar) to 1 (a good answer with a tip)"

    def score(self, comparisons: Sequence[Comparison]) -> list[ScorePair]:
        """Score both replies of each comparison."""
        grades = [
            self.grade(comparison.conversation, [comparison.first, comparison.second]) for comparison in comparisons
        ]
        return [ScorePair(first, second) for first, second in grades]

    def grade(self, conversation: Conversation, replies: Sequence[str]) -> list[float]:
        """One score per reply; higher is better."""
        return [SCORES[read_answer(conversation, reply)] for reply in replies]

    def own_exam(self) -> Exam:
        """An exam in sentences of the grammar, because the judge recognises no others. Passing it shows that the demo's parts fit
        together, and nothing about other texts.
        """
        return grammar_exam()

    def flawed(self, conversation: Conversation, reply: str) -> bool:
        """Whether the reply is not a good answer to the conversation's question."""
        return read_answer(conversation, reply) not in ("best", "good")


EXAM_QUESTIONS = 60
WORSE: tuple[Kind, ...] = ("careless", "curt", "rude")


def grammar_exam() -> Exam:
    """An exam of good answers against bad ones of each kind, and against good answers to other questions."""
    random, question_list = Random(0), questions(held_out=True)
    return Exam(
        "sentences of the demo's grammar, the only ones that it knows",
        "The answer should be kind, safe and useful.",
        tuple(_exam_item(random, question_list, number) for number in range(EXAM_QUESTIONS)),
    )


def _exam_item(random: Random, question_list: Sequence[Question], number: int) -> ExamItem:
    question = question_list[number % len(question_list)]
    other = next(other for other in question_list if (other.topic.id, other.word) != (question.topic.id, question.word))
    candidates = answers(question.topic, question.word)
    better = random.choice([answer.text for answer in candidates if answer.kind == "good"])
    kind = (*WORSE, "astray")[number % 4]
    other_answers = [answer.text for answer in answers(other.topic, other.word) if answer.kind == "good"]
    worse = random.choice([answer.text for answer in candidates if answer.kind == kind] or other_answers)
    return ExamItem(kind, question.core, better, worse)
