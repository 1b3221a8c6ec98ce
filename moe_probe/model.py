"""The one handle that every analysis takes."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from html import escape
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from moe_probe.checkpoint import Checkpoint, LazyTensor, open_checkpoint
from moe_probe.errors import CheckpointError, FamilyError, InputError
from moe_probe.facts import facts, ranges
from moe_probe.families import Architecture, Layer, find_family
from moe_probe.families.modules import default_dtype, load_module, with_config
from moe_probe.families.transformers_moe import live_architecture
from moe_probe.tokenizer import open_tokenizer, tokenizer_folder

TOKENIZER_ABOVE = {"grok1": 2}  # folders between the weights and the repository that has the tokenizer


class MoEModel:
    """A pretrained model: what its layers are made of, and its weights, read when asked for.

    Made by `load`. A MoE, or a dense model where a baseline is wanted.

    Attributes:
        name: folder name or hub id.
        family: name of the family, such as `mixtral`; for models that transformers alone describes, the model type.
        num_layers, hidden_size: of the decoder.
        checkpoint: the files; None for a live model.
    """

    def __init__(
        self,
        name: str,
        family: str,
        architecture: Architecture,
        checkpoint: Checkpoint | None = None,
        module: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        self.name, self.family, self.config, self.checkpoint = name, family, architecture.config, checkpoint
        self._architecture, self._device, self._dtype = architecture, device, dtype
        self.num_layers, self.hidden_size = architecture.num_layers, architecture.hidden_size
        if module is not None:
            self.__dict__["module"] = module
        self._tokenizer = tokenizer
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            self.__dict__["tokenizer"] = tokenizer
        self.interventions: tuple[Edit, ...] = ()
        self._weights_of: tuple[MoEModel, Mapping[str, Any]] | None = None

    def under(self, *interventions: Edit) -> MoEModel:
        """This model under interventions: another model, with the same weights, name and fingerprint of its own.

        It goes wherever a model goes: `run`, `generate`, comparisons, workers. The weights are shared, and this model
        stays as it is.

        Args:
            interventions: such as `intervene.Zero(layer=5, experts=[3])`, in the order in which they act.

        Raises:
            InputError: the model lacks a layer or an expert that they name.

        Examples:
            >>> from moe_probe.intervene import Zero
            >>> load("ckpt/tiny-mixtral").under(Zero(layer=0, experts=[3])).name
            'tiny-mixtral under Zero(layer=0, experts=(3,))'
        """
        for intervention in interventions:
            intervention.check(self)
        changes = {name: value for each in interventions for name, value in each.config.items()}
        other = self._with_config(changes) if changes and self.checkpoint is not None else copy.copy(self)
        other._weights_of = self, changes
        if changes:
            vars(other).pop("module", None)
        other.interventions = (*self.interventions, *interventions)
        other.name = f"{self.name} under {', '.join(map(repr, interventions))}" if interventions else self.name
        return other

    def _with_config(self, changes: Mapping[str, Any]) -> MoEModel:
        """The checkpoint opened with some fields of its configuration changed."""
        assert self.checkpoint is not None
        config = {**self.checkpoint.config, **changes}
        options = {"device": self._device, "dtype": self._dtype, "tokenizer": self._tokenizer}
        return load(self.checkpoint.path, config=config, **options)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every decoder layer."""
        return tuple(self._architecture.layer(index) for index in range(self.num_layers))

    @cached_property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers that route."""
        return tuple(layer.index for layer in self.layers if layer.is_moe)

    def layer(self, index: int) -> Layer:
        """What decoder layer `index` is made of.

        Raises:
            InputError: there is no such layer.
        """
        if not 0 <= index < self.num_layers:
            raise InputError(f"{self.name} has the layers 0 to {self.num_layers - 1}, not {index}.")
        return self.layers[index]

    def router_tensor(self, layer: int) -> LazyTensor:
        """The gate embeddings of a layer, (E, d), unread."""
        self.layer(layer)
        return self._architecture.router(layer)

    def router_weight(self, layer: int) -> torch.Tensor:
        """The gate embeddings of a layer, (E, d), in the stored dtype.

        Where the router is a small network, its last layer: see the family's docstring.
        """
        return self.router_tensor(layer).read()

    def expert_tensor(self, layer: int, expert: str | int, projection: str) -> LazyTensor:
        """One matrix of an expert, unread; slices of it read only their own bytes."""
        self.layer(layer)
        return self._architecture.expert(layer, str(expert), projection)

    def expert_weight(self, layer: int, expert: str | int, projection: str) -> torch.Tensor:
        """One matrix of an expert in the stored dtype, memory-mapped where the format allows.

        Args:
            layer: index of the decoder layer.
            expert: `"0"` to `"E-1"`, `"S"` for the shared block, `"F"` for the FFN of a dense layer.
            projection: `up` or `gate`, (ff, d), or `down`, (d, ff).

        Raises:
            InputError: the layer has no such expert or projection.
            WeightError: the checkpoint lacks the tensor or stores it in another shape.

        Examples:
            >>> load("ckpt/tiny-mixtral").expert_weight(0, "3", "down").shape
            torch.Size([64, 96])
        """
        return self.expert_tensor(layer, expert, projection).read()

    def select_layers(self, layers: Sequence[int] | int | None) -> tuple[int, ...]:
        """`layers`, checked to be MoE layers; all of them for None.

        Raises:
            FamilyError: the model is dense.
            InputError: one of them is not a MoE layer.
        """
        if not self.moe_layers:
            raise FamilyError(
                f"{self.name} is a dense {self.family} model and has no experts; give a Mixture-of-Experts model "
                "(a dense one can be the baseline)."
            )
        if layers is None:
            return self.moe_layers
        chosen = (layers,) if isinstance(layers, int) else tuple(layers)
        wrong = [index for index in chosen if index not in self.moe_layers]
        if wrong or not chosen:
            raise InputError(f"{self.name} has the MoE layers {ranges(self.moe_layers)}; asked for {wrong or 'none'}.")
        return chosen

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer given to `load`, else the one beside the weights (Grok-1: or in its repository, above)."""
        if self._tokenizer is not None:
            return open_tokenizer(self._tokenizer)
        if self.checkpoint is None:
            raise InputError("A live model comes without a tokenizer; give it: load(model, tokenizer=...).")
        folder = tokenizer_folder(self.checkpoint.path, above=TOKENIZER_ABOVE.get(self.family, 0))
        if folder is None:
            raise InputError(
                f"{self.checkpoint.path} has no tokenizer.json or tokenizer.model; give one, load(..., tokenizer=...), "
                "or texts as lists of token ids."
            )
        return open_tokenizer(folder)

    @cached_property
    def module(self) -> PreTrainedModel:
        """The torch module with its weights, loaded on first use."""
        if self._weights_of is not None:
            other, changes = self._weights_of
            return with_config(other.module, changes) if changes else other.module
        return load_module(self.config, self.published, self._device, self._dtype)

    @property
    def published(self) -> Mapping[str, LazyTensor]:
        """Every tensor by the key that the torch module's conversion starts from, unread."""
        return self._architecture.published

    @property
    def tokenizer_source(self) -> PreTrainedTokenizerBase | str | Path | None:
        """The tokenizer as it was given to `load`."""
        return self._tokenizer

    @property
    def device(self) -> str | torch.device | None:
        """Where `module` goes; None for the CPU."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that `module` computes in."""
        if "module" in self.__dict__:
            return self.module.dtype
        return self._dtype or default_dtype(self.config, self.published, self._device)

    @property
    def fingerprint(self) -> str:
        """Identifies the checkpoint in results; `live` for a model in memory."""
        own = "live" if self.checkpoint is None else self.checkpoint.fingerprint
        if not self.interventions:
            return own
        return hashlib.sha256(repr((own, self.interventions)).encode()).hexdigest()[:16]

    def __reduce__(self) -> tuple:
        if self.checkpoint is None:
            return super().__reduce__()
        options = {"config": self.checkpoint.config, "device": self._device, "dtype": self._dtype}
        options["tokenizer"] = self._tokenizer
        return partial(_reopened, self.name, self.interventions, self.checkpoint.path, **options), ()

    def __repr__(self) -> str:
        moe = f", MoE layers {ranges(self.moe_layers)}" if self.moe_layers else ", dense"
        return f"MoEModel({self.name!r}, family={self.family!r}, {self.num_layers} layers{moe})"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(what)}</th><td>{escape(much)}</td></tr>" for what, much in facts(self))
        return f"<table><caption>{escape(self.name)}</caption>{rows}</table>"


