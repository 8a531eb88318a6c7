"""The judges, one per file: the Stage 2 policy itself, a reward model, and a server."""
