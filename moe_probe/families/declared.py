"""Families that only declare where their matrices are; they have no torch module and support static analyses only.

Most sizes come from the tensors; the configuration gives the number of experts per token. Ten lines are enough to
declare another model, see docs/add_a_family.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from moe_probe.checkpoint import Checkpoint, LazyTensor
from moe_probe.errors import CannotWatch, DamagedFile, MissingWeight, NoSuchName, WrongShape
from moe_probe.families.architecture import DENSE, PROJECTIONS, SHARED, Architecture, Layer, require_explained
from moe_probe.families.counting import Counts
from moe_probe.families.sizes import positive

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "block_count")
WIDTH = ("hidden_size", "d_model", "dim", "embedding_length")
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "top_k", "topk", "expert_used_count")
EXPERT_COUNT = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "expert_count")
SHARED_COUNT = ("num_shared_experts", "n_shared_experts", "num_shared_expert", "moe_num_shared_experts")
EMBEDDINGS = re.compile(r"(embed_tokens|tok_embeddings|token_embd|word_embeddings|wte)\.weight$")
# keys outside the layers of the language model: multi-token prediction, vision and audio towers
APART = re.compile(r"(^|\.)(mtp\w*|nextn|visual|vision\w*|vit\w*|audio\w*|mm_projector|multi_modal\w*)\.")


@dataclass(frozen=True)
class At:
    """The location of a matrix inside a stored tensor.

    Attributes:
        key: key template with `{layer}` and `{expert}`; without `{expert}`, experts are the tensor's first dimension.
        transposed: whether the matrix is stored as (in, out).
        part: `(i, n)` selects part i, from 0, of n equal parts of the rows; None selects all rows.
    """

    key: str
    transposed: bool = False
    part: tuple[int, int] | None = None

    def matrix(self, tensors: Mapping[str, LazyTensor], layer: int, expert: str) -> tuple[str, LazyTensor]:
        """Returns the tensor's key, and the matrix."""
        key = self.key.format(layer=layer, expert=expert)
        tensor = tensors[key]
        if "{expert}" not in self.key and tensor.ndim == 3 and expert.isdigit():
            tensor = tensor[int(expert)]
        tensor = tensor.T if self.transposed else tensor
        if self.part is None:
            return key, tensor
        rows = tensor.shape[0] // self.part[1]
        return key, tensor[self.part[0] * rows : (self.part[0] + 1) * rows]


Keys = Mapping[str, str | At]  # projection to key template or location


@dataclass(frozen=True)
class Declared:
    """A family without a torch module: the keys of its matrices, by role.

    A layer is a MoE layer if the checkpoint has the down projection of its first expert.

    Attributes:
        name: the family's name.
        model_types: values of `model_type` that belong to it.
        experts: keys of a routed expert's matrices by projection, with `{layer}` and `{expert}`.
        router: key of the gate embeddings; None if the router is not a matrix with one row per expert.
        shared, dense: keys of the shared block and of a dense layer's FFN; a layer may lack them.
        top_k: config field (or `object.field`) with the number of experts per token, if its name is not in `TOP_K`.
        because: the reason, in error messages, why dynamic analyses do not work.
        fields: values of config fields that the file omits.
        otherwise: declarations of the same model with the keys of other releases.
    """

    name: str
    model_types: tuple[str, ...]
    experts: Keys
    router: str | None = None
    shared: Keys | None = None
    dense: Keys | None = None
    top_k: str | None = None
    because: str = "transformers has no code for it"
    fields: Mapping[str, Any] = field(default_factory=dict)
    otherwise: tuple[Declared, ...] = ()

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether `model_type` is one of the family's, and some layer has experts under the declared keys."""
        spellings = (self, *self.otherwise)
        return checkpoint.config.get("model_type") in self.model_types and any(
            spelling._has(at(next(iter(spelling.experts.values()))).key, checkpoint) for spelling in spellings
        )

    @staticmethod
    def _has(key: str, checkpoint: Mapping[str, LazyTensor]) -> bool:
        pattern = re.escape(key).replace(r"\{layer\}", r"\d+").replace(r"\{expert\}", "0")
        return any(re.fullmatch(pattern, name) for name in checkpoint)

    def open(self, checkpoint: Checkpoint) -> Architecture:
        """Returns the architecture of a checkpoint, by the first declaration whose keys the checkpoint has."""
        for spelling in (self, *self.otherwise):
            experts = at(next(iter(spelling.experts.values()))).key
            if all(self._has(key, checkpoint) for key in (experts, spelling.router) if key is not None):
                return DeclaredArchitecture(spelling, checkpoint)
        return DeclaredArchitecture(self, checkpoint)


