"""The state of a run's servers, in one line of plain text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from engine.core.events import ServerReading, Servers
from engine.security.sanitize import visible_line

ROLES = {"server": "", "critic": "critic: ", "judge": "judge: "}


def servers_summary(servers: Mapping[str, Servers]) -> str:
    """How many are in use, the load they report, and why any are not in use; empty if there is nothing to show."""
    summaries = [(ROLES.get(role, ""), _summary(event.servers)) for role, event in servers.items()]
    return "   ".join(f"{role}{summary}" for role, summary in summaries if summary)


def any_unavailable(servers: Mapping[str, Servers]) -> bool:
    return any(one.state != "in" for event in servers.values() for one in event.servers)


def _summary(readings: tuple[ServerReading, ...]) -> str:
    in_use = [one for one in readings if one.state == "in"]
    count = f"{len(in_use)} of {len(readings)} servers" if len(readings) > 1 else ""
    return " · ".join(filter(None, (count, _load(in_use), *map(_why_unavailable, readings))))


def _load(in_use: Iterable[ServerReading]) -> str:
    """The total of running and waiting requests that the servers report, and the fullest cache."""
    loads = list(in_use)
    running, waiting = (_sum([getattr(one, name) for one in loads]) for name in ("running", "waiting"))
    cache = max((one.cache for one in loads if one.cache is not None), default=None)
    counts = {"running": running, "waiting": waiting}
    parts = [f"{count:.0f} {name}" for name, count in counts.items() if count is not None]
    return ", ".join([*parts, *([] if cache is None else [f"cache {cache:.0%}"])])


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if known else None


def _why_unavailable(one: ServerReading) -> str:
    if one.state == "in":
        return ""
    url = visible_line(one.url, 60)
    if one.state == "resting":
        return f"{url} is rate-limited"
    why = visible_line(one.why, 300).removeprefix(f"The server at {visible_line(one.url)} ").partition(". ")[0]
    return f"{url} {why.rstrip('.')}"
