"""The command line `moe-probe`; each file of `commands/` is a command, imported when it is called."""

from __future__ import annotations

import ast
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from moe_probe.cli import commands
from moe_probe.errors import MachineError, MoEProbeError
from moe_probe.files import sigterm_as_interrupt
from moe_probe.shown import PlainConsole, printable

FUNCTION = "command"  # of a command's module; beside it `epilog()`, what follows its help


class Commands(Mapping[str, Any]):
    """The commands by name; a module is imported when its command is called."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    @cached_property
    def _paths(self) -> dict[str, Path]:
        folder = Path(commands.__path__[0])
        return {each.name: folder / f"{each.name}.py" for each in pkgutil.iter_modules([str(folder)])}

    def __getitem__(self, name: str) -> Any:
        if name not in self._paths:
            raise KeyError(name)
        if name not in self._made:
            module = import_module(f"{commands.__name__}.{name}")
            alone = typer.Typer(rich_markup_mode="markdown", add_completion=False)
            alone.command(name, cls=Command, epilog=getattr(module, "epilog", None))(getattr(module, FUNCTION))
            self._made[name] = typer.main.get_command(alone)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def listed(self) -> dict[str, typer.core.TyperCommand]:
        """The commands with only their help, read from the sources without importing them."""
        return {name: typer.core.TyperCommand(name, help=_help(path)) for name, path in self._paths.items()}


def _help(path: Path) -> str | None:
    functions = (node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef))
    return next((ast.get_docstring(node) for node in functions if node.name == FUNCTION), None)


class Command(typer.core.TyperCommand):
    """A command that makes its epilog only when it prints its help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As typer's."""
        if callable(self.epilog):
            self.epilog = self.epilog()
        super().format_help(ctx, formatter)


class Group(typer.core.TyperGroup):
    """The program: it lists its commands without importing them."""

    commands: Any

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.commands = Commands()

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As typer's."""
        with _listing(self):
            super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """As typer's."""
        with _listing(self):
            return super().shell_complete(ctx, incomplete)


@contextmanager
def _listing(group: Group) -> Iterator[None]:
    every = group.commands
    group.commands = every.listed()
    try:
        yield
    finally:
        group.commands = every


app = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version as version_of

        typer.echo(f"moe-probe {version_of('moe-probe')}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Analyze pretrained Mixture-of-Experts language models."""


def main() -> None:
    """Entry point; exits with one sentence and code 2 for bad input, 1 if the machine failed, 130 after Ctrl-C."""
    try:
        with sigterm_as_interrupt():
            app()
    except MachineError as error:
        _say(error)
        sys.exit(1)
    except MoEProbeError as error:
        _say(error)
        sys.exit(2)
    except (MemoryError, RuntimeError, ImportError) as error:
        if not is_of_memory(error):
            raise
        _say(
            "The memory of this machine is full; pass fewer --layers, smaller --batch-tokens, or --execution layerwise."
        )
        sys.exit(1)
    except OSError as error:
        _say(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def is_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, in any of torch's many messages or those of a failed import."""
    said = (
        "can't allocate memory",
        "not enough memory",
        "out of memory",
        "can't start new thread",
        "failed to map segment",
    )
    return isinstance(error, MemoryError) or any(text in str(error) for text in said)


def _say(error: object) -> None:
    """Prints one line; escapes foreign text in it, such as a file's name, so that it cannot control the terminal."""
    PlainConsole(stderr=True).print(f"moe-probe: {printable(error)}", style="red")
