"""The commands, one file each, with `command`, whose docstring is its help, and `epilog()`, which gives an example."""
