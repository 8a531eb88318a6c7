"""Redact texts for a support archive: no tokens, paths, addresses, names, prompts or replies remain.

First, everything known to be private is removed: secrets by value and by shape, this machine's paths and names, hosts, and
every sequence of words that occurs in a prompt or a reply of the run. Then only words that the program's own source uses are
kept, which also removes what could not be known (a server's message inside an error, a colleague's name).
"""

from __future__ import annotations

import builtins
import functools
import getpass
import os
import re
import socket
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from engine.hub.references import is_local
from engine.packaging.scrubber import PATH_OPTIONS, PATH_VARIABLES
from engine.security.redaction import MASK, redact

ROOT = Path(__file__).parents[2]
PHRASE = 4
"""This many consecutive words of a prompt or a reply count as a quotation; of a shorter one, all its words."""
LONGEST_TEXT = 2_000
CUT = "[…]"
REMOVED = "[removed]"
PRIVATE_KEYS = frozenset(
    {"prompt", "messages", "base_response", "revised_response", "critic_notes", "critique", "chosen", "rejected",
     "stage2", "stage3", "samples", "shown", "examples", "answers", "answer", "draft", "revision", "reply", "account",
     "host", "source", "accept_quality", "accept_lookalikes", "push_to_hub"}
)  # fmt: skip
"""Keys whose values are written by models and people, or identify the user."""
VOCABULARY_FOLDERS = ("detectors", "principles", "demo")
"""Folders whose files list words of prompts and replies, and of other languages."""
TRACEBACK_WORDS = ("recent", "during", "handling", "above", "occurred", "direct", "following")
PUBLIC_HOSTS = (
    "huggingface.co",
    "hf.co",
    "github.com",
    "pypi.org",
    "download.pytorch.org",
    "astral.sh",
    "www.nvidia.com",
)

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s\"'<>\])}]+")
_IP = re.compile(r"(?<![\w.])(?:\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9a-fA-F]{0,4}:){3,7}[0-9a-fA-F]{0,4})(?![\w.])")
_LOGIN = re.compile(r"[\w.+-]+@[\w.-]+")
_INTERNAL = re.compile(
    r"(?<![\w.-])[\w-]+(?:\.[\w-]+)*\.(?:internal|intranet|corp|local|lan|home|localdomain)(?![\w-])", re.I
)
_PATH = re.compile(r"(?<![\w<\]])(?:~|\.{1,2})?(?:/[^\s\"'`:,;()\[\]{}<>]+)+/?")
_INSTALLED = re.compile(r".*?/(?:site-packages|dist-packages|lib/python3\.\d+)/")
_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d+[a-zA-Z]{0,3}|\d+e\d+|0x[0-9a-f]+")
_HASH = re.compile(r"(?=.*\d)[0-9a-f]{8,64}")
_CUTS = re.compile(rf"{re.escape(CUT)}(?:[\s/._-]*{re.escape(CUT)})+")


