"""The long description of the package: the README, with links that lead somewhere outside of the repository.

Relative links and pictures go below `Files` of `[project.urls]` in pyproject.toml, the one place for that address. As
long as there is none, pictures are left out, of other links the words stay, and a sentence says where all of it is.
"""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(?P<picture>!?)\[(?P<words>[^\]]*)\]\((?P<place>(?!https?://|#)[^)\s]+)\)")
BASE = "Files"  # of [project.urls]: what a path in the repository is put behind
WITHOUT = "Pictures, and the pages of docs/ that are named here, are in the repository.\n\n"


def long_description(readme: str, base: str | None) -> str:
    """The README with its relative links below an address; without one, without them."""
    if base is not None:
        return LINK.sub(lambda match: f"{match[1]}[{match[2]}]({base.rstrip('/')}/{match[3]})", readme)
    text = LINK.sub(lambda match: "" if match["picture"] else match["words"], readme)
    title, _, rest = re.sub(r"\n{3,}", "\n\n", text).partition("\n\n")
    return f"{title}\n\n{WITHOUT}{rest}"


class Readme(MetadataHookInterface):
    """Sets `readme` when the package is built."""

    def update(self, metadata: dict) -> None:
        """Put the long description into the metadata."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        base = metadata.get("urls", {}).get(BASE)
        metadata["readme"] = {"content-type": "text/markdown", "text": long_description(text, base)}
