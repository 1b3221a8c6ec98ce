"""Recorded routing: Parquet files that replace a model in analyses."""
