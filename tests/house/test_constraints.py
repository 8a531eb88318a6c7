"""constraints.txt pins the versions that `make demo` and `make test` install."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINNED = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def test_every_line_is_a_name_with_a_public_version_and_no_address():
    for line in LINES:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line), line


REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(text for extra in ("dev", "server", "docs", "examples") for text in EXTRAS[extra]),
]


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_every_requirement_is_pinned_to_a_version_that_pyproject_allows(text: str):
    requirement = Requirement(text)
    assert PINNED[canonicalize_name(requirement.name)] in requirement.specifier


def test_every_requirement_has_an_oldest_version():
    """`make test-oldest` installs it; without a floor, that would be the first version ever published."""
    for text in [*PROJECT["dependencies"], *EXTRAS["dev"]]:
        assert ">=" in text, text
