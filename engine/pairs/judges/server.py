"""--judge server: ask a model behind an OpenAI-compatible server the question of --judge self, in both orders.

If the server returns the log-probabilities of both letters, they are used. Otherwise (`transformers serve`, or only one letter
among the top tokens), the letter in the answer counts: 1, or 0.5 if the two orders disagree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.core.config import Stage3Config
from engine.core.errors import ConfigError, NetworkError, NumbersError
from engine.core.events import EventSink, discard_event
from engine.models.loading import load_tokenizer
from engine.models.server import errors as server_errors
from engine.models.server.api import ChatRequest, ChatResponse
from engine.models.server.backend import load_server_client
from engine.models.server.check import require_same_listing
from engine.models.server.client import ServerClient
from engine.models.server.errors import too_many_failed
from engine.models.server.roles import judge_server
from engine.models.templates.control_text import control_pattern, split_special_text
from engine.pairs.judges.base import SERVER_FAILED, Comparison, ScorePair, judge_name
from engine.pairs.judges.question import LETTERS, PrincipleSelector, both_orders, log_odds_of_second, probabilities
from engine.pairs.principles.constitution import load_constitution
from engine.run.stop import StopToken
from engine.security.sanitize import visible_line

ANSWER_TOKENS = 4
"""Enough for "(A)" and "**A**"; the score comes from the token with the letter."""
NEITHER_LETTER = "answered with neither letter"
TOP_LOGPROBS = 20
"""The maximum of OpenAI's API and of vLLM."""

# Matches "A", "(B)", "A.", "**B**", "A is better"; not "A good answer is", where it is an article.
_LETTER_REPLY = re.compile(r"""[\s(\[*"'`]*([AB])(?:[)\].:,;*"'`]|\s+is\b|\s*$)""")
MATCHES_NOTHING = re.compile(r"(?!)")
_AROUND_LETTER = " \t\n▁Ġ()[]*.:,\"'`"


def connect_server_judge(
    config: Stage3Config, stop: StopToken, emit: EventSink = discard_event, token: str | None = None
) -> ServerJudge:
    """Raises ConfigError if no server is configured, and what `load_server_client` raises."""
    server = judge_server(config)
    if server is None:
        raise ConfigError(
            "--judge server needs a server, and none is set.",
            "The judge needs the server's address and the name of a model on it.",
            "Set --judge-url and --judge-model, or --server-url and --server-model.",
        )
    client = load_server_client(config, server, stop, emit)
    principles = PrincipleSelector(load_constitution(config.constitution), config.seed)
    special = control_pattern(load_tokenizer(config, token))
    return ServerJudge(judge_name(config) or "", client, principles, special, max_failed_share=config.max_failed_share)


@dataclass(frozen=True)
class _Order:
    """The answer in one order: its letter, and the log-probabilities of A and B if both are known."""

    letter: str
    """Empty if the answer starts with neither letter; a guess would not be a score."""
    logps: tuple[float, float] | None


