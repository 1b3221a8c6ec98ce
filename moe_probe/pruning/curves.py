"""What pruning by each score costs on held-out texts, beside pruning at random."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import xarray as xr

from moe_probe.errors import NotComparable, NotFitting, WrongType
from moe_probe.intervene.mask import Mask
from moe_probe.intervene.measured.effects import effect
from moe_probe.model import MoEModel, Openable, load
from moe_probe.options import EFFECT_OPTIONS, TEXT_OPTIONS, RunOptions, completed
from moe_probe.pruning.agreeing import importance
from moe_probe.pruning.selecting import Per, Pruned, lowest, random_values
from moe_probe.results import dataset, provenance
from moe_probe.signatures import check_number, check_types, value_shown
from moe_probe.statistics.bootstrap import DRAWS
from moe_probe.texts.corpus import Corpus
from moe_probe.texts.reading import Texts
from moe_probe.texts.tokenizing import make_corpus

FRACTIONS = (0.125, 0.25, 0.5)
RANDOM = "random"  # the orders that no score gave
CHANGE = "change of the loss"


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
        scores: result of `pruning.scores`, of other texts.
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
        NotFitting: a document is among those that the scores are of, a score is nan, or too few experts would be left.

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
    check_scores(opened, scores)
    corpus = make_corpus(opened, texts, **{name: asked.pop(name) for name in TEXT_OPTIONS})
    check_held_out(scores.calibration.values.tolist() if "calibration" in scores else (), corpus)
    orders = orders_of(opened, scores, random)
    cells = [(name, fraction) for name in orders for fraction in fractions]
    pruned = [lowest(opened, orders[name], fraction, per) for name, fraction in cells]
    edits = {f"{at}": masks(own) for at, own in enumerate(pruned) if own}
    if not edits:
        raise NotFitting(f"No share of {list(fractions)} is a whole expert; pass larger fractions.")
    measured = effect(opened, corpus, edits, control=False, bootstrap=bootstrap, **asked)
    about = provenance("curve", opened, per=per, random=random, bootstrap=bootstrap)
    return _result(measured.sel(path="total"), corpus, list(orders), list(fractions), pruned, about)


def check_scores(model: MoEModel, scores: xr.Dataset) -> None:
    """Refuse what are no scores, or those of another model."""
    if not isinstance(scores, xr.Dataset) or scores.attrs.get("analysis") != "scores":
        raise WrongType(f"scores is {value_shown(scores)}; pass the result of pruning.scores.")
    if scores.attrs["fingerprint"] != model.fingerprint:
        raise NotComparable(f"The scores are of another model than {model.name}; compute them of this one.")


def check_held_out(digests: Iterable[int], corpus: Corpus) -> None:
    """Raises: NotFitting: a document is among those, by their digests, that the scores are of."""
    seen = set(digests)
    both = [
        document.number for document, digest in zip(corpus.documents, corpus.digests, strict=True) if digest in seen
    ]
    if both:
        raise NotFitting(
            f"{len(both)} of {len(corpus.documents)} documents, such as number {both[0]}, are among those that the "
            "scores were computed from; pass other texts, so that what is chosen on some is judged on others."
        )


def orders_of(model: MoEModel, scores: xr.Dataset, random: int) -> dict[str, dict[int, np.ndarray]]:
    """Values by which experts go, the lowest first, by order and layer."""
    layers = scores.layer.values.tolist()
    found = {
        str(name): {layer: own[row, : model.layer(layer).num_experts] for row, layer in enumerate(layers)}
        for name, own in zip(scores.score.values, importance(scores), strict=True)
    }
    return found | {f"{RANDOM} {draw}": random_values(model, layers, draw) for draw in range(random)}


def masks(pruned: Pruned) -> list[Mask]:
    """The masks of a set of experts."""
    return [Mask(layer, experts) for layer, experts in pruned.items()]


def _result(
    measured: xr.Dataset,
    corpus: Corpus,
    orders: Sequence[str],
    fractions: Sequence[float],
    pruned: Sequence[Pruned],
    about: Mapping[str, Any],
) -> xr.Dataset:
    tokens = np.array([len(document.ids) for document in corpus.documents])
    at = [int(name) for name in measured.edit.values]

    def grid(values: np.ndarray, unedited: float = 0.0) -> np.ndarray:
        """(..., edits) as (..., orders, fractions); nothing masked is the unedited run."""
        found = np.full((*values.shape[:-1], len(pruned)), unedited)
        found[..., at] = values
        return found.reshape(*values.shape[:-1], len(orders), len(fractions))

    dims = ("order", "fraction")
    found: dict[str, tuple[tuple[str, ...], np.ndarray, str, str]] = {}
    found["base_loss"] = ((), weighted(measured.base_loss.values, tokens - 1), "loss of the whole model", "nats")
    for end, text in ENDS.items():
        values = grid(measured[f"mean_loss_change{end}"].values)
        found[f"loss_change{end}"] = (dims, values, f"{CHANGE}{text}", "nats")
    found["kl"] = (dims, grid(weighted(measured.kl.values, tokens)), "KL divergence from the whole model", "nats")
    found["top1"] = (dims, grid(weighted(measured.top1.values, tokens), 1.0), "most likely next token kept", "1")
    counts = np.array([sum(map(len, own.values())) for own in pruned]).reshape(len(orders), len(fractions))
    found["pruned"] = (dims, counts, "experts that are masked", "experts")
    labels = sorted({document.label for document in corpus.documents})
    if any(labels):
        own = np.array([document.label for document in corpus.documents])
        by_label = [
            grid(weighted(measured.loss_change.values[:, own == label], tokens[own == label] - 1)) for label in labels
        ]
        found["label_loss_change"] = (
            ("order", "label", "fraction"),
            np.stack(by_label, 1),
            f"{CHANGE} by label",
            "nats",
        )
    coords = {"order": list(orders), "fraction": list(fractions), "label": labels}
    arrays = {
        name: xr.DataArray(values, {dim: coords[dim] for dim in own}, own, attrs={"long_name": text, "units": unit})
        for name, (own, values, text, unit) in found.items()
    }
    told = {name: measured.attrs[name] for name in ("documents", "tokens", "texts")}
    return dataset(arrays, {**about, **told, "definition": DEFINITION})


def weighted(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means of documents (..., documents), weighted by counts; documents of count 0 are left out."""
    used = counts > 0
    return np.asarray((values[..., used] * counts[used]).sum(-1) / max(counts[used].sum(), 1))


ENDS = {"": "", "_low": ", lower end of the 95 % interval", "_high": ", upper end of the 95 % interval"}
DEFINITION = (
    "Masked experts are as if deleted: never chosen, the others chosen and weighted by the router's own rules. Losses "
    "are mean negative log-likelihoods of all tokens but the first of a document, kl and top1 over all positions; none "
    "of the documents is among those that the scores were computed from."
)
