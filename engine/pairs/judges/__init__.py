"""The judges, one file each: the Stage 2 policy itself, a reward model, a server."""
