"""Selection of the matrices that an analysis compares, from arguments that all static analyses share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from moe_probe.errors import NoSuchName, NotFitting, WrongType
from moe_probe.families import DENSE, PROJECTIONS, SHARED
from moe_probe.model import MoEModel
from moe_probe.static.gram import Matrices


def left_out(model: MoEModel, layers: Sequence[int]) -> dict[str, str]:
    """Returns the attribute `left_out` of a result: experts without matrices, by number and kind; empty if none."""
    kinds = model.layer(layers[0]).expert_kinds
    without = [f"{expert} ({kind})" for expert, kind in enumerate(kinds) if kind != "ffn"]
    return {"left_out": f"experts without matrices: {', '.join(without)}"} if without else {}


def select_projections(model: MoEModel, layers: Sequence[int], projections: Sequence[str] | str | None) -> list[str]:
    """Returns `projections` in the order up, gate, down; by default those that the experts have.

    Raises:
        NoSuchName: the experts have no such projection.
        NotFitting: the list is empty.
    """
    present = [p for p in PROJECTIONS if all(p in model.layer(layer).projections for layer in layers)]
    if projections is None:
        return present
    chosen = as_list("projections", projections)
    for name in chosen:
        if name not in present:
            raise NoSuchName.among(f"projection of the experts of {model.name}", name, present)
    if not chosen:
        raise NotFitting(
            f"projections is an empty list; {model.name} has {', '.join(present)}; pass at least one of them."
        )
    return [p for p in present if p in chosen]


def select_matrices(
    model: MoEModel,
    layers: Sequence[int],
    projections: Sequence[str],
    baseline: MoEModel | None = None,
    shared: bool = False,
    experts: Sequence[str | int] | None = None,
) -> list[Matrices]:
    """Returns the matrices of every layer and projection, in the order experts, `"S"`, `"F"`; checked, but not read.

    Raises:
        NotFitting: an expert, the shared block or the baseline does not exist in a layer.
        WeightError: a tensor is missing or has the wrong shape.
    """
    for each in (model, baseline):
        if each is not None:
            each.require_unchanged()
    out = []
    for index in layers:
        layer = model.layer(index)
        labels = layer.weighted_experts if experts is None else _distinct(experts)
        if shared and not layer.num_shared:
            raise NotFitting(f"{model.name} has no shared expert in layer {index}; omit shared=True.")
        if baseline is not None:
            _check_baseline(model, baseline, index)
        names = (*labels, *([SHARED] if shared else ()), *([DENSE] if baseline is not None else ()))
        for projection in projections:
            tensors = [model.expert_tensor(index, label, projection) for label in (*labels, *([SHARED] * shared))]
            if baseline is not None:
                tensors.append(baseline.expert_tensor(index, DENSE, projection))
            out.append(Matrices(index, projection, names, tuple(tensors)))
    _check_labels(model, out)
    return out


def _distinct(experts: Sequence[str | int]) -> tuple[str, ...]:
    labels = tuple(str(expert) for expert in as_list("experts", experts))
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise NotFitting(f"experts names {twice} more than once; name each expert once.")
    return labels


def _check_labels(model: MoEModel, chosen: Sequence[Matrices]) -> None:
    different = sorted({len(matrices.labels) for matrices in chosen})
    if len({matrices.labels for matrices in chosen}) > 1:
        counts = " and ".join(map(str, different))
        raise NotFitting(
            f"The chosen layers of {model.name} differ in their experts ({counts} with weights); pass "
            "layers= of one shape."
        )
    if different[0] < 2:
        count = "1 expert" if different[0] else "no experts"
        raise NotFitting(f"{model.name} has {count} to compare here; a comparison needs at least 2.")


def _check_baseline(model: MoEModel, baseline: MoEModel, index: int) -> None:
    if baseline.moe_layers:
        raise NotFitting(
            f"The baseline {baseline.name} is a Mixture-of-Experts model; pass a dense model as the baseline, or "
            "omit baseline=."
        )
    if index >= baseline.num_layers or baseline.hidden_size != model.hidden_size:
        raise NotFitting(
            f"The baseline {baseline.name} ({baseline.num_layers} layers, width {baseline.hidden_size}) does not fit "
            f"{model.name} ({model.num_layers} layers, width {model.hidden_size}); pass a dense model of the same "
            "shape, or omit baseline=."
        )


def require_same_shape(matrices: Sequence[Matrices], what: str) -> None:
    """Raises `NotFitting` if the matrices that `what` compares entry by entry differ in shape."""
    for item in matrices:
        shapes = {tuple(tensor.shape) for tensor in item.tensors}
        if len(shapes) > 1:
            odd = next(
                label for label, t in zip(item.labels, item.tensors, strict=True) if t.shape != item.tensors[0].shape
            )
            raise NotFitting(
                f"{what} compares matrices of one shape; in layer {item.layer} {odd!r} differs from expert "
                f"{item.labels[0]}: {sorted(shapes)}. Use level='neuron_mean' or metric='cka' to include it."
            )


def as_list(name: str, given: object) -> list[Any]:
    """Returns a name or number, or several, as a list.

    Raises:
        WrongType: the value is neither.
    """
    if isinstance(given, str | int):
        return [given]
    if not isinstance(given, Iterable):
        raise WrongType(f"{name}={given!r} is not a list; pass a list of names, or one name.")
    return list(given)
