"""One file per dynamic analysis, named like it."""
