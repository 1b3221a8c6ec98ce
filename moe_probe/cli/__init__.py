"""`moe-probe`: the analyses from the command line; one file per command, found by scanning this folder."""

from __future__ import annotations

import importlib
import pkgutil
import sys

from moe_probe.cli.common import app
from moe_probe.errors import MachineError, MoEProbeError
from moe_probe.files import sigterm_as_interrupt
from moe_probe.shown import PlainConsole, printable

for _command in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_command.name}")


def main() -> None:
    """Entry point: one sentence and exit code 2 for bad input, 1 where the machine failed, 130 after Ctrl-C."""
    try:
        with sigterm_as_interrupt():
            app()
    except MachineError as error:
        _say(error)
        sys.exit(1)
    except MoEProbeError as error:
        _say(error)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not is_of_memory(error):
            raise
        _say("The memory of this machine is full; take fewer layers, smaller batches, or --execution layerwise.")
        sys.exit(1)
    except OSError as error:
        _say(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def is_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch says so by a RuntimeError of many texts."""
    said = ("can't allocate memory", "not enough memory", "out of memory", "can't start new thread")
    return isinstance(error, MemoryError) or any(text in str(error) for text in said)


def _say(error: object) -> None:
    """Print one line; what others wrote in it, such as a file's name, cannot steer the terminal."""
    PlainConsole(stderr=True).print(f"moe-probe: {printable(error)}", style="red")
