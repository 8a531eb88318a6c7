"""Fixtures of the pictures."""

from tests.support.shots import still, wizard  # noqa: F401
