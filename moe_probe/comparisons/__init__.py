"""Several models or traces side by side, one file per comparison."""
