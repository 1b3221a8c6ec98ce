"""Papers' figures, made again for any models: `figures.reproduce("look-into-moes", "ckpt/tiny-mixtral", "out")`."""

from moe_probe.figures.making import Reproduction, reproduce
from moe_probe.figures.papers import papers
from moe_probe.figures.saving import draw, result_stem, write_figure

__all__ = ["Reproduction", "draw", "papers", "reproduce", "result_stem", "write_figure"]
