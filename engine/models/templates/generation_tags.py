"""The `{% generation %}` tags that transformers adds to Jinja."""

from __future__ import annotations

import re

_GENERATION = re.compile(r"{%-?\s*(?:end)?generation\s*-?%}")


def without_generation_tags(template: str) -> str:
    """The template without the tags, for plain Jinja, which does not support them."""
    return _GENERATION.sub("", template)
