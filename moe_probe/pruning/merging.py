"""Cost of merging experts on held-out texts, compared with pruning to the same size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Unpack, get_args

import numpy as np
import xarray as xr

from moe_probe.errors import NotComparable, WrongType
from moe_probe.model import MoEModel, Openable, load
from moe_probe.options import EFFECT_OPTIONS, TEXT_OPTIONS, RunOptions, completed
from moe_probe.pruning.costs import check_held_out, check_of_model, measured_costs
from moe_probe.pruning.curves import MASKED, RANDOM, masks, orders_of, with_values
from moe_probe.pruning.grouping import Average, Groups
from moe_probe.pruning.selecting import check_values, random_values
from moe_probe.results import dataset, provenance, variable
from moe_probe.routing import Intervention
from moe_probe.signatures import check_number, value_shown
from moe_probe.statistics.bootstrap import DRAWS
from moe_probe.texts.reading import Texts
from moe_probe.texts.tokenizing import make_corpus

MERGED = (
    "Merged experts all run with the average of their group's weights, and the router chooses as before; in a pruned "
    "layer as many experts stay as there are groups, but no fewer than a token chooses."
)


def merging(
    model: Openable,
    groups: Mapping[str, Groups] | Groups,
    texts: Texts,
    *,
    scores: xr.Dataset | None = None,
    random: int = 3,
    bootstrap: int = DRAWS,
    **options: Unpack[RunOptions],
) -> xr.Dataset:
    """Measures the held-out loss with experts merged, for each way of averaging, and with experts pruned instead.

    Args:
        model: the model of the groups.
        groups: one `Groups`, or several by name.
        texts: held-out texts, without any document from which groups or scores were computed: strings, lists of token
            ids, a file of texts, a `datasets` dataset, a table, or a `Corpus`.
        scores: result of `pruning.scores`; each of its scores prunes to the same size. A score without a value for an
            expert that a row chose is skipped, with a warning.
        random: number of random orders of the experts to prune by, from the seeds 0, 1, ...
        bootstrap: resamples of documents for the intervals; 0 for none.
        options: those of `dynamic.run` except `baseline` and `layers`.

    Returns:
        Dataset whose `way` is how a group's weights are averaged (`usage`, `equal`, `usage aligned`, `equal aligned`),
        or how experts are pruned (`pruned by <score>`, `pruned at random <draw>`), with

        - `loss_change` (groups, way), the mean change over all predicted tokens, nats, with `_low` and `_high`, the
          95 % interval over documents;
        - `kl` (groups, way), the mean KL(whole || changed) over all positions, nats, of float32 log-probabilities,
          whose rounding is up to 1e-6 nats and may be below 0;
        - `top1` (groups, way), the share of positions whose most likely next token stays;
        - `label_loss_change` (label, groups, way), nats, if documents have labels;
        - `experts_left` (groups), the number in all layers together;
        - `base_loss` (), nats.

    Raises:
        NotComparable: groups or scores are of another model.
        NotFitting: groups or scores were computed from one of the documents, or a score is nan.

    Examples:
        >>> from moe_probe import pruning
        >>> four = pruning.groups("ckpt/tiny-mixtral", [[5, 6, 7, 8]], 4)
        >>> pruning.merging("ckpt/tiny-mixtral", four, [[9, 10, 11]], random=1).way.values.tolist()
        ['usage', 'equal', 'usage aligned', 'equal aligned', 'pruned at random 0']
    """
    check_number("random", random, 0)
    asked: dict[str, Any] = completed(options, EFFECT_OPTIONS, "merging")
    opened = load(model)
    named = named_groups(opened, groups)
    digests = {digest for each in named.values() for digest in each.calibration}
    if scores is not None:
        check_of_model(opened, scores, "scores")
        scores = with_values(scores)
        digests |= set(scores.calibration.values.tolist() if "calibration" in scores else ())
    corpus = make_corpus(opened, texts, **{name: asked.pop(name) for name in TEXT_OPTIONS})
    check_held_out(digests, corpus)
    ways = [ways_of(opened, each, scores, random) for each in named.values()]
    dims = {"groups": list(named), "way": list(ways[0])}
    sets = [several for of_groups in ways for several in of_groups.values()]
    arrays, told = measured_costs(opened, corpus, sets, dims, bootstrap, asked)
    left = [sum(map(len, each.groups.values())) for each in named.values()]
    arrays["experts_left"] = variable(("groups",), left, "experts left", "experts")
    about = provenance("merging", opened, random=random, bootstrap=bootstrap)
    told["definition"] = f"{MERGED} {MASKED} {told['definition']}"
    ways_found = {name: f"by {each.by}, {each.method}" for name, each in named.items()}
    return dataset(arrays, {**about, **told, "found": [ways_found[name] for name in named]})


def named_groups(model: MoEModel, groups: Mapping[str, Groups] | Groups) -> dict[str, Groups]:
    """Returns groups by name.

    Raises:
        WrongType: a value is not `Groups`.
        NotComparable: groups are of another model.
    """
    named = {"groups": groups} if isinstance(groups, Groups) else groups
    if not isinstance(named, Mapping) or not named or not all(isinstance(each, Groups) for each in named.values()):
        raise WrongType(f"groups is {value_shown(groups)}; pass the result of pruning.groups, or several by name.")
    counts = {layer: model.layer(layer).num_experts for layer in model.moe_layers}
    for name, each in named.items():
        if any(counts.get(layer) != len(usage) for layer, usage in each.usage.items()):
            raise NotComparable(f"The groups {name!r} are of {each.model}, not of {model.name}; compute them for it.")
    return {str(name): each for name, each in named.items()}


def ways_of(
    model: MoEModel, groups: Groups, scores: xr.Dataset | None, random: int
) -> dict[str, Sequence[Intervention]]:
    """Interventions that leave the same number of experts in each layer, by the name of the way."""
    ways: dict[str, Sequence[Intervention]] = {
        f"{average} aligned" if aligned else average: groups.merges(average, aligned)
        for aligned, average in product((False, True), get_args(Average))
    }
    orders = {} if scores is None else {f"pruned by {name}": of for name, of in orders_of(model, scores, 0).items()}
    drawn = {f"pruned at {RANDOM} {draw}": random_values(model, list(groups.groups), draw) for draw in range(random)}
    for name, values in (orders | drawn).items():
        ways[name] = masks(lowest_beyond(model, groups, values))
    return ways


def lowest_beyond(model: MoEModel, groups: Groups, values: Mapping[int, np.ndarray]) -> dict[int, tuple[int, ...]]:
    """The lowest experts of each layer, except as many as there are groups, and at least as many as a token chooses.

    Raises:
        NotComparable: the scores lack a layer of the groups.
        NotFitting: a value is nan.
    """
    gone: dict[int, tuple[int, ...]] = {}
    for layer, several in groups.groups.items():
        if layer not in values:
            raise NotComparable(
                f"The scores lack layer {layer}, which the groups have; compute both of the same layers."
            )
        check_values({layer: values[layer]})
        count = len(values[layer]) - max(len(several), model.layer(layer).top_k)
        gone[layer] = tuple(sorted(np.argsort(values[layer], kind="stable")[:count].tolist()))
    return {layer: experts for layer, experts in gone.items() if experts}