Openable = MoEModel | PreTrainedModel | str | Path  # what `load` opens
Source = Openable


class Edit(Protocol):
    """What `under` takes: an intervention (`moe_probe.routing.Intervention`)."""

    layer: int | None
    config: Mapping[str, Any]

    def check(self, model: MoEModel) -> None:
        """Refuse layers and experts that there are not."""
        ...


def _reopened(name: str, interventions: tuple[Edit, ...], path: Path, **options: Any) -> MoEModel:
    model = load(path, **options)
    model.name, model.interventions = name, interventions
    return model


def load(
    source: Openable,
    *,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> MoEModel:
    """Open a model at once, without reading its weights.

    Args:
        source: a folder with a published checkpoint, a hub id (the local cache first), or a live transformers model.
        tokenizer: used in place of the one beside the weights: an object, a folder or file, or a hub id.
        device: of `model.module`; by default the CPU in float32, elsewhere the stored dtype.
        dtype: of `model.module`; by default the CPU in float32, elsewhere the stored dtype.
        revision: branch, tag or commit of a hub id.
        config: fields that replace those of `config.json` or stand in for those that a format does not store.

    Raises:
        CheckpointError: the files are missing, damaged or unsafe.
        FamilyError: the model type is not known.

    Examples:
        >>> model = load("ckpt/tiny-mixtral")
        >>> model.layer(0).num_experts
        8
    """
    if isinstance(source, MoEModel):
        return source
    if isinstance(source, PreTrainedModel):
        name = source.config._name_or_path or type(source).__name__
        return MoEModel(name, source.config.model_type, live_architecture(source), module=source, tokenizer=tokenizer)
    checkpoint = open_checkpoint(_folder(source, revision), config)
    family = find_family(checkpoint)
    architecture = family.open(checkpoint)
    return MoEModel(
        name=str(source) if not Path(source).is_dir() else Path(source).resolve().name,
        family=architecture.config.model_type if family.name == "transformers" else family.name,
        architecture=architecture,
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
    )


def _folder(source: str | Path, revision: str | None) -> Path:
    path = Path(source).expanduser()
    if path.exists() or isinstance(source, Path) or str(source).count("/") != 1 or str(source).startswith("."):
        return path
    for local_only in (True, False):
        try:
            return Path(snapshot_download(str(source), revision=revision, local_files_only=local_only))
        except LocalEntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise CheckpointError(f"{source} is no folder and cannot be had from the hub ({error}).") from error
    raise CheckpointError(f"{source} is no folder, is not in the hub's local cache, and the hub cannot be reached.")
