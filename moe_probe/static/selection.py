"""Which matrices an analysis compares: the arguments that all static analyses share."""

from __future__ import annotations

from collections.abc import Sequence

from moe_probe.errors import InputError
from moe_probe.families import DENSE, PROJECTIONS, SHARED
from moe_probe.model import MoEModel
from moe_probe.static.gram import Matrices


def left_out(model: MoEModel, layers: Sequence[int]) -> dict[str, str]:
    """The attribute `left_out` of a result: experts without matrices, by number and kind; empty if there are none."""
    kinds = model.layer(layers[0]).expert_kinds
    without = [f"{expert} ({kind})" for expert, kind in enumerate(kinds) if kind != "ffn"]
    return {"left_out": f"experts without matrices: {', '.join(without)}"} if without else {}


def select_projections(model: MoEModel, layers: Sequence[int], projections: Sequence[str] | str | None) -> list[str]:
    """`projections` in the order up, gate, down; by default those that the experts have.

    Raises:
        InputError: the experts have no such projection.
    """
    present = [p for p in PROJECTIONS if all(p in model.layer(layer).projections for layer in layers)]
    if projections is None:
        return present
    chosen = [projections] if isinstance(projections, str) else list(projections)
    unknown = [p for p in chosen if p not in present]
    if unknown or not chosen:
        raise InputError(f"The experts of {model.name} have the projections {present}; asked for {unknown or 'none'}.")
    return [p for p in present if p in chosen]


def select_matrices(
    model: MoEModel,
    layers: Sequence[int],
    projections: Sequence[str],
    baseline: MoEModel | None = None,
    shared: bool = False,
    experts: Sequence[str | int] | None = None,
) -> list[Matrices]:
    """The matrices of every layer and projection, in the order experts, `"S"`, `"F"`; checked, but not read.

    Raises:
        InputError: an expert, the shared block or the baseline does not exist in a layer.
        WeightError: a tensor is missing or has the wrong shape.
    """
    out = []
    for index in layers:
        layer = model.layer(index)
        labels = layer.weighted_experts if experts is None else tuple(str(e) for e in experts)
        if shared and not layer.num_shared:
            raise InputError(f"{model.name} has no shared expert in layer {index}; leave shared=True away.")
        if baseline is not None:
            _check_baseline(model, baseline, index)
        for projection in projections:
            tensors = [model.expert_tensor(index, label, projection) for label in labels]
            names = list(labels)
            if shared:
                tensors.append(model.expert_tensor(index, SHARED, projection))
                names.append(SHARED)
            if baseline is not None:
                tensors.append(baseline.expert_tensor(index, DENSE, projection))
                names.append(DENSE)
            out.append(Matrices(index, projection, tuple(names), tuple(tensors)))
    same = {matrices.labels for matrices in out}
    if len(same) > 1:
        raise InputError(f"The layers of {model.name} have different experts; analyse them apart with layers=.")
    if len(out[0].labels) < 2:
        raise InputError(f"{model.name} has {len(out[0].labels)} expert to compare; at least 2 are needed.")
    return out


def _check_baseline(model: MoEModel, baseline: MoEModel, index: int) -> None:
    if baseline.moe_layers:
        raise InputError(f"The baseline {baseline.name} is a Mixture-of-Experts itself; give a dense model.")
    if index >= baseline.num_layers or baseline.hidden_size != model.hidden_size:
        raise InputError(
            f"The baseline {baseline.name} ({baseline.num_layers} layers, width {baseline.hidden_size}) does not fit "
            f"{model.name} ({model.num_layers} layers, width {model.hidden_size})."
        )


def require_same_shape(matrices: Sequence[Matrices], what: str) -> None:
    """Raise `InputError` when the matrices that `what` compares entry by entry differ in shape."""
    for item in matrices:
        shapes = {tuple(tensor.shape) for tensor in item.tensors}
        if len(shapes) > 1:
            odd = next(
                label for label, t in zip(item.labels, item.tensors, strict=True) if t.shape != item.tensors[0].shape
            )
            raise InputError(
                f"{what} compares matrices of one shape; in layer {item.layer} {odd!r} differs from expert "
                f"{item.labels[0]}: {sorted(shapes)}. Use level='neuron_mean' or metric='cka' to include it."
            )
