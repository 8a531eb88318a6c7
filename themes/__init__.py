"""How it looks: one TOML a theme, and the loader."""

DISTRIBUTION = "stage3-tui"
