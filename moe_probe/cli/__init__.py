"""`moe-probe`: the analyses from the command line; one file per command, found by scanning this folder."""

from __future__ import annotations

import importlib
import pkgutil
import sys

from rich.console import Console

from moe_probe.cli.common import app
from moe_probe.errors import MoEProbeError

for _command in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_command.name}")


def main() -> None:
    """Entry point: one sentence and exit code 2 for bad input, 1 for a full or closed disk, 130 after Ctrl-C."""
    try:
        app()
    except MoEProbeError as error:
        Console(stderr=True).print(f"moe-probe: {error}", style="red", highlight=False, markup=False)
        sys.exit(2)
    except OSError as error:
        Console(stderr=True).print(f"moe-probe: {error}", style="red", highlight=False, markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
