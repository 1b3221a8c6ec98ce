"""Models side by side: how often every expert is used (MH-MoE, arXiv 2404.15045, figures 1, 5 and 6)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from moe_probe.plotting.style import BLUE, COLORMAP, COLUMN, GREEN, ORANGE, PAGE, style, thin_ticks

SUMMARY = {
    "activation_ratio": "activation ratio",
    "entropy": "entropy of load / ln E",
    "divergence": "distinct experts",
}


def plot(ds: xr.Dataset) -> Figure:
    """A map of layers by experts for every checkpoint, on one colour scale; the first MoE layer on top.

    Args:
        ds: result of `dynamic.expert_activation`.

    Example:
        >>> plot(dynamic.expert_activation(["ckpt/tiny-x-moe", "ckpt/tiny-mh-moe"], texts))
    """
    labels = [str(label) for label in ds.checkpoint.values]
    columns = min(len(labels), 3)
    rows = -(-len(labels) // columns)
    with style():
        height = rows * (0.75 + 0.12 * max(ds.sizes["depth"], 4)) + 0.3
        figure = Figure(figsize=(PAGE if columns > 1 else COLUMN, min(height, 8)), layout="constrained")
        all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
        top = float(ds.frequency.max())
        for axes, label in zip(all_axes, labels, strict=False):
            own = ds.sel(checkpoint=label)
            used = own.isel(depth=(own.layer >= 0).values, expert=slice(int(own.num_experts)))
            image = axes.imshow(used.frequency, aspect="auto", cmap=COLORMAP, vmin=0, vmax=top, interpolation="nearest")
            axes.set(xlabel="expert", ylabel="layer")
            axes.set_title(f"{label}: {100 * float(own.activation_ratio):.1f} % active")
            thin_ticks(axes.xaxis, [str(e) for e in used.expert.values], 5)
            thin_ticks(axes.yaxis, [str(int(n)) for n in used.layer.values], 6)
        for axes in all_axes[len(labels) :]:
            axes.axis("off")
        figure.colorbar(image, ax=list(all_axes), label="selections per token")
        return figure


def summary(ds: xr.Dataset, against: str | None = None) -> Figure:
    """Activation ratio, evenness of load and divergence of every checkpoint.

    Args:
        ds: result of `dynamic.expert_activation`.
        against: `num_experts` or `subtokens` for points on a logarithmic axis; bars by label by default.
    """
    labels = [str(label) for label in ds.checkpoint.values]
    with style():
        figure = Figure(figsize=(PAGE, 2.4), layout="constrained")
        panels = figure.subplots(1, len(SUMMARY))
        for axes, (name, title), color in zip(panels, SUMMARY.items(), (BLUE, GREEN, ORANGE), strict=True):
            values = ds[name].values
            if against is None:
                axes.bar(range(len(labels)), values, color=color, width=0.6)
                axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
            else:
                at = ds[against].values
                for label, x, value in zip(labels, at, values, strict=True):
                    axes.plot(x, value, "o", color=color, markersize=4)
                    axes.annotate(label, (x, value), (4, 0), textcoords="offset points", fontsize=6, va="center")
                axes.set_xscale("log", base=2)
                axes.set_xlim(at.min() / 1.4, at.max() * 4)
                axes.set_xticks(np.unique(at), [str(n) for n in np.unique(at)])
                axes.minorticks_off()
                axes.set_xlabel({"num_experts": "experts", "subtokens": "sub-tokens"}[against])
            axes.set_title(title)
            axes.set_ylim(0, 1.1 * max(float(values.max()), 1e-9))
        return figure


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The maps; the summary by label, and against what differs between the checkpoints: (file stem, figure)."""
    yield "expert_activation", plot(ds)
    yield "expert_activation_summary", summary(ds)
    for against in ("num_experts", "subtokens"):
        if len(np.unique(ds[against])) > 1:
            yield f"expert_activation_{against}", summary(ds, against)
