"""Recorded routing: Parquet files that take the place of a model."""
