"""Read training pairs, tokenize them and measure their length. None is truncated, and every omitted pair is reported."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from engine.core.errors import DataError
from engine.models.chat import ChatMessage, Conversation
from engine.models.chat_template import conversation_ids, reply_ids
from engine.models.templates.control_text import control_pattern
from engine.storage.jsonl import BadLine, read_jsonl
from engine.storage.lazy import JsonLines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REBUILD = "Run `stage3-tui --auto --from quality` to write it again from pairs/pairs.jsonl."


class Row(TypedDict):
    """One line of `dpo_dataset/*.jsonl`, in a format that TRL reads directly."""

    prompt: Conversation
    chosen: list[ChatMessage]
    rejected: list[ChatMessage]


@dataclass(frozen=True)
class EncodedPair:
    """One pair as token ids; both replies end with the template's end of turn."""

    index: int
    """Index of its row in the file, from 0."""
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def tokens_read(self) -> int:
        """Tokens of the prompt, which is read once, and of both replies."""
        return len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longer reply."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


def load_rows(path: Path) -> Sequence[Row]:
    """The rows of a file in TRL's conversational format, each read on access. Raises DataError for the first bad line."""
    if not path.is_file():
        raise DataError(f"{path} does not exist.", "Stage quality writes it.", REBUILD)
    numbers = array("Q")
    for number, record in read_jsonl(path, last_line_may_lack_newline=True):
        problem = record.reason if isinstance(record, BadLine) else _problem(record)
        if problem:
            raise DataError(f"Line {number + 1} of {path} is not a pair.", problem, REBUILD)
        numbers.append(number)
    return JsonLines(path, numbers)  # type: ignore[return-value]


def encode_rows(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase) -> list[EncodedPair]:
    """Encode rows with the model's chat template; special tokens in messages remain plain text.

    Raises PreconditionError if the template cannot be used for training, DataError if a pair's replies have the same ids.
    """
    return list(encoded(rows, tokenizer))


def encoded(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase) -> Iterator[EncodedPair]:
    """Like `encode_rows`, but one pair at a time."""
    for index, row in enumerate(rows):
        pair = encode_row(row, tokenizer, index)
        _require_different_replies(pair, tokenizer)
        yield pair


def encode_row(row: Row, tokenizer: PreTrainedTokenizerBase, index: int = 0) -> EncodedPair:
    """Encode one row, whose replies may be the same. Raises PreconditionError if the template cannot be used for training."""
    prompt = conversation_ids(tokenizer, row["prompt"], add_generation_prompt=True)
    chosen, rejected = (reply_ids(tokenizer, row["prompt"], reply) for reply in (row["chosen"], row["rejected"]))
    return EncodedPair(index, prompt, chosen, rejected)


def _require_different_replies(pair: EncodedPair, tokenizer: PreTrainedTokenizerBase) -> None:
    if pair.chosen_ids == pair.rejected_ids:
        raise DataError(
            f"The two replies of row {pair.index} have the same tokens.",
            f"They differ only in what the chat template of {tokenizer.name_or_path} drops (whitespace at the ends).",
            "Reject the pair in stage quality, or edit the file.",
        )


def measure_lengths(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of each row's prompt and longer reply."""
    return [pair.length for pair in encoded(rows, tokenizer)]


def split_by_length(pairs: Sequence[EncodedPair], max_length: int) -> tuple[list[EncodedPair], list[EncodedPair]]:
    """(pairs that fit `max_length` tokens, pairs that do not)."""
    return [p for p in pairs if p.length <= max_length], [p for p in pairs if p.length > max_length]


class HasLength(Protocol):
    @property
    def index(self) -> int: ...
    @property
    def length(self) -> int: ...


@dataclass(frozen=True)
class LongPair:
    """A pair that is too long, without its token ids."""

    index: int
    length: int


def drop_long_pairs(pairs: Iterable[EncodedPair], max_length: int, too_long: list[LongPair]) -> Iterator[EncodedPair]:
    """Yield the pairs that fit `max_length` tokens; add the others to `too_long`."""
    for pair in pairs:
        if pair.length <= max_length:
            yield pair
        else:
            too_long.append(LongPair(pair.index, pair.length))


def require_most_pairs_fit(too_long: Sequence[HasLength], total: int, max_length: int, max_share: float) -> None:
    """Raises DataError if more than `max_share` of the pairs are too long, or none is left."""
    if not total:
        raise DataError("There are no pairs to train on.", "The training file is empty.", REBUILD)
    share = len(too_long) / total
    if share > max_share or len(too_long) == total:
        raise DataError(
            f"{len(too_long)} of {total} pairs ({share:.1%}) exceed --max-length {max_length}: {describe(too_long)}.",
            f"The limit is --max-too-long-share {max_share:.1%}.",
            f"Use --max-length {max(pair.length for pair in too_long)} if memory allows, or raise --max-too-long-share.",
        )


def describe(pairs: Sequence[HasLength], limit: int = 8) -> str:
    """`row 3 (1,210 tokens), row 17 (…), and 4 more`."""
    named = ", ".join(f"row {pair.index} ({pair.length:,} tokens)" for pair in pairs[:limit])
    return named + (f", and {len(pairs) - limit} more" if len(pairs) > limit else "")


def rows_with_special_text(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Indices of rows whose messages contain the text of a special token."""
    special = control_pattern(tokenizer)
    return [i for i, row in enumerate(rows) if any(special.search(m["content"]) for m in _messages(row))]


def _messages(row: Row) -> list[ChatMessage]:
    return [*row["prompt"], *row["chosen"], *row["rejected"]]


def _problem(record: dict[str, Any]) -> str:
    """Why `record` is not a Row; empty if it is one."""
    for key in ("prompt", "chosen", "rejected"):
        messages = record.get(key)
        if not isinstance(messages, list) or not messages:
            return f"{key!r} is not a list of messages."
        for message in messages:
            if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
                return f"A message in {key!r} has no role and content."
    if not record["chosen"][0]["content"].strip() or not record["rejected"][0]["content"].strip():
        return "A reply is empty."
    if record["chosen"] == record["rejected"]:
        return "Both replies are identical, so the pair teaches nothing."
    return ""
