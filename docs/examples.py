"""Run the pages' code: every ```python and ```console block of a page, in order, in the current folder.

`python docs/examples.py` runs all pages in a scratch folder and keeps the figures that they write in docs/figures.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tempfile
import time
from pathlib import Path

from typer.testing import CliRunner

from moe_probe.cli import app

DOCS = Path(__file__).parent
ROOT = DOCS.parent
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """Every page, the README first."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def prepare(folder: Path) -> None:
    """Put into a folder what the examples read."""
    (folder / "ckpt").symlink_to(ROOT / "ckpt")
    shutil.copy(ROOT / "ckpt" / "texts.jsonl", folder / "wiki.txt")


def run_page(page: Path) -> None:
    """Run a page's blocks, all python blocks in one namespace; what fails names its line."""
    text, names = page.read_text(encoding="utf-8"), {"__name__": "__main__"}
    for block in BLOCK.finditer(text):
        kind, code = block.groups()
        if kind == "python":
            before = text[: block.start(2)].count("\n")
            exec(compile("\n" * before + code, str(page), "exec"), names)
            continue
        for line in filter(None, code.splitlines()):
            program, *arguments = shlex.split(line)
            done = CliRunner().invoke(app, arguments)
            if program != "moe-probe" or done.exit_code != 0:
                raise RuntimeError(f"{page}: {line}\n{done.output}{done.exception!r}")


def main() -> None:
    figures = DOCS / "figures"
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch))
        os.chdir(scratch)
        for page in pages():
            begin = time.perf_counter()
            run_page(page)
            print(f"{page.relative_to(ROOT)}: {time.perf_counter() - begin:.1f} s")
        shutil.rmtree(figures, ignore_errors=True)
        figures.mkdir()
        for picture in Path(scratch).glob("*.png"):
            shutil.copy(picture, figures)


if __name__ == "__main__":
    main()
