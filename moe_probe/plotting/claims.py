"""Claims of papers: effect sizes with intervals by layer, compared with no effect or a small one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from moe_probe.errors import NoSuchName, NotFitting
from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import BLUE, COLUMN, GREY, ORANGE, PAGE, Figure, thin_ticks

DIMS = ("claim", "finding")
MARKS = {"holds": (BLUE, "o"), "does not hold": (ORANGE, "s"), "cannot be told": (GREY, "o")}


def plot(ds: xr.Dataset, claim: str | None = None, **look: Unpack[Look]) -> Drawn:
    """Draws the effect size of each finding of a claim, and a line at no effect or a small one; hollow: no interval.

    Args:
        ds: result of `claims.test`.
        claim: name of a claim; by default the first one with a finding.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Raises:
        NoSuchName: the result has no such claim.
        NotFitting: the claim has no effect size.

    Examples:
        >>> from moe_probe import claims, plotting
        >>> ds = claims.test("ckpt/tiny-mixtral", ["One text.", "Another one."], ["norm_preference"])
        >>> figure = plotting.plot(ds, claim="norm_preference")
    """
    known = _with_effects(ds)
    if claim is not None and claim not in ds.claim.values:
        raise NoSuchName.among("claim", claim, [str(name) for name in ds.claim.values])
    if not known or (claim is not None and claim not in known):
        raise NotFitting(f"{claim or 'The result'} has no effect size to draw; see claim_why.")
    claim = claim or known[0]
    findings = ds.isel(finding=np.flatnonzero(ds.claim_of.values == claim))
    with Page(findings, look) as page:
        axes = page.panel((COLUMN if findings.sizes["finding"] <= 32 else PAGE, 2.3))
        _effects(axes, findings, float(ds.within.sel(claim=claim)))
        handles = [
            Line2D([], [], linestyle="", color=MARKS[kind][0], marker=MARKS[kind][1]) for kind in _kinds(findings)
        ]
        page.key(handles, _kinds(findings))
        page.note("hollow: no interval" * bool(findings.low.isnull().any()))
        return page.finish(f"{claim}: {ds.claim_verdict.sel(claim=claim).item()}")


def _kinds(findings: xr.Dataset) -> list[str]:
    return list(dict.fromkeys(str(one) for one in findings.verdict.values))


def _effects(axes: Axes, findings: xr.Dataset, within: float) -> None:
    """Draws a mark for each finding, and a line at no effect, or at a small one."""
    axes.axhline(0 if np.isnan(within) else within, color="0.4", linewidth=0.8, linestyle=":")
    for at in range(findings.sizes["finding"]):
        _draw(axes, findings.isel(finding=at), at)
    thin_ticks(axes.xaxis, ["all" if layer < 0 else str(layer) for layer in findings.layer.values])
    axes.set(xlabel="layer", ylabel="effect size")


def _draw(axes: Axes, finding: xr.Dataset, at: int) -> None:
    color, mark = MARKS[str(finding.verdict.item())]
    effect, low, high = (float(finding[name]) for name in ("effect", "low", "high"))
    hollow = np.isnan(low)
    if not hollow:
        axes.plot([at, at], [low, high], color=color, linewidth=1)
    axes.plot(at, effect, mark, color=color, markerfacecolor="none" if hollow else color)


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Every claim with an effect size: (file stem, figure)."""
    for claim in _with_effects(ds):
        yield f"claims_{claim}", plot(ds, claim)


def _with_effects(ds: xr.Dataset) -> list[str]:
    told = set(ds.claim_of.values[np.isfinite(ds.effect.values)])
    return [str(claim) for claim in ds.claim.values if claim in told]
