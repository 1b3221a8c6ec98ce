"""Descriptions of models and the location of their weights, in terms that all families share."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from moe_probe.errors import CheckpointError, DamagedFile, DenseModel, NoSuchName, WeightError, WrongShape
from moe_probe.shown import html_table

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from moe_probe.checkpoint import LazyTensor
    from moe_probe.families.counting import Counts

# keys of tensors that change the meaning of weight `X`: `X.scales`, `X.weight_scale`, `X.lora_A.weight`
COMPANION = re.compile(
    r"(.+?)(?:\.weight)?[._](?:\w*(?:scales?(?:_inv|_\d)?|zeros?|zero_points?|biases|codes|codebooks?|absmax|g_idx|perm|SCB)|"
    r"(?:quant|lora)_\w+)(?:\.(?:\w+\.)?(?:weight|default))?"
)
# keys of scales of activations, which do not change the meaning of a weight
OF_ACTIVATIONS = re.compile(
    r"(^|[._])(input|output|activation|act|[qkv]|kv)_(scale|zero_point|global_scale)(_inv|_ub)?$"
)
PROJECTIONS = ("up", "gate", "down")
SHARED = "S"
DENSE = "F"


@dataclass(frozen=True)
class Layer:
    """The description of one decoder layer.

    Attributes:
        index: number of the layer, as in the checkpoint.
        hidden_size: width d of the residual stream.
        intermediate_size: number ff of neurons of one routed expert; in a dense layer, of its FFN (0 if it has none).
        num_experts: number E of routed experts of all kinds; 0 in a dense layer.
        top_k: number k of experts chosen per token (per sub-token in MH-MoE).
        expert_kinds: kind of each routed expert: `ffn`, `constant`, `copy` or `zero`.
        num_shared: number of shared experts that every token uses; published models store them as one FFN, labeled
            `"S"`.
        subtokens: number of parts into which the layer splits a token before routing (MH-MoE); 1 in other layers.
        projections: the matrices of an FFN expert, in the order up, gate, down.
    """

    index: int
    hidden_size: int
    intermediate_size: int
    num_experts: int = 0
    top_k: int = 0
    expert_kinds: tuple[str, ...] = ()
    num_shared: int = 0
    subtokens: int = 1
    projections: tuple[str, ...] = PROJECTIONS

    def __post_init__(self):
        if self.top_k > self.num_experts or (self.is_moe and self.top_k < 1):
            raise DamagedFile(
                f"The configuration chooses {self.top_k} of {self.num_experts} experts per token in layer {self.index}"
                "; use the configuration that was published with the weights."
            )

    def _repr_html_(self) -> str:
        kinds = ", ".join(f"{self.expert_kinds.count(kind)} {kind}" for kind in dict.fromkeys(self.expert_kinds))
        rows: list[tuple[str, object]] = [("hidden size", self.hidden_size), ("neurons", self.intermediate_size)]
        if self.is_moe:
            rows += [("experts", kinds), ("top-k", self.top_k), ("shared experts", self.num_shared)]
            rows += [("sub-tokens", self.subtokens)] if self.subtokens > 1 else []
        rows.append(("projections", ", ".join(self.projections) or "none"))
        return html_table(f"layer {self.index}, {'MoE' if self.is_moe else 'dense'}", rows)

    @property
    def is_moe(self) -> bool:
        """Whether the layer has routed experts."""
        return self.num_experts > 0

    @property
    def expert_hidden_size(self) -> int:
        """Width of an expert's input and output: d divided by the number of sub-tokens."""
        return self.hidden_size // self.subtokens

    @property
    def weighted_experts(self) -> tuple[str, ...]:
        """Labels of the routed experts that have weights (kind `ffn`)."""
        return tuple(str(e) for e, kind in enumerate(self.expert_kinds) if kind == "ffn")


