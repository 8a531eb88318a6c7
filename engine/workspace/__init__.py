"""The parts of the first stage: what may be cloned, how git is run, what is in the way, and room on the disk."""

NAME = "workspace"
"""The stage that these parts speak for."""
