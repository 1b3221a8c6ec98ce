"""Divergence of a picture's patches beside the picture, and over training (MH-MoE, arXiv 2404.15045, figures 8, 10)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import xarray as xr

from moe_probe.plotting._choices import pick
from moe_probe.plotting._heatmap import show
from moe_probe.plotting._style import BLUE, COLUMN, ORANGE, PAGE, Figure, style

COLORS = {"high": ORANGE, "low": BLUE}
DIMS = ("document", "row", "column")


def plot(ds: xr.Dataset, document: int | None = None) -> Figure:
    """The picture, where there is one, and a map of its mean divergence for every step, on one color scale.

    Args:
        ds: result of `dynamic.patch_divergence`, or of `comparisons.patch_divergence_over_steps`.
        document: number of the picture; the first one by default.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.patch_divergence("ckpt/tiny-mh-moe", [[10, 11, 12, 13, 14, 15]], grid=(2, 3))
        >>> figure = plotting.plot(ds)
    """
    document = pick(ds, "document", document)
    maps = ds.divergence_mean if "step" in ds.dims else ds.divergence_mean.expand_dims(step=[""])
    panels = maps.sizes["step"] + ("picture" in ds)
    with style():
        width = min(PAGE, 1.6 * panels + 0.8)
        rows, columns = ds.sizes["row"], ds.sizes["column"]
        height = min(max((width - 0.8) / panels * rows / columns + 0.6, 1.2), 6)
        figure = Figure(figsize=(width, height), layout="constrained")
        all_axes = figure.subplots(1, panels, squeeze=False)[0]
        if "picture" in ds:
            show(all_axes[0], ds.picture.sel(document=document), cmap="gray", vmin=0, vmax=1)
            all_axes[0].set_title("picture")
        bounds = {"vmin": float(maps.min()), "vmax": float(maps.max())}
        image: Any = None
        for axes, step in zip(all_axes[panels - maps.sizes["step"] :], maps.step.values, strict=True):
            image = show(axes, maps.sel(step=step, document=document), **bounds)
            axes.set_title(str(step))
        for axes in all_axes:
            axes.set(xticks=[], yticks=[])
        figure.colorbar(image, ax=list(all_axes), label="distinct experts", shrink=0.9)
        figure.suptitle(f"{ds.attrs['model']}, picture {document}")
        return figure


def textures(ds: xr.Dataset) -> Figure:
    """Mean divergence of patches of high and of low texture, over the steps."""
    means = ds if "step" in ds.dims else ds.expand_dims(step=[""])
    at = range(means.sizes["step"])
    with style():
        figure = Figure(figsize=(COLUMN, 2.3), layout="constrained")
        axes = figure.subplots()
        for group, color in COLORS.items():
            own = means.sel(texture_group=group)
            axes.plot(at, own.texture_mean, marker="o", markersize=3, color=color, label=f"{group} texture")
            if "texture_mean_low" in own:
                ends = (own.texture_mean - own.texture_mean_low, own.texture_mean_high - own.texture_mean)
                axes.errorbar(at, own.texture_mean, [end.values for end in ends], color=color, capsize=2, linewidth=0.8)
        axes.set_xticks(list(at), [str(step) for step in means.step.values])
        axes.set(xlabel="step", ylabel="distinct experts", title=ds.attrs["model"])
        axes.margins(x=0.15)
        axes.legend(frameon=False)
        return figure


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The maps of every picture, and the groups' means: (file stem, figure)."""
    for document in ds.document.values:
        yield f"patch_divergence_picture{document}", plot(ds, int(document))
    if "texture_mean" in ds:
        yield "patch_divergence_textures", textures(ds)
