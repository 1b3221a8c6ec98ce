"""Share of the final routing choices that earlier checkpoints already make (OLMoE, arXiv 2409.02060)."""

from __future__ import annotations

from typing import Unpack

import numpy as np
import xarray as xr

from moe_probe.comparisons.side_by_side import Sources, chosen_alike, means, overlap, record_choices, routing_attrs
from moe_probe.dynamic.analysis import described, labeled
from moe_probe.options import RunOptions
from moe_probe.results import dataset
from moe_probe.signatures import checked
from moe_probe.statistics.bootstrap import DRAWS, check_draws
from moe_probe.texts.reading import Texts

SOURCES = (2, None)
UNASKED = True
LEGEND = {
    "saturation": ("share of the final choices", "1"),
    "first_saturation": ("share of the final first choices", "1"),
}


@checked
def router_saturation(
    checkpoints: Sources,
    texts: Texts | None = None,
    *,
    bootstrap: int = DRAWS,
    chance: bool = True,
    **options: Unpack[RunOptions],
) -> xr.Dataset:
    """Share of the last checkpoint's choices that earlier ones already make (OLMoE, arXiv 2409.02060, section 5.1).

    Args:
        checkpoints: by label (training step) in their order, the final one last; folders, hub ids, models or traces.
        texts: the texts that models run on; not needed for traces.
        bootstrap: resamples of the documents for the intervals; 0 for none.
        chance: whether to compute the chance level.
        options: those of `dynamic.run`, such as `layers`, `execution` and `batch_tokens`.

    Returns:
        Dataset, float64, with `saturation` (checkpoint, layer), the mean over tokens (or sub-tokens) of the share of
        the final top-k experts that the checkpoint chooses too; `first_saturation` (checkpoint, layer), the same for
        first choices (those with the largest score); their 95 % bootstrap intervals over documents, `_low` and `_high`;
        and `chance` and `first_chance` (checkpoint, layer), their values for independent choices with each expert
        chosen as often as it is (k / E and 1 / E for an even load, as in the paper).

    Raises:
        InputError: fewer than two checkpoints, or their tokenizers or layers differ.

    Examples:
        >>> from moe_probe import comparisons
        >>> steps = {"100": "ckpt/tiny-mixtral", "200": "ckpt/tiny-mixtral"}
        >>> comparisons.router_saturation(steps, ["A short text."]).saturation.values.min().item()
        1.0
    """
    check_draws(bootstrap)
    routings = record_choices(checkpoints, texts, options)
    final = routings[-1]
    shares = np.stack([overlap(final.index, routing.index).mean(-1) for routing in routings])  # (c, layers, tokens)
    values_of = means("saturation", ("checkpoint", "layer"), shares, final, bootstrap)
    firsts = np.stack([(final.first == routing.first).mean(-1) for routing in routings])
    values_of |= means("first_saturation", ("checkpoint", "layer"), firsts, final, bootstrap)
    if chance:
        sides = {"chance": lambda routing: routing.index, "first_chance": lambda routing: routing.first[..., None]}
        for name, of in sides.items():
            levels = [chosen_alike(of(final), of(routing), final.num_experts) for routing in routings]
            values_of[name] = (("checkpoint", "layer"), np.stack(levels))
    arrays = labeled(values_of, {"checkpoint": [routing.label for routing in routings], "layer": list(final.layers)})
    variables = {name: array.assign_attrs(described(LEGEND, name)) for name, array in arrays.items()}
    return dataset(variables, routing_attrs("router_saturation", routings))
