"""Cost of pruning by each score on held-out texts, compared with pruning at random."""

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
MASKED = "Masked experts are as if deleted: the router chooses and weights only the others, by its own rules."


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
    """Measures the held-out loss with a share of the experts masked, for each score and for random orders.

    Masking is equivalent to deletion: the router chooses among the remaining experts, by its own rules. Experts that no
    row chose have no value and go first. Each layer keeps at least as many experts as a token chooses.

    Args:
        model: the model of the scores.
        scores: result of `pruning.scores` on other texts. A score without a value for an expert that a row chose is
            skipped, with a warning.
        texts: held-out texts, without any document from which the scores were computed: strings, lists of token ids, a
            file of texts, a `datasets` dataset, a table, or a `Corpus`.
        fractions: shares of masked experts, such as 0.25.
        per: `layer`, the same share of each layer, or `model`, the lowest of the whole model.
        random: number of random orders of the experts, from the seeds 0, 1, ...
        bootstrap: resamples of documents for the intervals; 0 for none.
        options: those of `dynamic.run` except `baseline` and `layers`.

    Returns:
        Dataset whose `order` holds the scores, then `random 0`, ..., with

        - `loss_change` (order, fraction), the mean change over all predicted tokens, nats, with `_low` and `_high`, the
          95 % interval over documents;
        - `kl` (order, fraction), the mean KL(whole || pruned) over all positions, nats, of float32 log-probabilities,
          whose rounding is up to 1e-6 nats and may be below 0;
        - `top1` (order, fraction), the share of positions whose most likely next token stays;
        - `pruned` (order, fraction), int64, the number of masked experts;
        - `label_loss_change` (order, label, fraction), nats, if documents have labels;
        - `base_loss` (), nats.

    Raises:
        NotComparable: the scores are of another model.
        NotFitting: the scores were computed from one of the documents, no score has all values, or too few experts
            would be left.

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
        raise NotFitting(f"No share of {list(fractions)} amounts to a whole expert; pass larger fractions.")
    dims = {"order": list(orders), "fraction": list(fractions)}
    arrays, told = measured_costs(opened, corpus, [masks(experts) for experts in pruned], dims, bootstrap, asked)
    counts = np.array([sum(map(len, experts.values())) for experts in pruned]).reshape(len(orders), len(fractions))
    arrays["pruned"] = variable(tuple(dims), counts, "masked experts", "experts")
    about = provenance("curve", opened, per=per, random=random, bootstrap=bootstrap)
    told["definition"] = f"{MASKED} {told['definition']}"
    return dataset(arrays, {**about, **told})


def with_values(scores: xr.Dataset) -> xr.Dataset:
    """Returns the scores that have a value for every expert that a row chose; warns about the others.

    Raises:
        NotFitting: no score is left.
    """
    there = np.isfinite(scores.chosen.values) if "chosen" in scores else True
    unknown = (np.isnan(importance(scores)) & there).any((1, 2))
    if unknown.all():
        raise NotFitting(f"No score of {', '.join(scores.score.values)} has a value for every expert; pass others.")
    if unknown.any():
        names = ", ".join(scores.score.values[unknown])
        warnings.warn(f"Skipping {names}: some experts have no value.", stacklevel=3)
    return scores.isel(score=np.flatnonzero(~unknown))


def orders_of(model: MoEModel, scores: xr.Dataset, random: int) -> dict[str, dict[int, np.ndarray]]:
    """Values by which experts are pruned, the lowest first, by order and layer."""
    layers = scores.layer.values.tolist()
    by_score = {
        str(name): {layer: values[row, : model.layer(layer).num_experts] for row, layer in enumerate(layers)}
        for name, values in zip(scores.score.values, importance(scores), strict=True)
    }
    return by_score | {f"{RANDOM} {draw}": random_values(model, layers, draw) for draw in range(random)}


def masks(pruned: Pruned) -> list[Mask]:
    """The masks of a set of experts."""
    return [Mask(layer, experts) for layer, experts in pruned.items()]
