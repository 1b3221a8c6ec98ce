"""The one handle that every analysis takes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from moe_probe.checkpoint import Checkpoint, LazyTensor
from moe_probe.checkpoint.finding import find_checkpoint, refuse_revision
from moe_probe.checkpoint.identity import digest
from moe_probe.checkpoint.store import opens_alone
from moe_probe.errors import DenseModel, NotFitting, NothingToRead, OutOfRange, WrongType
from moe_probe.facts import facts, ranges
from moe_probe.families import Architecture, Layer, find_family
from moe_probe.families.counting import Counts
from moe_probe.families.live import LiveTensors, signature, unwrapped_model
from moe_probe.families.modules import Device, default_dtype, load_module, stored_dtype, with_config
from moe_probe.families.places import checked_device, checked_dtype
from moe_probe.families.places import device_name as _device_name
from moe_probe.families.releases import as_family
from moe_probe.families.transformers_moe import live_architecture
from moe_probe.shown import html_table
from moe_probe.signatures import check_types, value_shown, whole_numbers
from moe_probe.tokenizer import Tokenizer, check_tokenizer, open_tokenizer, tokenizer_folder

TOKENIZER_ABOVE = {"grok1": 2}  # folders between the weights and the repository that has the tokenizer


class MoEModel:
    """A pretrained model: the structure of its layers, and its weights, which are read on first use.

    `load` makes it: from a MoE model, or from a dense model that serves as a baseline.

    Attributes:
        name: folder name or hub id.
        family: name of the family, such as `mixtral`; for models that transformers alone describes, the model type.
        num_layers: number of decoder layers, MoE and dense.
        hidden_size: width d of the decoder's residual stream.
        checkpoint: the files; None for a live model.
    """

    def __init__(
        self,
        name: str,
        family: str,
        architecture: Architecture,
        checkpoint: Checkpoint | None = None,
        module: PreTrainedModel | None = None,
        tokenizer: Tokenizer | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        self.name, self.family, self.config, self.checkpoint = name, family, architecture.config, checkpoint
        self._architecture, self._device, self._dtype = architecture, device, dtype
        self.num_layers, self.hidden_size = architecture.num_layers, architecture.hidden_size
        self._loaded: tuple[str, list[tuple]] | None = None
        self.interventions: tuple[Edit, ...] = ()
        self._weights_of: tuple[MoEModel, Mapping[str, Any]] | None = None
        if module is not None:
            self.__dict__["module"] = module
        self._set_tokenizer(tokenizer)

    def _set_tokenizer(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self.__dict__.pop("tokenizer", None)
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            self.__dict__["tokenizer"] = tokenizer

    def under(self, *interventions: Edit) -> MoEModel:
        """Returns this model under interventions: a new model with the same weights, but its own name and fingerprint.

        It works wherever a model does: in `run`, `generate`, comparisons and workers. The two models share their
        weights, and this model stays as it is.

        Args:
            interventions: such as `intervene.Zero(layer=5, experts=[3])`; several act together.

        Raises:
            WrongType: an argument is not an intervention.
            InputError: the model lacks a layer or an expert that an intervention names.

        Examples:
            >>> from moe_probe.intervene import Zero
            >>> load("ckpt/tiny-mixtral").under(Zero(layer=0, experts=[3])).name
            'tiny-mixtral under Zero(layer=0, experts=(3,))'
        """
        other = self.having(self.interventions)
        for intervention in interventions:
            if not callable(getattr(intervention, "check", None)):
                shown = value_shown(intervention)
                raise WrongType(
                    f"under takes interventions, such as intervene.Zero(layer=0, experts=[1]), not {shown}."
                )
            intervention.check(other)
            other = other.having((*other.interventions, intervention))
        changes = {name: value for each in interventions for name, value in each.config.items()}
        if changes:
            other = (self._with_config(changes) if self.checkpoint is not None else self).having(other.interventions)
            other._weights_of = self, changes
            for name in ("module", "_live"):
                vars(other).pop(name, None)
        other.name = f"{self.name} under {', '.join(map(repr, interventions))}" if interventions else self.name
        return other

    def having(self, interventions: Sequence[Edit]) -> MoEModel:
        """The same model with these interventions in place of its own."""
        other = copy.copy(self)
        other._weights_of, other.interventions = (self, {}), tuple(interventions)
        return other

    @property
    def unedited(self) -> MoEModel:
        """The same model without the interventions on its layers; changed fields of the configuration stay changed."""
        return self.having([each for each in self.interventions if each.config])

    def _with_config(self, changes: Mapping[str, Any]) -> MoEModel:
        """The checkpoint opened with some fields of its configuration changed."""
        assert self.checkpoint is not None
        config = {**self.checkpoint.given, **changes}
        options = {"device": self._device, "dtype": self._dtype, "tokenizer": self._tokenizer}
        return load(**self.checkpoint.address, config=config, **options)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The description of every decoder layer, MoE and dense."""
        return tuple(self._architecture.layer(index) for index in range(self.num_layers))

    @cached_property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the MoE layers, ascending."""
        return tuple(layer.index for layer in self.layers if layer.is_moe)

    def layer(self, index: int) -> Layer:
        """The description of decoder layer `index`: its experts, widths and top-k.

        Raises:
            OutOfRange: the model has no such layer.
            WrongType: the index is not a whole number.
        """
        check_types(MoEModel.layer, {"index": index})
        if not 0 <= index < self.num_layers:
            raise OutOfRange(f"{self.name} has the layers 0 to {self.num_layers - 1}, not {index}.")
        return self.layers[index]

    def router_tensor(self, layer: int) -> LazyTensor:
        """The router's weight in a layer (the gate embeddings), (E, d), as a lazy tensor that is not read yet."""
        self.layer(layer)
        self.require_unchanged()
        return self._architecture.router(layer)

    def router_weight(self, layer: int) -> torch.Tensor:
        """The router's weight in a layer (the gate embeddings), (E, d), in the stored dtype.

        If the router is a small network, this is the weight of its last layer; the family's page describes the others.

        Raises:
            InputError: the model has no such layer, or the layer is dense.
            WeightError: the checkpoint lacks the tensor or stores it in another shape.

        Examples:
            >>> load("ckpt/tiny-mixtral").router_weight(0).shape
            torch.Size([8, 64])
        """
        return self.router_tensor(layer).read()

    def expert_tensor(self, layer: int, expert: str | int, projection: str) -> LazyTensor:
        """One matrix of an expert as a lazy tensor that is not read yet; a slice of it reads only its own bytes."""
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
        """Returns `layers` as a tuple once they are known to be MoE layers; all MoE layers for None.

        Raises:
            DenseModel: the model is dense.
            OutOfRange: one of them is not a MoE layer.
            NotFitting: one of them is named twice.
            WrongType: one of them is not a whole number.
        """
        if not self.moe_layers:
            raise DenseModel(
                f"{self.name} is a dense {self.family} model and has no experts; pass a Mixture-of-Experts model "
                "(a dense one can be the baseline)."
            )
        if layers is None:
            return self.moe_layers
        chosen = whole_numbers(layers)
        twice = next((index for index in chosen if chosen.count(index) > 1), None)
        if twice is not None:
            raise NotFitting(f"layers names layer {twice} more than once; name each layer once.")
        wrong = sorted(set(chosen).difference(self.moe_layers))
        if wrong or not chosen:
            asked = ranges(wrong[:20]) + (", ..." if len(wrong) > 20 else "") if wrong else "none"
            raise OutOfRange(
                f"layers names {asked}, but {self.name} has the MoE layers {ranges(self.moe_layers)}; "
                "choose some of those."
            )
        return chosen

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer passed to `load`, else the one beside the weights (Grok-1: in a folder above them)."""
        if self._tokenizer is not None:
            return open_tokenizer(self._tokenizer)
        if self.checkpoint is None:
            raise NothingToRead("A live model has no tokenizer; pass one: load(model, tokenizer=...).")
        folder = tokenizer_folder(self.checkpoint.path, above=TOKENIZER_ABOVE.get(self.family, 0))
        first = self.checkpoint.files[0]
        if folder is None and opens_alone(first):
            return open_tokenizer(first)
        if folder is None:
            raise NothingToRead(
                f"{self.checkpoint.path} has no tokenizer.json or tokenizer.model; pass one, load(..., tokenizer=...), "
                "or pass texts as lists of token ids."
            )
        return open_tokenizer(folder)

    @cached_property
    def module(self) -> PreTrainedModel:
        """The torch module with its weights, loaded on first use."""
        if self._weights_of is not None:
            other, changes = self._weights_of
            return with_config(other.module, changes) if changes else other.module
        self.require_module()
        identity = "" if self.checkpoint is None else self.checkpoint.identity
        module = load_module(self.config, self.published, self._device, self._dtype)
        self._loaded = identity, _signatures(module)
        return module

    def require_module(self) -> None:
        """Raises an error if the model cannot run.

        Raises:
            CannotWatch: its family only declares where the matrices are, and has no torch module.
        """
        _ = self._architecture.skeleton

    @property
    def published(self) -> Mapping[str, LazyTensor]:
        """Every stored tensor, unread, by the key from which the conversion to the torch module starts."""
        return self._architecture.published

    @cached_property
    def counts(self) -> Counts:
        """Numbers of parameters of the language model, and of the module's other parts."""
        return self._architecture.counts

    @property
    def unused(self) -> Mapping[str, LazyTensor]:
        """Published tensors that the module does not use, such as layers that predict several tokens ahead."""
        return self._architecture.unused()

    @property
    def tokenizer_source(self) -> Tokenizer | None:
        """The tokenizer as it was passed to `load`."""
        return self._tokenizer

    @property
    def stated_dtype(self) -> torch.dtype | None:
        """The dtype that was passed to `load`; None for the default one."""
        return self._dtype

    @property
    def device(self) -> Device:
        """The device on which `module` is loaded; None for the CPU."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that `module` computes in."""
        if "module" in self.__dict__:
            return self.module.dtype
        return self._dtype or default_dtype(self.config, self.published, self._device)

    @property
    def fingerprint(self) -> str:
        """A hash of weights, configuration, dtype, device and versions: results with equal fingerprints are comparable.

        The content of the weights counts: a sample of the bytes of each file (see `checkpoint.identity`), all values of
        a live model. Writing to a file, or changing a weight in memory, changes the fingerprint.
        """
        return digest(self.identity_facts())

    def identity_facts(self) -> dict[str, Any]:
        """The facts that `fingerprint` hashes."""
        return {
            "weights": self._weights_identity(),
            "config": self._config_facts(),
            "module": type(self.config).__name__,
            "dtype": str(self._dtype or default_dtype(self.config, self.published, self._device))
            if self.checkpoint is not None
            else "live",
            "device": _device_name(self._device if self.checkpoint is not None else self.module.device),
            "moe_probe": version("moe-probe"),
            "transformers": version("transformers"),
            **({"interventions": repr(self.interventions)} if self.interventions else {}),
        }

    def _weights_identity(self) -> list[str]:
        if self._weights_of is not None:
            return self._weights_of[0]._weights_identity()
        if self.checkpoint is None:
            return [self._live.identity()]
        if self._loaded is None or "module" not in self.__dict__:
            return [self.checkpoint.identity]
        identity = self._loaded[0]
        return [identity, self._live.identity()] if self.changed_in_memory else [identity]

    @property
    def changed_in_memory(self) -> bool:
        """Whether weights in memory differ from the files that they were loaded from."""
        if self._weights_of is not None:
            return self._weights_of[0].changed_in_memory
        return self._loaded is not None and "module" in vars(self) and self._loaded[1] != _signatures(self.module)

    def require_unchanged(self) -> None:
        """Raises an error if weights in memory were changed, for work that reads the files instead.

        Raises:
            NotFitting: weights in memory differ from those in the files.
        """
        if self.checkpoint is not None and self.changed_in_memory:
            raise NotFitting(
                f"The weights of {self.name} were changed in memory, but this reads its files; pass the module "
                "itself: moe_probe.load(model.module)."
            )

    @cached_property
    def _live(self) -> LiveTensors:
        return LiveTensors(self.module)

    def _config_facts(self) -> dict[str, Any]:
        if self.checkpoint is not None:
            return self.checkpoint.config
        fields = self.config.to_dict()
        return {name: value for name, value in fields.items() if not name.startswith("_")}

    def reopened(
        self,
        tokenizer: Tokenizer | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> MoEModel:
        """The same model with another tokenizer, or to be loaded again on another device or in another dtype."""
        other = copy.copy(self)
        if tokenizer is not None:
            other._set_tokenizer(tokenizer)
        if device is not None or dtype is not None:
            other._device, other._dtype = device or self._device, dtype or self._dtype
            other._weights_of = other._loaded = None
            for name in ("module", "_live"):
                vars(other).pop(name, None)
        return other

    def __copy__(self) -> MoEModel:
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    def __reduce__(self) -> str | tuple[Any, ...]:
        if self.checkpoint is None:
            return super().__reduce__()
        self.require_unchanged()
        options = {"config": self.checkpoint.given, "device": self._device, "dtype": self._dtype}
        options["tokenizer"] = self._tokenizer
        return partial(_reopened, self.name, self.interventions, **self.checkpoint.address, **options), ()

    def __repr__(self) -> str:
        moe = f", MoE layers {ranges(self.moe_layers)}" if self.moe_layers else ", dense"
        return f"MoEModel({self.name!r}, family={self.family!r}, {self.num_layers} layers{moe})"

    def _repr_html_(self) -> str:
        return html_table(self.name, facts(self))


Openable = MoEModel | PreTrainedModel | nn.Module | str | Path  # what `load` opens


class Edit(Protocol):
    """The interface of an intervention that `under` needs; `moe_probe.routing.Intervention` has all of it."""

    config: Mapping[str, Any]

    def check(self, model: MoEModel) -> None:
        """Raises an error if the model lacks a layer or an expert that the intervention names."""
        ...


def _reopened(name: str, interventions: tuple[Edit, ...], source: str | Path, **options: Any) -> MoEModel:
    model = load(source, **options)
    model.name, model.interventions = name, interventions
    return model


def _signatures(module: nn.Module) -> list[tuple]:
    return [signature(value) for value in module.state_dict(keep_vars=True).values() if isinstance(value, torch.Tensor)]


def load(
    source: Openable,
    *,
    tokenizer: Tokenizer | None = None,
    device: Device = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> MoEModel:
    """Opens a model at once, without reading its weights.

    Args:
        source: a folder with a published checkpoint, a hub id (the local cache is searched first), a live transformers
            model (also one wrapped by torch.compile, DataParallel or PEFT), or a `MoEModel`.
        tokenizer: replaces the one beside the weights: an object, a folder or file, or a hub id.
        device: where `model.module` is loaded, as transformers' `device_map`; the CPU by default.
        dtype: of `model.module`; by default float32 on the CPU and the stored dtype elsewhere; "auto" is the stored
            dtype everywhere.
        revision: branch, tag or commit of a hub id.
        config: fields that replace those of `config.json`, or add those that a format does not store.

    Raises:
        CheckpointError: the files are missing, damaged or unsafe.
        FamilyError: the model type is not known.
        NotFitting: an option does not apply to a live model, or to a folder.
        WrongType: the source or an option is of a type that is not accepted.

    Examples:
        >>> model = load("ckpt/tiny-mixtral")
        >>> model.layer(0).num_experts
        8
    """
    options = Options(check_tokenizer(tokenizer), checked_device(device), checked_dtype(dtype), config)
    if isinstance(source, MoEModel):
        refuse_revision(revision, f"{source.name}, which is open already")
        return _reopen(source, options)
    if isinstance(source, nn.Module):
        refuse_revision(revision, "a live model")
        return _open_live(source, options)
    if not isinstance(source, str | Path):
        raise WrongType(
            f"load takes a folder, a hub id, a live transformers model or a MoEModel, not a {type(source).__name__}."
        )
    return _open_files(source, revision, options)


@dataclass(frozen=True)
class Options:
    """The options of `load`, checked."""

    tokenizer: Tokenizer | None
    device: Device
    dtype: torch.dtype | str | None
    config: Mapping[str, Any] | None

    def __post_init__(self):
        if self.config is not None and not isinstance(self.config, Mapping):
            raise WrongType(f"config is a {type(self.config).__name__}; pass a mapping from fields to values.")


def _open_files(source: str | Path, revision: str | None, options: Options) -> MoEModel:
    checkpoint = find_checkpoint(source, revision, options.config)
    spelled = as_family(checkpoint)
    family = find_family(spelled)
    architecture = family.open(spelled)
    architecture.check()
    dtype = options.dtype
    if dtype == "auto":
        dtype = stored_dtype(architecture.config, architecture.published)
    return MoEModel(
        name=checkpoint.path.resolve().name if Path(source).expanduser().exists() else str(source),
        family=architecture.config.model_type if family.name == "transformers" else family.name,
        architecture=architecture,
        checkpoint=checkpoint,
        tokenizer=options.tokenizer,
        device=options.device,
        dtype=dtype if isinstance(dtype, torch.dtype) else None,
    )


def _open_live(module: nn.Module, options: Options) -> MoEModel:
    inner = unwrapped_model(module)
    if options.config is not None:
        raise NotFitting(
            "config= replaces fields of files, but the model is live; set them on its config, or pass its folder."
        )
    _require_same("dtype", options.dtype, "auto", inner.dtype)
    _require_same("device", options.device, "auto", inner.device)
    architecture = live_architecture(inner)
    architecture.check()
    name = str(inner.config._name_or_path or type(inner).__name__)
    return MoEModel(name, inner.config.model_type, architecture, module=inner, tokenizer=options.tokenizer)


def _require_same(option: str, asked: object, any_of_them: str, there: torch.dtype | torch.device) -> None:
    wanted = _device_name(asked) if isinstance(there, torch.device) and asked is not None else asked
    actual = _device_name(there) if isinstance(there, torch.device) else there
    if asked not in (None, any_of_them) and wanted != actual:
        raise NotFitting(
            f"The live model has {option} {there}, but {option}={asked} was passed; convert it yourself, "
            f"model.to({asked!r}), or omit {option}=."
        )


def _reopen(model: MoEModel, options: Options) -> MoEModel:
    if options == Options(None, None, None, None):
        return model
    if model.checkpoint is None:
        _open_live(model.module, options)  # refuses what a live model cannot be given
        return model.reopened(options.tokenizer)
    if options.config is not None:
        return _reconfigured(model, options)
    dtype = options.dtype
    if dtype == "auto":
        dtype = stored_dtype(model.config, model.published)
    return model.reopened(options.tokenizer, options.device, dtype if isinstance(dtype, torch.dtype) else None)


def _reconfigured(model: MoEModel, options: Options) -> MoEModel:
    assert model.checkpoint is not None
    other = load(
        **model.checkpoint.address,
        tokenizer=options.tokenizer or model.tokenizer_source,
        device=options.device or model.device,
        dtype=options.dtype or model.stated_dtype,
        config={**model.checkpoint.given, **(options.config or {})},
    )
    other.name, other.interventions = model.name, model.interventions
    return other
