"""The parts of stage workspace: which URLs may be cloned, how git is run, and what happens to a folder in the way."""

NAME = "workspace"
"""The name of the stage."""
