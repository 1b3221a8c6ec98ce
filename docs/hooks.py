"""What mkdocs fills in by itself: the pages of a section, in the order of its index, and the commands' help."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

SECTIONS = ("analyses", "families", "errors")
COMMANDS = "command_line.md"


def on_config(config: Any) -> Any:
    """Put every page that a section's index links to into the navigation."""
    for entry in config.nav:
        for title, pages in entry.items() if isinstance(entry, dict) else ():
            if isinstance(pages, list) and (section := title.lower()) in SECTIONS:
                index = (Path(config.docs_dir) / section / "index.md").read_text(encoding="utf-8")
                entry[title] = [*pages, *(f"{section}/{name}" for name in re.findall(r"\]\((\w+\.md)\)", index))]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Append the help of all commands to the page of the command line."""
    return markdown + _help() if page.file.src_uri == COMMANDS else markdown


def _help() -> str:
    command = [sys.executable, "-m", "typer", "moe_probe.cli", "utils", "docs", "--name", "moe-probe"]
    written = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return written[written.index("\n## ") :]  # from the first command on
