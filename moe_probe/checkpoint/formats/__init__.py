"""Formats of published checkpoints, one file each."""
