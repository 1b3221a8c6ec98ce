"""One file per paper, with its `PAPER`; other packages add papers through the entry points `moe_probe.papers`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from moe_probe.errors import NoSuchName
from moe_probe.registry import Registry

if TYPE_CHECKING:
    from moe_probe.figures.recipes import Paper

PAPERS: Registry[Paper] = Registry("moe_probe.figures.papers", "papers", "paper", lambda module, name: module.PAPER)


@cache
def papers() -> dict[str, Paper]:
    """All papers by name."""
    return {paper.name: paper for paper in PAPERS.values()}


def find_paper(name: str) -> Paper:
    """A paper by its name.

    Raises:
        NoSuchName: there is no such paper.
    """
    if name not in papers():
        raise NoSuchName.among("paper", name, papers())
    return papers()[name]
