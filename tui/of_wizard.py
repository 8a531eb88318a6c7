"""The application, as the screens and widgets on it ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual.dom import DOMNode

if TYPE_CHECKING:
    from tui.app import Wizard


def wizard_of(node: DOMNode) -> Wizard:
    """The wizard that a screen or a widget is part of."""
    return cast("Wizard", node.app)
