"""Names of the gate's figures that screens use. They are separate because `gate` takes a tenth of a second to import."""

from __future__ import annotations

BETTER_BY_PEOPLE = "better_by_people"
"""The figure that stands in for a judge if none passes its exam."""
