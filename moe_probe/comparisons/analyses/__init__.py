"""One file per comparison, with a function of its name."""
