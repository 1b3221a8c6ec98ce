"""What mkdocs fills in by itself: generated pages, the pages of a section in the navigation, and the commands' help."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
import gallery
import generated

SECTIONS = ("analyses", "families", "formats", "errors")
COMMANDS = "command_line.md"


def on_config(config: Any) -> Any:
    """Put every page that a section's index links to into the navigation."""
    for entry in config.nav:
        for title, listed in entry.items() if isinstance(entry, dict) else ():
            if isinstance(listed, list) and (section := title.lower()) in SECTIONS:
                path = f"{section}/index.md"
                index = generated.pages().get(path) or (Path(config.docs_dir) / path).read_text(encoding="utf-8")
                entry[title] = [*listed, *(f"{section}/{name}" for name in re.findall(r"\]\((\w+\.md)\)", index))]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages; those of the same name on disk are part of them."""
    for path, text in generated.pages().items():
        if (on_disk := files.get_file_from_path(path)) is not None:
            files.remove(on_disk)
        files.append(File.generated(config, path, content=text))
    for name, picture in gallery.pictures():
        files.append(File.generated(config, f"figures/gallery/{name}.png", content=picture))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Append the help of all commands to the page of the command line."""
    return markdown + _help() if page.file.src_uri == COMMANDS else markdown


def _help() -> str:
    command = [sys.executable, "-m", "typer", "moe_probe.cli", "utils", "docs", "--name", "moe-probe"]
    written = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return written[written.index("\n## ") :]  # from the first command on
