"""Divergence of a picture's patches, and over training (MH-MoE, arXiv 2404.15045, figures 8 and 10)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

import xarray as xr

from moe_probe.plotting._choices import pick
from moe_probe.plotting._heatmap import show
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, COLUMN, ORANGE, PAGE, Figure

COLORS = {"high": ORANGE, "low": BLUE}
PICTURES = 6  # that have a figure each without being asked for
DIMS = ("document", "row", "column")
OVER_LAYERS = ("divergence_mean",)


def plot(ds: xr.Dataset, document: int | None = None, **look: Unpack[Look]) -> Drawn:
    """Draws a map of the mean divergence, or one for every step, and the picture if the result has it.

    Args:
        ds: result of `dynamic.patch_divergence`, or of `comparisons.patch_divergence_over_steps`.
        document: number of the picture; the first one by default.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.patch_divergence("ckpt/tiny-mh-moe", [[10, 11, 12, 13, 14, 15]], grid=(2, 3))
        >>> figure = plotting.plot(ds)
    """
    document = pick(ds, "document", document)
    maps = ds.divergence_mean if "step" in ds.dims else ds.divergence_mean.expand_dims(step=[""])
    panels = maps.sizes["step"] + ("picture" in ds)
    with Page(ds, look) as page:
        width = min(PAGE, 1.6 * panels + 0.8)
        height = min(max((width - 0.8) / panels * ds.sizes["row"] / ds.sizes["column"] + 0.5, 1.2), 6)
        all_axes = page.panels(1, panels, (width, height))[0]
        pictured, of_maps = all_axes[:1], all_axes[panels - maps.sizes["step"] :]
        if "step" in ds.dims:
            pictured, of_maps = all_axes[-1:], all_axes[: maps.sizes["step"]]
        if "picture" in ds:
            show(pictured[0], ds.picture.sel(document=document), cmap="gray", vmin=0, vmax=1)
            pictured[0].set_title("picture")
        bounds = {"vmin": float(maps.min()), "vmax": float(maps.max())}
        image: Any = None
        for axes, step in zip(of_maps, maps.step.values, strict=True):
            image = show(axes, maps.sel(step=step, document=document), **bounds)
            axes.set_title(str(step))
        for axes in all_axes:
            axes.set(xticks=[], yticks=[])
        page.colorbar(image, all_axes, "distinct experts", shrink=0.9)
        return page.finish(f"{page.ds.attrs['model']}, picture {document}")


def textures(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws the mean divergence of patches of high and of low texture, over the steps."""
    means = ds if "step" in ds.dims else ds.expand_dims(step=[""])
    at = range(means.sizes["step"])
    with Page(ds, look) as page:
        axes = page.panel((COLUMN, 2.2))
        for group, color in COLORS.items():
            of_group = means.sel(texture_group=group)
            axes.plot(at, of_group.texture_mean, marker="o", markersize=3, color=color, label=f"{group} texture")
            if "texture_mean_low" in of_group:
                ends = (
                    of_group.texture_mean - of_group.texture_mean_low,
                    of_group.texture_mean_high - of_group.texture_mean,
                )
                axes.errorbar(
                    at, of_group.texture_mean, [end.values for end in ends], color=color, capsize=2, linewidth=0.8
                )
        axes.set_xticks(list(at), [str(step) for step in means.step.values])
        axes.set(xlabel="step", ylabel="distinct experts")
        axes.margins(x=0.15)
        page.legend(axes)
        return page.finish(page.ds.attrs["model"])


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The maps of the first pictures, and the groups' means: (file stem, figure)."""
    for document in ds.document.values[:PICTURES]:
        yield f"patch_divergence_picture{document}", plot(ds, int(document))
    if "texture_mean" in ds:
        yield "patch_divergence_textures", textures(ds)


def details(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The maps of the other pictures: (file stem, figure)."""
    for document in ds.document.values[PICTURES:]:
        yield f"patch_divergence_picture{document}", plot(ds, int(document))