class ServerJudge:
    """A judge behind a server.

    special   matches texts that the server would read as special tokens. They are split with a space, so that a reply cannot
              end its turn.
    """

    def __init__(
        self,
        name: str,
        client: ServerClient,
        principles: PrincipleSelector,
        special: re.Pattern[str] = MATCHES_NOTHING,
        *,
        max_failed_share: float = 1.0,
    ) -> None:
        self.name = name
        self.about = (
            f"{client.model} at {client.where}, asked with a principle in both orders; scores are probabilities, 0 to 1"
        )
        self._client = client
        self._principles = principles
        self._special = special
        self._max_failed_share = max_failed_share
        self._asked = 0
        self._failed: list[str] = []
        """The server's messages for the comparisons on which it failed."""

    def score(self, comparisons: Sequence[Comparison]) -> list[ScorePair]:
        """Also raises ConfigError if several servers serve different models, and NetworkError if the server has failed on too many
        earlier comparisons.
        """
        if not self._asked:
            require_same_listing(self._client)
        self._require_few_failures()
        self._asked += len(comparisons)
        principles = [self._principles.select(comparison) for comparison in comparisons]
        questions = [
            ChatRequest(split_special_text(question, self._special), ANSWER_TOKENS, top_logprobs=TOP_LOGPROBS)
            for comparison, principle in zip(comparisons, principles, strict=True)
            for question in both_orders(comparison, principle)
        ]
        answers = self._client.send(questions)
        return [
            self._scores(comparison, principle.id, answers[2 * number], answers[2 * number + 1])
            for number, (comparison, principle) in enumerate(zip(comparisons, principles, strict=True))
        ]

    def _require_few_failures(self) -> None:
        failed = len(self._failed)
        if too_many_failed(failed, self._asked, self._max_failed_share):
            raise NetworkError(
                f"The judge's server failed on {failed} of {self._asked} comparisons and answered the others.",
                f"At most {self._max_failed_share:.0%} may fail (--max-failed-share). Last failure: {self._failed[-1]}",
                "Check the server's log. The same command sends these comparisons again and keeps the other scores.",
            )

    def _scores(self, comparison: Comparison, principle_id: str, *answers: ChatResponse) -> ScorePair:
        for answer in answers:
            if answer.too_long:
                return ScorePair(
                    None, None, {"not scored": "longer than the server's context", "server": answer.refused}
                )
            if answer.failed:
                self._failed.append(answer.refused)
                return ScorePair(None, None, {"not scored": SERVER_FAILED, "server": answer.refused})
            if answer.refused:
                raise server_errors.refused(self._client.address, self._client.model, answer.refused)
        first, second = (self._order(comparison, answer) for answer in answers)
        detail: dict[str, Any] = {"principle": principle_id, "letters": [first.letter, second.letter]}
        if not first.letter or not second.letter:
            reply = (answers[0] if not first.letter else answers[1]).text
            return ScorePair(None, None, {"not scored": NEITHER_LETTER, "said": visible_line(reply, 120), **detail})
        if first.logps is not None and second.logps is not None:
            orders = (first.logps, second.logps)
            detail["log_probabilities"] = [[round(value, 6) for value in order] for order in orders]
            detail["on_the_letters"] = round(sum(math.exp(value) for order in orders for value in order) / 2, 6)
            return ScorePair(*probabilities(log_odds_of_second(*orders)), detail)
        for_second = ((first.letter == "B") + (second.letter == "A")) / 2
        return ScorePair(1 - for_second, for_second, detail)

    def _order(self, comparison: Comparison, answer: ChatResponse) -> _Order:
        match = _LETTER_REPLY.match(answer.text)
        if match is None:
            return _Order("", None)
        logps = letter_logps(answer.choice)
        if logps is not None and not all(map(math.isfinite, logps)):
            raise NumbersError(
                f"The judge {self._client.model} gives A and B the log-probabilities {logps} (pair {comparison.id}).",
                "A score that is not a finite number decides nothing, and hides that the model is broken.",
                "Check the server's log, or use another model or another --judge.",
            )
        return _Order(match[1], logps)


def letter_logps(choice: Mapping[str, Any]) -> tuple[float, float] | None:
    """The log-probabilities of A and B, in nats, at the first token that is more than a bracket. The probabilities of tokens for
    the same letter ("A", " A", "(A") are added up. None if the server does not return both letters.
    """
    try:
        entries = (choice.get("logprobs") or {}).get("content") or []
        position = next((entry for entry in entries if entry["token"].strip(_AROUND_LETTER)), None)
        if position is None:
            return None
        logps = {str(e["token"]): float(e["logprob"]) for e in [*(position.get("top_logprobs") or []), position]}
    except (AttributeError, LookupError, TypeError, ValueError):
        return None  # an unknown format; the letter is used instead
    by_letter = [[logp for token, logp in logps.items() if token.strip(_AROUND_LETTER) == letter] for letter in LETTERS]
    return (_log_sum_exp(by_letter[0]), _log_sum_exp(by_letter[1])) if all(by_letter) else None


def _log_sum_exp(values: Sequence[float]) -> float:
    largest = max(values)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))
