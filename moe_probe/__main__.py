"""`python -m moe_probe`: the command line."""

from moe_probe.cli import main

main()
