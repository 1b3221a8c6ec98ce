"""Run the pages' code: every ```python, ```pycon and ```console block of a page, in order, in a folder of its own.

`python docs/examples.py [PAGE...]` runs pages, all by default, and keeps the pictures that they write in docs/figures.
"""

from __future__ import annotations

import argparse
import doctest
import os
import re
import shlex
import shutil
import tempfile
import time
from contextlib import chdir
from pathlib import Path

from typer.testing import CliRunner

from moe_probe.cli import app

DOCS = Path(__file__).parent
ROOT = DOCS.parent
BLOCK = re.compile(r"^```(python|pycon|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CHECKS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def pages() -> list[Path]:
    """Every page, the README first."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def prepare(folder: Path) -> None:
    """Put into an empty folder what the examples read."""
    (folder / "ckpt").symlink_to(ROOT / "ckpt")
    shutil.copy(ROOT / "ckpt" / "texts.jsonl", folder / "wiki.txt")


def run_page(page: Path, folder: Path) -> None:
    """Run a page's blocks in an empty folder; what fails names its line.

    All blocks of Python share one namespace.

    Raises:
        RuntimeError: a command failed, or a statement gave something else than the page says.
        Exception: whatever the page's code raises.
    """
    prepare(folder)
    text, names = page.read_text(encoding="utf-8"), {"__name__": "__main__"}
    with chdir(folder):
        for block in BLOCK.finditer(text):
            kind, code = block.groups()
            line = text[: block.start(2)].count("\n")
            if kind == "python":
                exec(compile("\n" * line + code, str(page), "exec"), names)
            elif kind == "pycon":
                _check(code, names, page, line)
            else:
                for command in filter(None, code.splitlines()):
                    _command(command, page)


def _check(code: str, names: dict, page: Path, line: int) -> None:
    found: list[str] = []
    session = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line)
    doctest.DocTestRunner(optionflags=CHECKS).run(session, out=found.append, clear_globs=False)
    names |= session.globs
    if found:
        raise RuntimeError("".join(found))


def _command(command: str, page: Path) -> None:
    program, *arguments = shlex.split(command)
    done = CliRunner().invoke(app, arguments)
    if program != "moe-probe" or done.exit_code != 0:
        raise RuntimeError(f"{page}: {command}\n{done.output}{done.exception!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, help="all by default")
    for page in [path.resolve() for path in parser.parse_args().pages] or pages():
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            run_page(page, Path(scratch))
            for picture in Path(scratch).glob("*.png"):
                shutil.copy(picture, DOCS / "figures")
        print(f"{os.path.relpath(page, ROOT)}: {time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    main()
