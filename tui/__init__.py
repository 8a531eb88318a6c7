"""The user interface: the wizard, the printer of `--auto`, and the command line."""

DISTRIBUTION = "stage3-tui"
