"""Figures of a folder as LaTeX: one environment each, with caption and where it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moe_probe.files import whole_file
from moe_probe.plotting import COLUMN
from moe_probe.shown import printable

SNIPPET = "figures.tex"
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {character: f"\\{character}" for character in "&%$#_{}"}


def write_snippet(entries: Iterable[Mapping[str, Any]], folder: Path) -> Path:
    """Write `figures.tex` beside the figures that it includes; returns its path.

    Args:
        entries: of an album, whose files are in the folder.
        folder: of the figures.

    Raises:
        MachineError: the disk is full.
    """
    path = folder / SNIPPET
    with whole_file(path) as partial:
        partial.write_text("\n".join(environment(entry) for entry in entries), encoding="utf-8")
    return path


def environment(entry: Mapping[str, Any]) -> str:
    r"""One figure: over a column, or over both where it is wider.

    Examples:
        >>> told = {"file": "figures/m/load.pdf", "caption": "Load", "width": 3.3, "model": "m", "data": "m.nc"}
        >>> print(environment(told | {"fingerprint": "f", "analysis": "load", "parameters": {}}).splitlines()[2])
          \includegraphics[width=\linewidth]{load.pdf}
    """
    name = Path(entry["file"]).name
    kind = "figure*" if entry["width"] > 1.3 * COLUMN else "figure"
    parameters = ", ".join(f"{key}={value}" for key, value in entry["parameters"].items())
    source = (
        f"{entry['analysis']}({parameters}) of {entry['model']}, fingerprint {entry['fingerprint']}: {entry['data']}"
    )
    return "\n".join(
        [
            f"% {one_line(source)}",
            f"\\begin{{{kind}}}",
            f"  \\includegraphics[width=\\linewidth]{{{name}}}",
            f"  \\caption{{{escaped(entry['caption'])}}}",
            f"  \\label{{fig:{re.sub(r'[^A-Za-z0-9-]+', '-', Path(name).stem)}}}",
            f"\\end{{{kind}}}",
            "",
        ]
    )


def escaped(text: str) -> str:
    r"""The text as LaTeX writes it.

    Examples:
        >>> escaped("50 % of a_b")
        '50 \\% of a\\_b'
    """
    return "".join(SPECIAL.get(character, character) for character in one_line(text))


def one_line(text: str) -> str:
    """The text without line ends and control characters."""
    return printable(" ".join(text.split()))
