"""The themes, one TOML file each, and their loader."""

DISTRIBUTION = "stage3-tui"
