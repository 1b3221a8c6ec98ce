"""Tests of the papers' observations by interventions, which arXiv 2406.18219 leaves open among its limitations."""

from __future__ import annotations

from typing import Any

import xarray as xr

from moe_probe import intervene
from moe_probe.figures.recipes import FromModel, Paper
from moe_probe.model import MoEModel
from moe_probe.options import ATTRIBUTION_OPTIONS
from moe_probe.texts.corpus import Corpus


def estimate(model: MoEModel, corpus: Corpus, **options: Any) -> xr.Dataset:
    """Computes the attribution, which does not use workers."""
    taken = (*ATTRIBUTION_OPTIONS, "bootstrap")
    return intervene.attribution(model, corpus, **{name: value for name, value in options.items() if name in taken})


PAPER = Paper(
    name="tested-claims",
    arxiv="2406.18219",
    recipes=(
        FromModel(
            shows="what routing by norm, at random and along similarity, and missing kinds of experts, do to the loss",
            name="effect",
            compute=intervene.claims,
        ),
        FromModel(
            shows="the change of the loss without each expert, layers by experts",
            name="ablate",
            compute=intervene.ablate,
        ),
        FromModel(
            shows="the change of the loss without each expert, estimated from one backward pass",
            name="attribution",
            compute=estimate,
        ),
    ),
)
