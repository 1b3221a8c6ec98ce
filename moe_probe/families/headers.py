"""Description of a model from config.json and file headers alone, without importing torch.

Files open as for every analysis, with the same encodings and releases. Only the last step differs: no module is built.
The layouts of `outlines` and the configuration must explain every key and every size. If they do not, `outline` returns
None, and the caller opens the model instead.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moe_probe.checkpoint import Checkpoint, LazyTensor, open_checkpoint
from moe_probe.checkpoint.adapter import is_adapter
from moe_probe.errors import MoEProbeError
from moe_probe.families import FAMILIES, declared, require_names
from moe_probe.families.architecture import Layer, require_explained
from moe_probe.families.counting import Counts
from moe_probe.families.outlines import OUTLINES, SPELLED, Unexplained, layer_of, require, require_plain
from moe_probe.families.releases import DAMAGE, as_family
from moe_probe.families.sizes import positive, require_sizes

READ = (".safetensors", ".gguf", ".bin", ".pt")  # suffixes of files whose headers list their tensors
KEY = re.compile(r"(0|[1-9]\d*)\.(.+)")
AHEAD = "num_nextn_predict_layers"  # counts multi-token prediction layers behind the last layer, which the module lacks
ROOTS = ("model.language_model.", "language_model.model.", "transformer.", "backbone.", "model.")
BLOCKS = ("layers.", "blocks.")
EMBEDDING = re.compile(r"(embed_tokens|wte|embeddings)\.weight")
NORM = re.compile(r"(norm|norm_f|final_layernorm|embedding_norm)\.(weight|bias)")
HEAD = re.compile(r"(language_model\.)?lm_head\.(weight|bias)")
# keys of parts other than the language model, such as a vision tower; the first group is the part's name
PARTS = re.compile(r"(?:model\.)?(visual|vision_\w+|multi_modal_projector|mm_projector|embed_vision|vit_\w+)\..+")
PREDICTING = re.compile(r"(?:model\.)?(mtp\w*)\..+")  # multi-token prediction, which no module has


@dataclass
class Outline:
    """The structure of a model, with the attributes that `moe_probe.facts` reads."""

    name: str
    family: str
    num_layers: int
    hidden_size: int
    checkpoint: Checkpoint
    layers: tuple[Layer, ...]
    counted: Counts
    published: Mapping[str, LazyTensor]
    unused: Mapping[str, LazyTensor]

    @cached_property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the MoE layers."""
        return tuple(layer.index for layer in self.layers if layer.is_moe)

    @cached_property
    def counts(self) -> Counts:
        """Numbers of parameters of the language model, and of other parts."""
        return self.counted

    def layer(self, index: int) -> Layer:
        """Returns the description of decoder layer `index`."""
        return self.layers[index]


def outline(source: str, config: Mapping[str, Any] | None = None) -> Outline | None:
    """Returns the structure of the model in a folder or file; None if headers do not suffice, or something is wrong.

    Args:
        source: a folder with files of weights, or a GGUF file.
        config: fields that are added to those of the files or replace them.
    """
    place = Path(source).expanduser()
    try:
        if not _has_headers(place) or is_adapter(place):
            return None
        checkpoint = open_checkpoint(place, config)
        spelled = as_family(checkpoint)
        return _declared(checkpoint, spelled) or _outlined(checkpoint, spelled)
    except (MoEProbeError, Unexplained, OSError, *DAMAGE):
        return None


def _has_headers(place: Path) -> bool:
    files = place.iterdir() if place.is_dir() else [place]
    return any(file.suffix in READ and file.is_file() for file in files)


def _declared(checkpoint: Checkpoint, spelled: Checkpoint) -> Outline | None:
    """Returns the outline by the first `Declared` family that fits, or None; does not import the other families."""
    require_sizes(spelled.config, spelled)
    for name in FAMILIES:
        source = FAMILIES.source(name)
        if source is None or not _imports(source, declared.__name__):
            continue
        family = FAMILIES[name]
        if family is not None and family.recognises(spelled):
            architecture = family.open(spelled)
            architecture.check()
            layers = tuple(map(architecture.layer, range(architecture.num_layers)))
            sizes = architecture.num_layers, architecture.hidden_size
            parts = architecture.counts, architecture.published, architecture.unused()
            return Outline(_name(checkpoint), family.name, *sizes, checkpoint, layers, *parts)
    return None


def _imports(source: ast.Module, module: str) -> bool:
    return any(isinstance(node, ast.ImportFrom) and node.module == module for node in source.body)


def _name(checkpoint: Checkpoint) -> str:
    return checkpoint.path.resolve().name


