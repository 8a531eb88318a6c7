"""Installed packages that conflict: those that the run needs by name, the rest as a count."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

from engine import DISTRIBUTION
from engine.machine.requirements import canonical_name, fits

MAX_LISTED = 5


@dataclass(frozen=True)
class Conflicts:
    """Sentences without a full stop."""

    of_the_run: tuple[str, ...] = ()
    """Between packages that the run needs, directly or through another."""
    of_others: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = f"; and {len(self.of_the_run) - MAX_LISTED} more" if len(self.of_the_run) > MAX_LISTED else ""
        told = "; ".join(self.of_the_run[:MAX_LISTED]) + more or "none between the packages of the run"
        return told + (f"; {len(self.of_others)} between other packages here" if self.of_others else "")


def find_conflicts(needed: tuple[str, ...] = (DISTRIBUTION,)) -> Conflicts:
    """needed   the packages that the run requires; their dependencies are followed"""
    distributions: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        if distribution.name:  # the first on the path is imported
            distributions.setdefault(canonical_name(distribution.name), distribution)
    wants = {name: _requirements(distribution) for name, distribution in distributions.items()}
    of_the_run = _closure({canonical_name(name) for name in needed}, wants)
    found: dict[bool, list[str]] = {True: [], False: []}
    for name, lines in wants.items():
        for line in lines:
            if told := _conflict(distributions[name], line, distributions):
                found[name in of_the_run].append(told)
    return Conflicts(tuple(sorted(set(found[True]))), tuple(sorted(set(found[False]))))


def _requirements(distribution: metadata.Distribution) -> list[Requirement | str]:
    """The requirements of a package without extras; an unreadable line as it is."""
    found: list[Requirement | str] = []
    for line in distribution.requires or ():
        try:
            item = Requirement(line)
        except InvalidRequirement:
            found.append(line)
            continue
        if item.marker is None or item.marker.evaluate({"extra": ""}):
            found.append(item)
    return found


def _closure(names: set[str], wants: dict[str, list[Requirement | str]]) -> set[str]:
    waiting, closed = list(names), set(names)
    while waiting:
        for item in wants.get(waiting.pop(), ()):
            if isinstance(item, Requirement) and (name := canonical_name(item.name)) not in closed:
                closed.add(name)
                waiting.append(name)
    return closed


def _conflict(
    distribution: metadata.Distribution, item: Requirement | str, distributions: dict[str, metadata.Distribution]
) -> str:
    if isinstance(item, str):
        return f"{distribution.name} has an unreadable requirement: {item}"
    other = distributions.get(canonical_name(item.name))
    version = other.version if other is not None else None
    if version and fits(item, version):
        return ""
    return (
        f"{distribution.name} {distribution.version} needs {item.name}{item.specifier}, installed: {version or 'none'}"
    )
