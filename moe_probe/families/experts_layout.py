"""Locations of the up, gate and down projections inside an experts module, as transformers declares them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from moe_probe.checkpoint import LazyTensor
from moe_probe.errors import UnknownModel
from moe_probe.families.live import children, core, parameter, parameters

# names of linear layers in published shared blocks and dense FFNs: (up, gate, down), (up, down), (gate-up, down)
FFN_NAMES = (
    ("up_proj", "gate_proj", "down_proj"),
    ("w3", "w1", "w2"),
    ("up_proj", "down_proj"),
    ("gate_up_proj", "down_proj"),
    ("input_linear", "output_linear"),
)
FUSED = {"gate_up_proj", "input_linear"}


@dataclass(frozen=True)
class FusedExperts:
    """All experts in two tensors: gate and up fused (E, 2 ff, d), or up alone, and down (E, d, ff).

    Attributes:
        gate_up, down: names of the tensors, below the MoE block.
        transposed: True if the tensors are stored as (E, d, 2 ff) and (E, ff, d).
        interleaved: True if rows alternate gate, up, gate, up; False if all gate rows come before all up rows.
        gated: False if experts have no gate projection.
    """

    gate_up: str
    down: str
    transposed: bool = False
    interleaved: bool = False
    gated: bool = True

    @property
    def projections(self) -> tuple[str, ...]:
        return ("up", "gate", "down") if self.gated else ("up", "down")

    def size(self, block: nn.Module) -> tuple[int, int, int]:
        """Returns the number of experts, their width d and their number of neurons ff."""
        experts, rows, columns = parameter(block, self.down).shape
        return (experts, columns, rows) if self.transposed else (experts, rows, columns)

    def matrix(self, tensors: Mapping[str, LazyTensor], prefix: str, expert: int, projection: str) -> LazyTensor:
        """Returns one matrix of an expert: (ff, d) for up and gate, (d, ff) for down."""
        fused = tensors[prefix + (self.down if projection == "down" else self.gate_up)][expert]
        fused = fused.T if self.transposed else fused
        if projection == "down" or not self.gated:
            return fused
        part = ("gate", "up").index(projection)
        if self.interleaved:
            return fused[part::2]
        half = fused.shape[0] // 2
        return fused[part * half : (part + 1) * half]


@dataclass(frozen=True)
class FlatExperts:
    """DBRX: experts concatenated along rows, (E ff, d), for gate (w1), up (v1) and transposed down (w2)."""

    num_experts: int
    projections = ("up", "gate", "down")

    def size(self, block: nn.Module) -> tuple[int, int, int]:
        rows, width = parameter(block, "experts.mlp.w2").shape
        return self.num_experts, width, rows // self.num_experts

    def matrix(self, tensors: Mapping[str, LazyTensor], prefix: str, expert: int, projection: str) -> LazyTensor:
        rows = tensors[prefix + "experts.mlp." + {"up": "v1", "gate": "w1", "down": "w2"}[projection]]
        neurons = rows.shape[0] // self.num_experts
        matrix = rows[expert * neurons : (expert + 1) * neurons]
        return matrix.T if projection == "down" else matrix


# layouts of experts modules without the attributes by which transformers declares them, by class name
UNDECLARED = {
    "Llama4TextExperts": FusedExperts("experts.gate_up_proj", "experts.down_proj", transposed=True),
    "LongcatFlashExperts": FusedExperts("experts.gate_up_proj", "experts.down_proj"),
    "Step3p7Experts": FusedExperts("experts.gate_up_proj", "experts.down_proj"),
}


def experts_layout(block: nn.Module) -> FusedExperts | FlatExperts | None:
    """Returns the layout of a MoE block's experts; None if `block` is not a MoE block.

    Raises:
        UnknownModel: the block has experts whose layout is not known.
    """
    if type(block).__name__ == "JetMoeMoE":
        return FusedExperts("input_linear.weight", "output_linear.weight")
    wrapped = block._modules.get("experts")
    if wrapped is None:
        return None
    experts = core(wrapped)
    if hasattr(experts, "is_concatenated") and hasattr(experts, "is_transposed"):
        declared: Any = experts
        return FusedExperts(
            gate_up="experts.gate_up_proj" if declared.has_gate else "experts.up_proj",
            down="experts.down_proj",
            transposed=declared.is_transposed,
            interleaved=not declared.is_concatenated,
            gated=declared.has_gate,
        )
    if type(experts).__name__ == "DbrxExperts":
        return FlatExperts(int(getattr(experts, "num_experts", 0)))
    if type(experts).__name__ in UNDECLARED:
        return UNDECLARED[type(experts).__name__]
    if any(p.ndim == 3 for _, p in parameters(experts)) or isinstance(experts, nn.ModuleList):
        raise UnknownModel(
            f"The layout of {type(experts).__name__} is not declared and not known to moe_probe; add a family for the "
            "model, see docs/add_a_family.md."
        )
    return None


@dataclass(frozen=True)
class FfnLayout:
    """The layout of a plain FFN of linear layers, or of the stacked shared experts of a block."""

    names: tuple[str, ...]

    @property
    def projections(self) -> tuple[str, ...]:
        return ("up", "down") if self.names == ("up_proj", "down_proj") else ("up", "gate", "down")

    @property
    def down(self) -> str:
        """Name of the down projection."""
        return self.names[-1]

    def neurons(self, ffn: nn.Module) -> int:
        """Returns the number of neurons of a plain FFN: the columns of its down projection, which may be packed."""
        down = ffn._modules.get(self.down)
        linear = ffn if down is None else core(down)
        columns = getattr(linear, "in_features", None)
        return columns if isinstance(columns, int) else dict(parameters(ffn))[self._down_name(ffn)].shape[1]

    def _down_name(self, ffn: nn.Module) -> str:
        return self.down if ffn._parameters.get(self.down) is not None else self.down + ".weight"

    def matrix(self, tensors: Mapping[str, LazyTensor], prefix: str, projection: str) -> LazyTensor:
        """Returns one matrix of the FFN: (ff, d) for up and gate, (d, ff) for down."""
        if self.names[0] in FUSED and projection != "down":
            rows = _weight(tensors, prefix + self.names[0])
            half, part = rows.shape[0] // 2, ("gate", "up").index(projection)
            return rows[part * half : (part + 1) * half]
        name = self.down if projection == "down" else self.names[self.projections.index(projection)]
        weight = _weight(tensors, prefix + name)
        if weight.ndim == 3:  # n shared experts, (n, ff, d) or (n, d, ff), become one block with all their neurons
            experts, rows, columns = weight.shape
            if projection == "down":
                return weight.permute(1, 0, 2).reshape(rows, experts * columns)
            return weight.reshape(experts * rows, columns)
        return weight


def _weight(tensors: Mapping[str, LazyTensor], name: str) -> LazyTensor:
    return tensors[name + ".weight"] if name + ".weight" in tensors else tensors[name]


def ffn_layout(module: nn.Module) -> FfnLayout | None:
    """Returns the layout of a plain FFN module; None for any other module."""
    names = children(module).keys() | module._parameters.keys()
    return next((FfnLayout(candidate) for candidate in FFN_NAMES if names.issuperset(candidate)), None)