def _outlined(checkpoint: Checkpoint, spelled: Checkpoint) -> Outline:
    """Returns the outline by the layout of a transformers model type; raises `Unexplained` if none fits."""
    require_names(spelled.config)
    model_type, fields = spelled.config["model_type"], _common(spelled.config)
    require(isinstance(model_type, str) and model_type in OUTLINES and _is_installed(model_type))
    layout = OUTLINES[model_type]
    require_plain(fields)
    parts = Parts.of(spelled, fields)
    require("text_config" in spelled.config or not (parts.apart and layout.has_parts))
    count, width = positive(fields, "num_hidden_layers"), positive(fields, "hidden_size")
    require(parts.layers.keys() == set(range(count)))
    layers = tuple(layer_of(index, parts.layers[index], fields, layout) for index in range(count))
    shapes = {_signature(parts.layers[layer.index], layer) for layer in layers}
    require(layout.mixed or len(shapes) == len({layer.is_moe for layer in layers}))
    require_explained([key for key in spelled if key not in parts.unused], parts.unused)
    language = sum(entry.numel() for key, entry in parts.used.items() if not layout.buffers.search(key))
    sizes = {} if not parts.apart else dict(_sizes(parts.apart, layout.buffers))
    unused = parts.unused
    if "text_config" not in spelled.config:
        unused, sizes = {**parts.unused, **parts.apart}, {}
    return Outline(
        _name(checkpoint), model_type, count, width, checkpoint, layers, Counts(language, sizes), spelled, unused
    )


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config fields of the language model, those in `SPELLED` also under their common names."""
    fields = {**config, **(config.get("text_config") or {})}
    return {**{SPELLED[name]: value for name, value in fields.items() if name in SPELLED}, **fields}


def _sizes(apart: Mapping[str, LazyTensor], buffers: re.Pattern[str]) -> Iterator[tuple[str, int]]:
    counts: Counter[str] = Counter()
    for key, entry in apart.items():
        match = PARTS.fullmatch(key)
        counts[match[1] if match else key] += 0 if buffers.search(key) else entry.numel()
    yield from counts.items()


def _is_installed(model_type: str) -> bool:
    """Whether the installed transformers, or a family of moe_probe, has code for the model type."""
    spec = find_spec("transformers")
    theirs = (spec.submodule_search_locations if spec else None) or ()
    names = {model_type, model_type.removesuffix("_text")}
    places = [Path(__file__).parent, *(Path(place) / "models" for place in theirs)]
    return any((place / name).is_dir() or (place / f"{name}.py").exists() for place in places for name in names)


def _signature(keys: Mapping[str, LazyTensor], layer: Layer) -> tuple[bool, frozenset[tuple[str, tuple[int, ...]]]]:
    return layer.is_moe, frozenset((key, tuple(entry.shape)) for key, entry in keys.items())


@dataclass
class Parts:
    """The tensors of a model, sorted into parts.

    Attributes:
        layers: tensors of each decoder layer, by the part of the key after the layer's number.
        used: tensors of the language model.
        apart: tensors of towers and projectors.
        unused: tensors of multi-token prediction layers.
    """

    layers: dict[int, dict[str, LazyTensor]]
    used: dict[str, LazyTensor]
    apart: dict[str, LazyTensor]
    unused: dict[str, LazyTensor]

    @classmethod
    def of(cls, tensors: Mapping[str, LazyTensor], config: Mapping[str, Any]) -> Parts:
        """Sorts tensors into parts; raises `Unexplained` for an unknown key, or a wrong size outside of the layers."""
        root = next(root for root in ROOTS if any(key.startswith(root) for key in tensors))
        block = root + next(block for block in BLOCKS if any(key.startswith(root + block) for key in tensors))
        parts, count = cls({}, {}, {}, {}), positive(config, "num_hidden_layers")
        ahead, ends = config.get(AHEAD) or 0, {}
        for key, entry in tensors.items():
            match = KEY.fullmatch(key.removeprefix(block)) if key.startswith(block) else None
            if match is not None:
                index = int(match[1])
                require(index < count + ahead)
                parts.layers.setdefault(index, {})[match[2]] = entry
                (parts.used if index < count else parts.unused)[key] = entry
            elif PARTS.fullmatch(key) or PREDICTING.fullmatch(key):
                (parts.apart if PARTS.fullmatch(key) else parts.unused)[key] = entry
            else:
                ends[key.removeprefix(root)] = parts.used[key] = entry
        parts.layers = {index: keys for index, keys in parts.layers.items() if index < count}
        _require_ends(ends, config)
        return parts


def _require_ends(ends: Mapping[str, LazyTensor], config: Mapping[str, Any]) -> None:
    """Raises `Unexplained` if embeddings, last norm or head have unexpected keys or sizes."""
    rows, width = positive(config, "vocab_size"), positive(config, "hidden_size")
    heads = 0
    for key, entry in ends.items():
        bias = key.endswith(".bias")
        if HEAD.fullmatch(key):
            heads += not bias
            require(tuple(entry.shape) == ((rows,) if bias else (rows, width)))
        elif EMBEDDING.fullmatch(key):
            require(tuple(entry.shape) == (rows, width))
        else:
            require(NORM.fullmatch(key) is not None and tuple(entry.shape) == (width,))
    tied = config.get("tie_word_embeddings", not heads)
    require(isinstance(tied, bool) and tied == (not heads))
