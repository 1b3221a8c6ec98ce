"""The largest value in an expert's outputs where it is chosen, signed, as REAP's observer records it."""

from __future__ import annotations

import torch

from moe_probe.pruning.score import Seen
from moe_probe.pruning.scores.max_activation import MaxActivation


class MaxActivationAsPublished(MaxActivation):
    """The largest signed value in an expert's outputs on rows that chose it, as REAP's observer records it.

    Large negative values do not count; `max_activation` takes absolute values.
    """

    formula = "max over S_e and channels of f_e(x)_c"
    source = "Lasby et al., arXiv 2510.13999; its code, observer"

    def add(self, seen: Seen) -> torch.Tensor | None:
        return seen.largest(seen.chosen_outputs.amax(-1))
