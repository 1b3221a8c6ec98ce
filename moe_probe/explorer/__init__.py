"""One page to look into a model's routing, token by token: `explorer.explore(model, texts).save("page.html")`."""

from moe_probe.explorer.building import Explorer, explore

__all__ = ["Explorer", "explore"]
