"""What pruning by each score costs on held-out texts, beside pruning at random."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import xarray as xr

from moe_probe.errors import NotFitting
from moe_probe.intervene.mask import Mask
from moe_probe.model import MoEModel, Openable, load
from moe_probe.options import EFFECT_OPTIONS, TEXT_OPTIONS, RunOptions, completed
from moe_probe.pruning.agreeing import importance
from moe_probe.pruning.costs import check_held_out, check_of_model, measured_costs
from moe_probe.pruning.selecting import Per, Pruned, lowest, random_values
from moe_probe.results import dataset, provenance, variable
from moe_probe.signatures import check_number, check_types
from moe_probe.statistics.bootstrap import DRAWS
from moe_probe.texts.reading import Texts
from moe_probe.texts.tokenizing import make_corpus

FRACTIONS = (0.125, 0.25, 0.5)
RANDOM = "random"  # the orders that no score gave
MASKED = "Masked experts are as if deleted: never chosen, the others chosen and weighted by the router's own rules."


def curve(
    model: Openable,
    scores: xr.Dataset,
    texts: Texts,
    fractions: Sequence[float] = FRACTIONS,
    *,
    per: Per = "layer",
    random: int = 5,
    bootstrap: int = DRAWS,
    **options: Unpack[RunOptions],
) -> xr.Dataset:
    """Held-out loss with a share of the experts masked, for each score and for random sets of as many.

    A mask is as a deletion: the router chooses anew among the rest, by its own rules. Experts that have no value,
    since no row chose them, go first. In each layer as many experts stay as a token chooses.

    Args:
        model: what the scores are of.
        scores: result of `pruning.scores`, of other texts. A score that lacks a value of an expert that a row chose is
            left out, with a warning.
        texts: held out: none of the documents that the scores were computed from.
        fractions: of the experts that are masked.
        per: `layer`, the same share of each layer, or `model`, the lowest of the whole model.
        random: random orders of the experts, drawn from the seeds 0, 1, ...
        bootstrap: resamples of documents for the intervals; 0 for none.
        options: those of `dynamic.run` but `baseline` and `layers`.

    Returns:
        Dimensions `order` (the scores, then `random 0`, ...), `fraction`: `loss_change`, over all predicted tokens,
        nats, with `_low` and `_high`, the 95 % interval over documents; `kl`, mean KL(whole || pruned) over all
        positions, nats; `top1`, share of positions whose most likely next token stays; `pruned`, experts that are
        masked; `label_loss_change` (order, label, fraction) where documents have labels. `base_loss`, scalar, nats.

    Raises:
        NotComparable: the scores are of another model.
        NotFitting: a document is among those that the scores are of, no score has all values, or too few experts would
            be left.

    Examples:
        >>> from moe_probe import pruning
        >>> found = pruning.scores("ckpt/tiny-mixtral", [[5, 6, 7, 8]], ["ean"])
        >>> pruning.curve("ckpt/tiny-mixtral", found, [[9, 10, 11]], [0.25], random=1).order.values.tolist()
        ['ean', 'random 0']
    """
    check_types(curve, {"per": per, "fractions": fractions})
    check_number("random", random, 0)
    asked: dict[str, Any] = completed(options, EFFECT_OPTIONS, "curve")
    opened = load(model)
    check_of_model(opened, scores, "scores")
    corpus = make_corpus(opened, texts, **{name: asked.pop(name) for name in TEXT_OPTIONS})
    check_held_out(scores.calibration.values.tolist() if "calibration" in scores else (), corpus)
    orders = orders_of(opened, with_values(scores), random)
    cells = [(name, fraction) for name in orders for fraction in fractions]
    pruned = [lowest(opened, orders[name], fraction, per) for name, fraction in cells]
    if not any(pruned):
        raise NotFitting(f"No share of {list(fractions)} is a whole expert; pass larger fractions.")
    dims = {"order": list(orders), "fraction": list(fractions)}
    arrays, told = measured_costs(opened, corpus, [masks(experts) for experts in pruned], dims, bootstrap, asked)
    counts = np.array([sum(map(len, experts.values())) for experts in pruned]).reshape(len(orders), len(fractions))
    arrays["pruned"] = variable(tuple(dims), counts, "experts that are masked", "experts")
    about = provenance("curve", opened, per=per, random=random, bootstrap=bootstrap)
    told["definition"] = f"{MASKED} {told['definition']}"
    return dataset(arrays, {**about, **told})


def with_values(scores: xr.Dataset) -> xr.Dataset:
    """The scores without those that lack a value of an expert, though a row chose it; a warning names them.

    Raises:
        NotFitting: none is left.
    """
    there = np.isfinite(scores.chosen.values) if "chosen" in scores else True
    unknown = (np.isnan(importance(scores)) & there).any((1, 2))
    if unknown.all():
        raise NotFitting(f"No score of {', '.join(scores.score.values)} has a value of every expert; pass others.")
    if unknown.any():
        names = ", ".join(scores.score.values[unknown])
        warnings.warn(f"Nothing is pruned by {names}: some experts have no value.", stacklevel=3)
    return scores.isel(score=np.flatnonzero(~unknown))


def orders_of(model: MoEModel, scores: xr.Dataset, random: int) -> dict[str, dict[int, np.ndarray]]:
    """Values by which experts go, the lowest first, by order and layer."""
    layers = scores.layer.values.tolist()
    by_score = {
        str(name): {layer: values[row, : model.layer(layer).num_experts] for row, layer in enumerate(layers)}
        for name, values in zip(scores.score.values, importance(scores), strict=True)
    }
    return by_score | {f"{RANDOM} {draw}": random_values(model, layers, draw) for draw in range(random)}


def masks(pruned: Pruned) -> list[Mask]:
    """The masks of a set of experts."""
    return [Mask(layer, experts) for layer, experts in pruned.items()]
