"""How the servers of a run are, in one line of plain text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from engine.core.events import ServerReading, Servers
from engine.security.sanitize import visible_line

ROLES = {"server": "", "critic": "critic: ", "judge": "judge: "}


def servers_words(servers: Mapping[str, Servers]) -> str:
    """How many are asked, how busy they say they are, and why one is left out; empty if there is nothing to tell."""
    told = [(ROLES.get(role, ""), _words(event.servers)) for role, event in servers.items()]
    return "   ".join(f"{role}{words}" for role, words in told if words)


def is_anyone_out(servers: Mapping[str, Servers]) -> bool:
    return any(one.state != "in" for event in servers.values() for one in event.servers)


def _words(readings: tuple[ServerReading, ...]) -> str:
    inside = [one for one in readings if one.state == "in"]
    count = f"{len(inside)} of {len(readings)} servers" if len(readings) > 1 else ""
    return " · ".join(filter(None, (count, _load(inside), *map(_absence, readings))))


def _load(inside: Iterable[ServerReading]) -> str:
    """Requests that run and wait on all of them, by their own count, and the fullest cache."""
    loads = list(inside)
    running, waiting = (_sum([getattr(one, name) for one in loads]) for name in ("running", "waiting"))
    cache = max((one.cache for one in loads if one.cache is not None), default=None)
    parts = {"running": running, "waiting": waiting}
    told = [f"{value:.0f} {word}" for word, value in parts.items() if value is not None]
    return ", ".join([*told, *([] if cache is None else [f"cache {cache:.0%}"])])


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if known else None


def _absence(one: ServerReading) -> str:
    if one.state == "in":
        return ""
    url = visible_line(one.url, 60)
    if one.state == "resting":
        return f"{url} rests"
    why = visible_line(one.why, 300).removeprefix(f"The server at {visible_line(one.url)} ").partition(". ")[0]
    return f"{url} {why.rstrip('.')}"