class Architecture(ABC):
    """A family's description applied to one checkpoint: layers, and lazy tensors by role.

    Attributes:
        config: the transformers configuration of the torch module.
        published: every stored tensor, by its key before the conversion to module parameters.
    """

    num_layers: int
    hidden_size: int

    def __init__(self, config: PreTrainedConfig, published: Mapping[str, LazyTensor]):
        self.config, self.published = config, published

    def check(self) -> None:
        """Raises an error if the description does not fit the checkpoint."""
        self.layer(0)

    def check_matrices(self, router: bool = True) -> None:
        """Compares the shape of every matrix with the configuration, without reading values.

        Raises:
            WeightError: a matrix is missing, has a wrong shape, or does not hold floating-point numbers.
        """
        for layer in map(self.layer, range(self.num_layers)):
            routed = [*layer.weighted_experts, *([SHARED] if layer.num_shared else [])]
            for label in routed if layer.is_moe else [DENSE] if layer.projections else []:
                for projection in layer.projections:
                    self.expert(layer.index, label, projection)
            if layer.is_moe and router:
                self.router(layer.index)

    @property
    @abstractmethod
    def skeleton(self) -> PreTrainedModel:
        """The torch module, live or on the meta device."""

    @cached_property
    def counts(self) -> Counts:
        """Numbers of parameters of the language model, and of the module's other parts."""
        from moe_probe.families.counting import count_parameters

        return count_parameters(self.skeleton)

    @abstractmethod
    def unused(self) -> Mapping[str, LazyTensor]:
        """Returns the published tensors that go into no parameter or buffer of the module."""

    @abstractmethod
    def layer(self, index: int) -> Layer:
        """Returns the description of decoder layer `index`."""

    @abstractmethod
    def _router(self, layer: Layer) -> tuple[str, LazyTensor]:
        """Returns name and tensor of the router's weight (the gate embeddings)."""

    @abstractmethod
    def _expert(self, layer: Layer, label: str, projection: str) -> tuple[str, LazyTensor]:
        """Returns name and tensor of one matrix of a routed expert, the shared block or the dense FFN."""

    def router(self, index: int) -> LazyTensor:
        """Returns the router's weight, (E, d), with one gate embedding per row.

        Raises:
            DenseModel: the layer is dense and has no router.
            WeightError: the tensor is missing or its number of rows is not the number of experts.
        """
        layer = self.layer(index)
        if not layer.is_moe:
            raise DenseModel(f"Layer {index} is dense and has no router; choose one of the model's moe_layers.")
        name, tensor = self._router(layer)
        _require_floating(name, tensor)
        if tensor.shape[0] != layer.num_experts:
            raise WrongShape(
                f"{name} has shape {tuple(tensor.shape)}, but the configuration has {layer.num_experts} experts."
            )
        return tensor

    def expert(self, index: int, label: str, projection: str) -> LazyTensor:
        """Returns one matrix of an expert: up and gate are (ff, d), down is (d, ff), however they are stored.

        Raises:
            NoSuchName: the layer has no such expert or projection.
            WeightError: the tensor is missing, or its shape does not fit the configuration.
        """
        layer = self.layer(index)
        if projection not in layer.projections:
            raise NoSuchName(f"Layer {index} has the projections {layer.projections}, not {projection!r}.")
        known = [*layer.weighted_experts, *([SHARED] if layer.num_shared else [])] if layer.is_moe else [DENSE]
        if label not in known:
            raise NoSuchName(
                f"Layer {index} has no expert {label!r} with weights; it has {known[0]!r} to {known[-1]!r}."
                if layer.is_moe
                else f"Layer {index} is dense: its FFN is {DENSE!r}, not {label!r}."
            )
        name, tensor = self._expert(layer, label, projection)
        _require_floating(name, tensor)
        width, neurons = layer.expert_hidden_size, layer.intermediate_size
        if label == SHARED:
            width, neurons = layer.hidden_size, tensor.shape[1 if projection == "down" else 0]
        expected = (width, neurons) if projection == "down" else (neurons, width)
        if tuple(tensor.shape) != expected:
            raise WrongShape(
                f"{name} has shape {tuple(tensor.shape)}, but the configuration calls for {expected} (layer {index}, "
                f"expert {label}, {projection} projection)."
            )
        return tensor


def require_explained(used: Collection[str], unused: Collection[str]) -> None:
    """Raises an error if an unused tensor, such as a scale, changes the meaning of a used weight.

    Raises:
        CheckpointError: there is such a tensor; the message names the first one.
    """
    for key in unused:
        match = COMPANION.fullmatch(key)
        if match is not None and not OF_ACTIVATIONS.search(key):
            stem = match[1]
            weight = next(
                (name for name in (stem, f"{stem}.weight", f"{stem}.base_layer.weight") if name in used), None
            )
            if weight is not None:
                raise CheckpointError(
                    f"{key!r} stands beside {weight!r} and changes what it means, but the configuration does not say "
                    "how; use the published config.json, or the unquantized release."
                )


def _require_floating(name: str, tensor: LazyTensor) -> None:
    if not tensor.is_floating_point:
        raise WeightError(
            f"{name} is stored as {tensor.kind}, expected floating-point numbers; use the unquantized release."
        )