class SupportText:
    """Redacts texts, and counts in `removed` what it removed, by kind."""

    def __init__(
        self, run_folder: Path, config: Mapping[str, Any], phrases: Phrases, public: Iterable[str] = ()
    ) -> None:
        """`public`: texts whose words may be kept, such as the names of packages and of the GPU."""
        self.removed: Counter[str] = Counter()
        self._phrases = phrases
        self._run_folder = str(run_folder)
        self._paths = _known_paths(run_folder, config)
        self._names = _known_names(config)
        self._words = program_words() | _public_words(config) | {word for text in public for word in _words(text)}

    def data(self, value: Any, key: str = "") -> Any:
        """Plain data with every string redacted. Values under a private key are replaced as a whole."""
        if key in PRIVATE_KEYS and not isinstance(value, bool | int | float | None):
            self.removed["prompts and replies"] += bool(value)
            return REMOVED if value else value
        if isinstance(value, Mapping):
            return {self.text(str(name)): self.data(inner, str(name)) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.data(inner, key) for inner in value]
        return self.text(value) if isinstance(value, str) else value

    def text(self, text: str) -> str:
        clean = redact(text[:LONGEST_TEXT])
        self.removed["tokens"] += clean.count(MASK) - text[:LONGEST_TEXT].count(MASK)
        clean = self._without_phrases(clean)
        for pattern, replace in (
            (_URL, self._address),
            (_LOGIN, self._hide),
            (_IP, self._hide),
            (_INTERNAL, self._hide),
        ):
            clean = pattern.sub(replace, clean)
        clean = self._without_paths(clean)
        for name in self._names:
            clean, number = re.subn(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", CUT, clean, flags=re.IGNORECASE)
            self.removed["names of people and machines"] += number
        clean = _CUTS.sub(CUT, _WORD.sub(self._word, clean))
        return clean + (f" … {len(text) - LONGEST_TEXT} more characters" if len(text) > LONGEST_TEXT else "")

    def _without_phrases(self, text: str) -> str:
        spans = self._phrases.spans_in(text)
        self.removed["prompts and replies"] += len(spans)
        for start, end in reversed(spans):
            text = text[:start] + CUT + text[end:]
        return text

    def _address(self, match: re.Match[str]) -> str:
        try:
            host = urlsplit(match[0]).hostname or ""
        except ValueError:
            host = ""
        if host in PUBLIC_HOSTS:
            return f"{host} {CUT}"
        return self._hide(match)

    def _hide(self, match: re.Match[str]) -> str:
        self.removed["addresses"] += 1
        return CUT

    def _without_paths(self, text: str) -> str:
        text = text.replace(f"{ROOT}/", "").replace(self._run_folder, "RUN_DIR")
        for path in self._paths:
            text, number = re.subn(rf"(?<!\w){re.escape(path)}(?:/[^\s\"'`:,;()\[\]{{}}<>]*)?", CUT, text)
            self.removed["paths"] += number
        return _PATH.sub(self._path, text)

    def _path(self, match: re.Match[str]) -> str:
        code = _INSTALLED.match(match[0])
        if code and Path(match[0]).is_file():  # a file of an installed package
            name = match[0][code.end() :]
            self._words |= frozenset(_words(name))
            return name
        self.removed["paths"] += 1
        return CUT

    def _word(self, match: re.Match[str]) -> str:
        word = match[0]
        if _NUMBER.fullmatch(word) or _HASH.fullmatch(word) or self._is_known(word):
            return word
        self.removed["words that the program does not use"] += 1
        return CUT

    def _is_known(self, word: str) -> bool:
        folded = word.casefold()
        return folded in self._words or all(
            not part or part.isdecimal() or part in self._words for part in folded.split("_")
        )


class Phrases:
    """Sequences of words that occur in `shown` and in `private`. `private` is read once, and nothing of it is kept."""

    def __init__(self, shown: Iterable[str], private: Iterable[str]) -> None:
        wanted = {gram for text in shown for words in [_words(text)] for gram in _grams(words, range(2, PHRASE + 1))}
        self._found: set[tuple[str, ...]] = set()
        for text in private:
            words = _words(text)
            if len(words) >= 2:
                self._found |= wanted.intersection(
                    _grams(words, range(min(PHRASE, len(words)), min(PHRASE, len(words)) + 1))
                )

    def spans_in(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each such sequence, in order; adjacent and overlapping ones are merged."""
        if not self._found:
            return []
        words = [(match[0].casefold(), match.start(), match.end()) for match in _WORD.finditer(text)]
        spans: list[tuple[int, int]] = []
        for first in range(len(words)):
            for size in range(2, PHRASE + 1):
                if tuple(word for word, *_ in words[first : first + size]) not in self._found:
                    continue
                start, end = words[first][1], words[min(first + size, len(words)) - 1][2]
                if spans and start <= spans[-1][1]:
                    spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
                else:
                    spans.append((start, end))
        return spans


def private_texts(value: Any, *, private: bool = False) -> Iterator[str]:
    """Every string in plain data that is under a private key, at any depth."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from private_texts(inner, private=private or key in PRIVATE_KEYS)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from private_texts(inner, private=private)
    elif isinstance(value, str) and private:
        yield value


def texts(value: Any) -> Iterator[str]:
    """Every string in plain data, including keys."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


@functools.cache
def program_words() -> frozenset[str]:
    """The words of the program's own source and of Python's builtins and modules, case-folded."""
    words = {
        *TRACEBACK_WORDS,
        *map(str.casefold, (*dir(builtins), *sys.stdlib_module_names, *sys.builtin_module_names)),
    }
    for package in ("engine", "tui"):
        for path in (ROOT / package).rglob("*.py"):
            if path.parent.name in VOCABULARY_FOLDERS:
                continue
            words.update(word.casefold() for word in _WORD.findall(path.read_text(encoding="utf-8")))
    return frozenset({*words, *(part for word in words for part in word.split("_"))})


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _grams(words: list[str], sizes: range) -> Iterator[tuple[str, ...]]:
    for size in sizes:
        for first in range(len(words) - size + 1):
            yield tuple(words[first : first + size])


def _known_paths(run_folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Paths in options and environment variables, as written there; longer ones first."""
    options = [str(config[name]) for name in (*PATH_OPTIONS, "output_dir") if config.get(name)]
    paths = {path for path in options if is_local(path) and "://" not in path}
    paths |= {os.environ[name] for name in PATH_VARIABLES if os.environ.get(name)}
    paths |= {str(run_folder), str(run_folder.parent)}
    return sorted((path.rstrip("/") for path in paths if len(path.strip("/.")) >= 3), key=len, reverse=True)


def _known_names(config: Mapping[str, Any]) -> list[str]:
    """Names of the user, of this machine, and of hosts in options and variables, in full and up to the first dot."""
    names = {socket.gethostname(), Path.home().name}
    try:
        names.add(getpass.getuser())
    except (KeyError, OSError):
        names.discard("")
    addresses = [str(value) for value in config.values() if isinstance(value, str) and "://" in value]
    addresses += [value for name, value in os.environ.items() if name.lower().endswith(("_proxy", "endpoint"))]
    for address in addresses:
        try:
            host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
        except ValueError:
            continue  # it has no valid host
        if host not in PUBLIC_HOSTS:
            names.add(host)
    labels = {name.partition(".")[0] for name in names}
    common = {"", "root", "user", "admin", "localhost", "127", "ubuntu"}
    return sorted((names | labels) - common, key=len, reverse=True)


def _public_words(config: Mapping[str, Any]) -> frozenset[str]:
    """The words in the names of models and datasets on the Hub, without which a report cannot be understood."""
    names = [str(config[name]) for name in ("base_model_id", "dataset", "reward_model_id") if config.get(name)]
    return frozenset(word for name in names if not is_local(name) for word in _words(name))
