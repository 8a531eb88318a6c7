"""Reads other people's files: any container (JSON, CSV, Parquet, …) as rows, any kind of row as a prompt or a pair."""