def at(place: str | At) -> At:
    """Returns the location of a matrix; a key alone becomes `At(key)`."""
    return At(place) if isinstance(place, str) else place


class DeclaredArchitecture(Architecture):
    """A `Declared` family with the tensors of one checkpoint."""

    def __init__(self, family: Declared, checkpoint: Checkpoint):
        self.family, self.fields = family, {**family.fields, **_flat(checkpoint.config)}
        self.published = checkpoint
        self.num_layers = self._number(LAYERS)
        self.hidden_size = self._number(WIDTH)

    @cached_property
    def config(self) -> PreTrainedConfig:  # pyright: ignore[reportIncompatibleVariableOverride] - built on first use
        """A transformers configuration with vocabulary size, model type and dtype only."""
        return _config(self.fields, self.published)

    def _number(self, names: Sequence[str], layer: int = 0) -> int:
        """Returns the first size that the configuration has; from a list with one value per layer, that of `layer`."""
        name = next((name for name in names if name in self.fields), None)
        if name is None:
            raise DamagedFile(
                f"config.json of this {self.family.name!r} model has none of the fields {', '.join(names)}; use the "
                "published file, or pass the field: config={...}."
            )
        value = self.fields[name]
        each = value[layer] if isinstance(value, list) and layer < len(value) else value
        return positive({name: each}, name)

    @property
    def skeleton(self) -> PreTrainedModel:
        raise CannotWatch(
            f"{self.family.name} models open for static analyses only, because {self.family.because}; for dynamic "
            "ones, load the model with its publisher's code and pass the live module."
        )

    @cached_property
    def counts(self) -> Counts:
        apart = {id(tensor) for tensor in self.unused().values()}
        return Counts(sum(t.numel() for t in self.published.values() if id(t) not in apart), {})

    def unused(self) -> Mapping[str, LazyTensor]:
        behind = re.compile(r"(?:^|\.)(?:layers|blocks|blk|h)\.(\d+)\.")

        def apart(key: str) -> bool:
            layer = behind.search(key)
            return bool(APART.search(key)) or (layer is not None and int(layer[1]) >= self.num_layers)

        return {key: tensor for key, tensor in self.published.items() if apart(key)}

    def check(self) -> None:
        """Compares the shape of every matrix with the sizes, without reading values.

        Raises:
            WeightError: a matrix is missing or has a wrong shape, or a layer's number of experts differs from the
                configuration's.
        """
        self.check_matrices(router=self.family.router is not None)
        self._check_stated_experts()
        require_explained(self.published, self.published)

    def _check_stated_experts(self) -> None:
        stated = {name: self.fields[name] for name in EXPERT_COUNT if isinstance(self.fields.get(name), int)}
        for layer in map(self.layer, range(self.num_layers)):
            if layer.is_moe and stated and layer.num_experts not in stated.values():
                name, count = next(iter(stated.items()))
                raise WrongShape(
                    f"Layer {layer.index} has {layer.num_experts} experts, and the configuration states {count} "
                    f"({name}); use the published file, or pass the field: config={{...}}."
                )

    def layer(self, index: int) -> Layer:
        family = self.family
        first = self._find(family.experts, "down", index, "0")
        if first is None:
            return self._dense_layer(index)
        experts = self._count(index)
        top_k = self._number([family.top_k] if family.top_k else TOP_K, index)
        shared = family.shared is not None and self._find(family.shared, "down", index, SHARED) is not None
        stated = [name for name in SHARED_COUNT if self.fields.get(name)]
        number = self._number(stated, index) if shared and stated else 1
        return Layer(
            index=index,
            hidden_size=self.hidden_size,
            intermediate_size=first.shape[1],
            num_experts=experts,
            top_k=top_k,
            expert_kinds=("ffn",) * experts,
            num_shared=number if shared else 0,
            projections=_projections(family.experts),
        )

    def _dense_layer(self, index: int) -> Layer:
        matrix = None if self.family.dense is None else self._find(self.family.dense, "down", index, DENSE)
        if self.family.dense is None or matrix is None:
            return Layer(index, self.hidden_size, 0, projections=())
        return Layer(index, self.hidden_size, matrix.shape[1], projections=_projections(self.family.dense))

    def _count(self, index: int) -> int:
        """Returns the number of experts in a layer: rows of the router, else of the stack, else keys of matrices."""
        router = None if self.family.router is None else self.published.get(self.family.router.format(layer=index))
        place = at(self.family.experts["down"])
        if router is not None or "{expert}" not in place.key:
            rows = self.published[place.key.format(layer=index)] if router is None else router
            return rows.shape[0]
        count = 0
        while place.key.format(layer=index, expert=count) in self.published:
            count += 1
        return count

    def _find(self, keys: Keys, projection: str, layer: int, label: str) -> LazyTensor | None:
        place = at(keys[projection])
        present = place.key.format(layer=layer, expert=label) in self.published
        return place.matrix(self.published, layer, label)[1] if present else None

    def _router(self, layer: Layer) -> tuple[str, LazyTensor]:
        if self.family.router is None:
            raise NoSuchName(
                f"The router of {self.family.name} is not a matrix with one row per expert; omit its analyses."
            )
        key = self.family.router.format(layer=layer.index)
        return key, self.published[key]

    def _expert(self, layer: Layer, label: str, projection: str) -> tuple[str, LazyTensor]:
        keys = {SHARED: self.family.shared, DENSE: self.family.dense}.get(label, self.family.experts)
        if keys is None:
            raise MissingWeight(f"{self.family.name} has no {label!r} in layer {layer.index}; choose another label.")
        return at(keys[projection]).matrix(self.published, layer.index, label)


