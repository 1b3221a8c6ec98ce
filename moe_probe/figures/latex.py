"""Figures of a folder as LaTeX: one environment each, with caption and provenance."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moe_probe.files import whole_file
from moe_probe.plotting import COLUMN, PAGE
from moe_probe.shown import printable

SNIPPET = "figures.tex"
WIDER = 1.05  # of a column: what is wider takes both; what is hardly narrower fills it
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {character: f"\\{character}" for character in "&%$#_{}"}


def write_snippet(entries: Iterable[Mapping[str, Any]], folder: Path) -> Path:
    """Writes `figures.tex` into the folder of the figures that it includes; returns its path.

    Args:
        entries: those of an album whose files are in the folder.
        folder: the folder of the figures.

    Raises:
        MachineError: the disk is full.
    """
    path = folder / SNIPPET
    with whole_file(path) as partial:
        partial.write_text("\n".join(environment(entry) for entry in entries), encoding="utf-8")
    return path


def environment(entry: Mapping[str, Any]) -> str:
    r"""Returns the environment of one figure at the size that it was drawn for: one column, or two if it is wider.

    Examples:
        >>> told = {"file": "figures/m/load.pdf", "caption": "Load", "width": 3.3, "model": "m", "data": "m.nc"}
        >>> print(environment(told | {"fingerprint": "f", "analysis": "load", "parameters": {}}).splitlines()[3])
          \includegraphics[width=\linewidth]{load.pdf}
    """
    name = Path(entry["file"]).name
    kind, room = ("figure*", PAGE) if entry["width"] > WIDER * COLUMN else ("figure", COLUMN)
    part = entry["width"] / room
    width = "" if part > 1 / WIDER else f"{part:.2f}"
    parameters = ", ".join(f"{key}={value}" for key, value in entry["parameters"].items())
    source = (
        f"{entry['analysis']}({parameters}) of {entry['model']}, fingerprint {entry['fingerprint']}: {entry['data']}"
    )
    return "\n".join(
        [
            f"% {one_line(source)}",
            f"\\begin{{{kind}}}",
            "  \\centering",
            f"  \\includegraphics[width={width}\\linewidth]{{{name}}}",
            f"  \\caption{{{escaped(entry['caption'])}}}",
            f"  \\label{{fig:{re.sub(r'[^A-Za-z0-9-]+', '-', Path(name).stem)}}}",
            f"\\end{{{kind}}}",
            "",
        ]
    )


def escaped(text: str) -> str:
    r"""Returns the text escaped for LaTeX.

    Examples:
        >>> escaped("50 % of a_b")
        '50 \\% of a\\_b'
    """
    return "".join(SPECIAL.get(character, character) for character in one_line(text))


def one_line(text: str) -> str:
    """Returns the text without line ends and control characters."""
    return printable(" ".join(text.split()))
