"""What people see: the wizard, `--auto`'s printer, and the command line."""

DISTRIBUTION = "stage3-tui"
