"""The commands, one file each: `command`, its help in the docstring, and an `epilog()` with an example."""
