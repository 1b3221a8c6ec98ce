"""A first-order estimate of what the loss would rise by if the expert's output were zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

from moe_probe.intervene.measured.attributing import attribution
from moe_probe.model import MoEModel
from moe_probe.options import ATTRIBUTION_OPTIONS
from moe_probe.pruning.score import Measured
from moe_probe.texts.corpus import Corpus


class Attribution(Measured):
    """First-order estimate of the rise of the loss if the expert's output were zero.

    It takes one forward and one backward pass (`intervene.attribution`), in this process, which cannot resume.
    """

    formula = "- d loss / d a_e at a_e = 1, a_e a factor on w_e f_e(x)"
    source = "first order of the loss without the expert; intervene.attribution"
    units = "nats"

    def measure(self, model: MoEModel, corpus: Corpus, options: Mapping[str, Any]) -> xr.DataArray:
        takes: Any = {name: value for name, value in options.items() if name in ATTRIBUTION_OPTIONS}
        return attribution(model, corpus, bootstrap=0, **takes).loss_change
