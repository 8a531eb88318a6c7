"""Reads other people's files: any container (JSON, CSV, Parquet, …) as rows, any form of row as a prompt or a pair."""
