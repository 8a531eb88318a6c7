"""What happens. Imports no textual and no rich, and nothing heavy before a stage needs it."""

__version__ = "0.1.0"

DISTRIBUTION = "stage3-tui"
