"""Run the pages' code: every ```python, ```pycon and ```console block of a page, in order, in a folder of its own.

`python docs/examples.py [PAGE...]` runs pages, all by default, and keeps the pictures that they write in docs/figures.
"""

from __future__ import annotations

import argparse
import doctest
import re
import shlex
import shutil
import tempfile
import time
from contextlib import chdir
from pathlib import Path

import generated
from typer.testing import CliRunner

from moe_probe.cli import app

DOCS = Path(__file__).parent
ROOT = DOCS.parent
BLOCK = re.compile(r"^```(python|pycon|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CHECKS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def pages() -> dict[str, str]:
    """The text of every page by its path in the repository, the root first; generated pages as mkdocs makes them."""
    written = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
    }
    return written | {f"docs/{path}": text for path, text in generated.pages().items()}


def prepare(folder: Path) -> None:
    """Put into an empty folder what the examples read."""
    (folder / "ckpt").symlink_to(ROOT / "ckpt")
    shutil.copy(ROOT / "ckpt" / "texts.jsonl", folder / "wiki.txt")


def run_page(page: str, text: str, folder: Path) -> None:
    """Run a page's blocks in an empty folder; what fails names its line.

    All blocks of Python share one namespace.

    Raises:
        RuntimeError: a command failed, or a statement gave something else than the page says.
        Exception: whatever the page's code raises.
    """
    prepare(folder)
    names = {"__name__": "__main__"}
    with chdir(folder):
        for block in BLOCK.finditer(text):
            kind, code = block.groups()
            line = text[: block.start(2)].count("\n")
            if kind == "python":
                exec(compile("\n" * line + code, page, "exec"), names)
            elif kind == "pycon":
                _check(code, names, page, line)
            else:
                for command in filter(None, code.splitlines()):
                    _command(command, page)


def _check(code: str, names: dict, page: str, line: int) -> None:
    found: list[str] = []
    session = doctest.DocTestParser().get_doctest(code, names, page, page, line)
    doctest.DocTestRunner(optionflags=CHECKS).run(session, out=found.append, clear_globs=False)
    names |= session.globs
    if found:
        raise RuntimeError("".join(found))


def _command(command: str, page: str) -> None:
    program, *arguments = shlex.split(command)
    done = CliRunner().invoke(app, arguments)
    if program != "moe-probe" or done.exit_code != 0:
        raise RuntimeError(f"{page}: {command}\n{done.output}{done.exception!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", help="such as docs/analyses/similarity.md; all by default")
    known = pages()
    for page in parser.parse_args().pages or known:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            run_page(page, known[page], Path(scratch))
            for picture in Path(scratch).glob("*.png"):
                shutil.copy(picture, DOCS / "figures")
        print(f"{page}: {time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    main()
