"""A page that shows the routing of every token: `explorer.explore(model, texts).save("page.html")`."""

from typing import TYPE_CHECKING, Any

from moe_probe.deferred import Deferred

if TYPE_CHECKING:
    from moe_probe.explorer.building import Explorer, explore

__all__ = ["Explorer", "explore"]
_NAMES = Deferred(__name__, __file__)


def __getattr__(name: str) -> Any:
    return _NAMES.attribute(name)
