"""Families described by templates of tensor keys, and by a function from the configuration to layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedModel

from moe_probe.checkpoint import Checkpoint, LazyTensor
from moe_probe.errors import DamagedFile, NoSuchName
from moe_probe.families.architecture import DENSE, SHARED, Architecture, Layer, require_explained
from moe_probe.families.conversion import Converted
from moe_probe.families.modules import make_config, meta_module
from moe_probe.families.sizes import positive


@dataclass(frozen=True)
class Described:
    """A family given as data: a function from `config.json` to layers, and templates of the published keys.

    Attributes:
        name: the family's name.
        model_types: values of `model_type` that belong to it.
        make_layer: returns the description of a layer, from the configuration and the layer's index.
        experts: key template of a routed expert's matrix by projection, with `{layer}` and `{expert}`.
        router, shared, dense: key templates of the router, the shared block and the dense FFN; None if the family
            lacks the part.
    """

    name: str
    model_types: tuple[str, ...]
    make_layer: Callable[[Mapping[str, Any], int], Layer]
    experts: Mapping[str, str] | None = None
    router: str | None = None
    shared: Mapping[str, str] | None = None
    dense: Mapping[str, str] | None = None

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether `model_type` is one of the family's, and layer 0 has the family's router key (if there is one)."""
        as_published = self.router is None or self.router.format(layer=0) in checkpoint
        return checkpoint.config.get("model_type") in self.model_types and as_published

    def open(self, checkpoint: Checkpoint) -> Architecture:
        """Returns the architecture of a checkpoint."""
        return DescribedArchitecture(self, checkpoint)


class DescribedArchitecture(Architecture):
    """A `Described` family with the tensors of one checkpoint."""

    def __init__(self, family: Described, checkpoint: Checkpoint):
        super().__init__(make_config(checkpoint.config), checkpoint)
        self.family, self.fields = family, RequiredFields(checkpoint.config)
        self.num_layers = positive(self.fields, "num_hidden_layers")
        self.hidden_size = positive(self.fields, "hidden_size")

    @property
    def skeleton(self) -> PreTrainedModel:
        return self._module

    @cached_property
    def _module(self) -> PreTrainedModel:
        return meta_module(self.config)

    def unused(self) -> Mapping[str, LazyTensor]:
        return Converted(self.skeleton, self.published).unused()

    def check(self) -> None:
        """Compares the shape of every matrix with the configuration, without reading values."""
        self.check_matrices()
        unused = self.unused()
        require_explained([key for key in self.published if key not in unused], unused)

    def layer(self, index: int) -> Layer:
        return self.family.make_layer(self.fields, index)

    def _router(self, layer: Layer) -> tuple[str, LazyTensor]:
        return self._tensor(self.family.router, layer, "")

    def _expert(self, layer: Layer, label: str, projection: str) -> tuple[str, LazyTensor]:
        templates = {SHARED: self.family.shared, DENSE: self.family.dense}.get(label, self.family.experts)
        return self._tensor(None if templates is None else templates[projection], layer, label)

    def _tensor(self, template: str | None, layer: Layer, label: str) -> tuple[str, LazyTensor]:
        if template is None:
            raise NoSuchName(f"{self.family.name} has no such part as {label or 'a router'} in layer {layer.index}.")
        key = template.format(layer=layer.index, expert=label)
        return key, self.published[key]


class RequiredFields(dict):
    """A configuration that raises `DamagedFile`, naming the field, if a field is missing."""

    def __missing__(self, field: str) -> Any:
        raise DamagedFile(
            f"config.json of this {self.get('model_type')!r} model lacks the field {field!r}; use the published file."
        )
