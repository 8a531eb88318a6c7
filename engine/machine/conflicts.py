"""Conflicts between installed packages: listed for the packages that the run needs, only counted for the others."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

from engine import DISTRIBUTION
from engine.machine.requirements import canonical_name, fits

MAX_LISTED = 5


@dataclass(frozen=True)
class Conflicts:
    """Each conflict is a sentence without a full stop."""

    run_packages: tuple[str, ...] = ()
    """Conflicts of packages that the run needs, directly or through another package."""
    other_packages: tuple[str, ...] = ()
    """Conflicts of all other packages in this environment."""

    def __str__(self) -> str:
        more = f"; and {len(self.run_packages) - MAX_LISTED} more" if len(self.run_packages) > MAX_LISTED else ""
        listed = "; ".join(self.run_packages[:MAX_LISTED]) + more or "none between the packages of the run"
        return listed + (f"; {len(self.other_packages)} between other packages here" if self.other_packages else "")


def find_conflicts(needed: tuple[str, ...] = (DISTRIBUTION,)) -> Conflicts:
    """needed   the packages that the run requires; their dependencies are followed"""
    distributions: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        if distribution.name:  # Python imports the first one on the path
            distributions.setdefault(canonical_name(distribution.name), distribution)
    requirements = {name: _requirements(distribution) for name, distribution in distributions.items()}
    run_packages = _closure({canonical_name(name) for name in needed}, requirements)
    found: dict[bool, list[str]] = {True: [], False: []}
    for name, items in requirements.items():
        for item in items:
            if conflict := _conflict(distributions[name], item, distributions):
                found[name in run_packages].append(conflict)
    return Conflicts(tuple(sorted(set(found[True]))), tuple(sorted(set(found[False]))))


def _requirements(distribution: metadata.Distribution) -> list[Requirement | str]:
    """The requirements of a package without extras. An unreadable line is returned as text."""
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


def _closure(names: set[str], requirements: dict[str, list[Requirement | str]]) -> set[str]:
    """The packages and all that they require, directly or through others."""
    waiting, closed = list(names), set(names)
    while waiting:
        for item in requirements.get(waiting.pop(), ()):
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
