"""What the loss rises by without the expert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

from moe_probe.intervene.measured.ablation import ablate
from moe_probe.model import MoEModel
from moe_probe.pruning.score import Measured
from moe_probe.texts.corpus import Corpus


class Ablation(Measured):
    """Rise of the loss without the expert, with the router choosing among the others.

    It takes one edited pass per expert, from the edited layer on (`intervene.ablate` with `how="mask"`).
    """

    formula = "loss with e masked - loss"
    source = "intervene.ablate"
    units = "nats"

    def measure(self, model: MoEModel, corpus: Corpus, options: Mapping[str, Any]) -> xr.DataArray:
        return ablate(model, corpus, "mask", bootstrap=0, **options).loss_change.sel(path="total", drop=True)