def _projections(keys: Keys) -> tuple[str, ...]:
    return tuple(projection for projection in PROJECTIONS if projection in keys)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields, those of nested objects also as `object.field`."""
    nested = [(name, value) for name, value in config.items() if isinstance(value, dict)]
    return {**config, **{f"{name}.{inner}": each for name, value in nested for inner, each in value.items()}}


def _config(fields: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> PreTrainedConfig:
    import torch
    from transformers import PreTrainedConfig

    config = PreTrainedConfig()
    embeddings = next((tensor for key, tensor in tensors.items() if EMBEDDINGS.search(key)), None)
    rows = 0 if embeddings is None else embeddings.shape[0]
    config.vocab_size = fields.get("vocab_size", rows)  # pyright: ignore[reportAttributeAccessIssue]
    config.model_type = str(fields.get("model_type"))  # pyright: ignore[reportAttributeAccessIssue]
    stated = getattr(torch, str(fields.get("torch_dtype", fields.get("dtype"))), None)
    config.dtype = stated if isinstance(stated, torch.dtype) else None
    return config


def named(block: str, names: str = "up_proj gate_proj down_proj", suffix: str = ".weight") -> dict[str, str]:
    """Returns the keys of the up, gate and down projections below a block."""
    return {role: f"{block}.{name}{suffix}" for role, name in zip(PROJECTIONS, names.split(), strict=True)}
