"""Escapes foreign text for display: names, labels, tokens and errors that others wrote.

A terminal obeys control characters, rich reads brackets as markup, a spreadsheet runs cells that begin with `=`, and a
file system splits names at `/`. Nothing here changes the content of a result, only its display.
"""

from __future__ import annotations

import hashlib
import html
import unicodedata
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

JOINERS = "\u200c\u200d"  # without them Arabic, Indic scripts and emoji fall apart
HIDDEN = ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp")  # control, format, surrogate, unassigned; line and paragraph separators
FORMULA = ("=", "+", "-", "@", "\t", "\r")
NOT_IN_FILE_NAMES = set('/\\:*?"<>|%')
LONGEST_NAME = 120  # bytes; file systems take 255, and suffixes follow


def printable(text: object, keep: str = "") -> str:
    r"""Returns the text with control characters, escapes and changes of direction written out.

    Args:
        text: anything; its `str()` is shown.
        keep: characters to leave as they are, such as a newline.

    Examples:
        >>> print(printable("a\x1b[31mred\u202eback\n"))
        a\x1b[31mred\u202eback\n
    """
    return "".join(
        character if character in keep or _is_visible(character) else _escaped(character) for character in str(text)
    )


def brief(text: object, most: int = 300) -> str:
    """Returns the printable text for use in a sentence: on one line, without its middle if it is long.

    Examples:
        >>> brief("x" * 50, most=20)
        'xxxxxxxxx...xxxxxxxx'
    """
    shown = printable(text)
    half = (most - 3) // 2
    return shown if len(shown) <= most else f"{shown[: most - 3 - half]}...{shown[-half:]}"


def html_table(caption: object, rows: Iterable[tuple[object, object]]) -> str:
    """Returns an HTML table of two columns, names and values, for notebooks; markup in them is escaped.

    Examples:
        >>> html_table("<b>", [("layers", 4)])
        '<table><caption>&lt;b&gt;</caption><tr><th>layers</th><td>4</td></tr></table>'
    """
    lines = "".join(f"<tr><th>{_html(what)}</th><td>{_html(much)}</td></tr>" for what, much in rows)
    return f"<table><caption>{_html(caption)}</caption>{lines}</table>"


def _html(text: object) -> str:
    return html.escape(printable(text))


def _is_visible(character: str) -> bool:
    return character in JOINERS or unicodedata.category(character) not in HIDDEN


def _escaped(character: str) -> str:
    code = ord(character)
    known = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
    return known.get(character) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )


def csv_cell(text: object) -> str:
    """Returns the text for a CSV cell, escaped so that a spreadsheet does not run it as a formula.

    Examples:
        >>> csv_cell("=1+1"), csv_cell("prose")
        ("'=1+1", 'prose')
    """
    shown = str(text)
    return f"'{shown}" if shown.lstrip(" ").startswith(FORMULA) else shown


def file_name(text: object) -> str:
    """Returns the text as the name of one file or folder; different texts give different names.

    Characters that a name cannot have, or that lead elsewhere, become `%` and their code; long names end in a digest.

    Examples:
        >>> file_name("tiny-mixtral"), file_name("../up"), file_name("")
        ('tiny-mixtral', '%2E.%2Fup', '%')
    """
    name = "".join(
        f"%{ord(c):02X}" if c in NOT_IN_FILE_NAMES or not _is_visible(c) or (c == "." and not at) else c
        for at, c in enumerate(str(text))
    )
    if len(name.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(str(text).encode("utf-8", "surrogatepass")).hexdigest()[:12]
        name = f"{name.encode()[: LONGEST_NAME - 13].decode(errors='ignore')}-{digest}"
    return name or "%"


def in_markup(text: object) -> str:
    """Returns the printable text, escaped for places where rich always reads markup, such as progress bars.

    Examples:
        >>> in_markup("Converting m[red]")
        'Converting m\\\\[red]'
    """
    return escape(printable(text))


class PlainConsole(Console):
    """A rich console that treats every string as plain text: no markup, no escapes, also in tables and their titles."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Renders the printable text, as rich's own method."""
        return super().render_str(printable(text, keep="\n"), **options)
