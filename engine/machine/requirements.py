"""The Python packages that the run needs, from stage3-tui's own metadata, and what is installed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from engine import DISTRIBUTION
from engine.core.config import Stage3Config
from engine.machine.optimizers import uses_bitsandbytes


@dataclass(frozen=True)
class Extra:
    """An extra of stage3-tui and the option that needs it."""

    name: str
    option: str
    is_requested: Callable[[Stage3Config], bool]
    imports: tuple[str, str]
    """A module and a name in it that the run uses."""


EXTRAS = (
    Extra("bitsandbytes", "--load-in-4bit", lambda config: config.load_in_4bit, ("bitsandbytes.nn", "Linear4bit")),
    Extra("bitsandbytes", "--optim", uses_bitsandbytes, ("bitsandbytes.optim", "AdamW")),
    Extra(
        "tensorboard",
        "--report-to tensorboard",
        lambda config: config.report_to == "tensorboard",
        ("torch.utils.tensorboard", "SummaryWriter"),
    ),
)


def required_extras(config: Stage3Config) -> list[Extra]:
    """The extras that the configuration needs."""
    return [extra for extra in EXTRAS if extra.is_requested(config)]


@dataclass(frozen=True)
class PackageStatus:
    """One requirement and the installed version."""

    requirement: Requirement
    version: str | None
    """The installed version; None if it is not installed."""
    needed_for: str = ""
    """The option that needs it; empty if every run needs it."""

    @property
    def ok(self) -> bool:
        return self.version is not None and fits(self.requirement, self.version)

    @property
    def specification(self) -> str:
        """The requirement in the form that installers accept: `transformers[serving]>=5.10`."""
        extras = f"[{','.join(sorted(self.requirement.extras))}]" if self.requirement.extras else ""
        return f"{self.requirement.name}{extras}{self.requirement.specifier}"


def required_packages(config: Stage3Config) -> list[PackageStatus] | None:
    """All requirements of this run on this Python; None if they are unknown because stage3-tui itself is not installed."""
    try:
        needed = requirements_of(DISTRIBUTION, "")
    except metadata.PackageNotFoundError:
        return None
    found = [PackageStatus(item, installed_version(item.name)) for item in needed]
    for extra in required_extras(config):
        known = [status.requirement for status in found]
        more = [item for item in requirements_of(DISTRIBUTION, extra.name) if item not in known]
        found += [PackageStatus(item, installed_version(item.name), extra.option) for item in more]
    return found


def recheck(items: Iterable[PackageStatus]) -> list[PackageStatus]:
    """The same requirements, checked again."""
    return [
        PackageStatus(item.requirement, installed_version(item.requirement.name), item.needed_for) for item in items
    ]


def requirements_of(distribution: str, extra: str) -> list[Requirement]:
    """The requirements of a package on this Python, with one of its extras, or with none for "". Skips unreadable lines."""
    found = []
    for line in metadata.requires(distribution) or ():
        try:
            item = Requirement(line)
        except InvalidRequirement:
            continue
        if item.marker is None or item.marker.evaluate({"extra": extra}):
            found.append(item)
    return found


def supported_python() -> SpecifierSet | None:
    """The Python versions that stage3-tui's metadata allows; None if it does not restrict them."""
    try:
        fields = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None
    return SpecifierSet(fields["Requires-Python"]) if "Requires-Python" in fields else None


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name) or None
    except metadata.PackageNotFoundError:
        return None


def fits(requirement: Requirement, version: str) -> bool:
    """Whether a version meets a requirement. Pre-releases count, because they are only installed on purpose."""
    try:
        return requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return False


def canonical_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
