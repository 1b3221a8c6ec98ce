"""Reproduces papers' figures for any models: `figures.reproduce("look-into-moes", "ckpt/tiny-mixtral", "out")`."""

import warnings
from typing import TYPE_CHECKING, Any

from moe_probe.deferred import Deferred
from moe_probe.figures.papers import papers

if TYPE_CHECKING:
    from moe_probe.figures.album import Album
    from moe_probe.figures.making import reproduce
    from moe_probe.figures.saving import draw, result_stem, write_figure

__all__ = ["Album", "draw", "papers", "reproduce", "result_stem", "write_figure"]
_NAMES = Deferred(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "Reproduction":
        warnings.warn("figures.Reproduction is now figures.Album", DeprecationWarning, stacklevel=2)
        return _NAMES["Album"]
    return _NAMES.attribute(name)
