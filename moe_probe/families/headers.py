"""What config.json and the headers of safetensors say of a model by themselves: JSON is read, and no torch is imported.

Only the plainest layout is read here: a decoder of alike layers, each expert's matrices published one by one, every key
and every size explained by the configuration. Of anything else nothing is said, and the model is opened instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError, safe_open

from moe_probe.checkpoint.folder import FilesOfOneKind, present
from moe_probe.errors import DamagedFile, MoEProbeError
from moe_probe.families import require_names
from moe_probe.families.architecture import Layer
from moe_probe.families.counting import Counts
from moe_probe.families.sizes import positive, require_sizes

DTYPES: Mapping[str, tuple[str, int]] = {"BF16": ("bfloat16", 2), "F16": ("float16", 2), "F32": ("float32", 4)}
NAMES = {name for name, _ in DTYPES.values()}
KEY = re.compile(r"model\.layers\.(0|[1-9]\d*)\.(.+)")
OUTSIDE = {"model.embed_tokens.weight", "model.norm.weight"}
HEAD = "lm_head.weight"
QK_NORM = re.compile(r"self_attn\.[qk]_norm\.weight")
BLOCKS = re.compile(r"(block_sparse_moe|mlp)\.(.+)")
MATRICES = {"up_proj": "up", "w3": "up", "gate_proj": "gate", "w1": "gate", "down_proj": "down", "w2": "down"}
EXPERT = re.compile(rf"experts\.(0|[1-9]\d*)\.({'|'.join(MATRICES)})\.weight")
SHARED = re.compile(r"(shared_experts?)\.(up_proj|gate_proj|down_proj)\.weight")
DENSE = re.compile(r"(up_proj|gate_proj|down_proj)\.weight")
ROUTER, SHARED_GATE = "gate.weight", "shared_expert_gate.weight"
CORRECTION = re.compile(r"(.+\.)?gate\.e_score_correction_bias")  # a buffer, which is no parameter
NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
NUM_SHARED = "n_shared_experts"
AHEAD = "num_nextn_predict_layers"  # layers behind the last one, which the module does not have
ELSEWHERE = re.compile(r"quantization|text_config|vision|audio|zero_expert")  # fields of models that are made otherwise
# what fields hold, by their names; of a field with another value, transformers says what it is
WHOLE, NUMBER, FLAG = (int,), (int, float), (bool,)
KINDS: Mapping[str, tuple[type, ...]] = {
    r"mlp_only_layers": (list, type(None)),
    r"(use|tie|norm|output|return)_.*|.*_bias|rope_interleave": FLAG,
    r".*_rank|head_dim|sliding_window|.*_token_id": (int, type(None)),
    r".*(size|layers|heads|_dim|_embeddings|experts|_per_tok|_group|_freq|_step|_replace|_tp)": WHOLE,
    r".*(dropout|_eps|_range|_coef|_theta|_factor|_alpha|_noise)": NUMBER,
    r"rope_(parameters|scaling)": (dict, type(None)),
}
WORDS = {
    "hidden_act": {"silu"},
    "scoring_func": {"softmax", "sigmoid"},
    **dict.fromkeys(("dtype", "torch_dtype"), NAMES),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a tensor."""

    sizes: tuple[int, ...]

    def __iter__(self) -> Iterator[int]:
        return iter(self.sizes)

    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.sizes)


@dataclass(frozen=True)
class Header:
    """An entry of a file's header."""

    shape: Shape
    dtype: str
    itemsize: int

    def numel(self) -> int:
        """Number of values."""
        return self.shape.numel()

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.numel() * self.itemsize


class HeaderFile:
    """A safetensors file, of which the header is read."""

    SINGLE: ClassVar[str] = "model.safetensors"
    INDEX: ClassVar[str] = "model.safetensors.index.json"

    def __init__(self, path: Path):
        self.path = path

    def tensors(self) -> dict[str, Any]:
        """Every entry of the header.

        Raises:
            DamagedFile: the header is none, or does not cover the file exactly.
            KeyError: an entry is of another type than those of `DTYPES`.
        """
        try:
            with safe_open(self.path, framework="np") as file:
                parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - a file is no mapping
                shapes = {key: (Shape(tuple(part.get_shape())), part.get_dtype()) for key, part in parts.items()}
        except (SafetensorError, OSError, MemoryError) as error:
            raise DamagedFile(f"{self.path} is truncated or damaged ({error}); download the file again.") from error
        return {key: Header(shape, *DTYPES[dtype]) for key, (shape, dtype) in shapes.items()}


class Headers(dict[str, Any]):
    """The entries of a checkpoint's headers by key, and its files."""

    def __init__(self, entries: Mapping[str, Any], files: list[Path]):
        super().__init__(entries)
        self.files = files

    @cached_property
    def nbytes(self) -> int:
        """Size of the weight files on disk, in bytes."""
        return sum(path.stat().st_size for path in self.files)


@dataclass
class Outline:
    """What a model is made of, as far as `moe_probe.facts` asks."""

    name: str
    family: str
    num_layers: int
    hidden_size: int
    checkpoint: Any
    layers: tuple[Layer, ...]
    unused: Mapping[str, Any]

    @cached_property
    def counts(self) -> Counts:
        """Parameters of the language model, which is all that there is."""
        used = (entry for key, entry in self.checkpoint.items() if key not in self.unused and not CORRECTION.match(key))
        return Counts(sum(entry.numel() for entry in used), {})

    @cached_property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers that route."""
        return tuple(layer.index for layer in self.layers if layer.is_moe)

    @property
    def published(self) -> Mapping[str, Any]:
        """Every entry."""
        return self.checkpoint

    def layer(self, index: int) -> Layer:
        """What decoder layer `index` is made of."""
        return self.layers[index]


class Unexplained(Exception):
    """Something that is not told by JSON alone."""


def outline(source: str, config: Mapping[str, Any] | None = None) -> Outline | None:
    """What a folder's model is made of; None where more than JSON is needed to tell, or something is wrong with it.

    Args:
        source: a folder with config.json and safetensors, in one file or in shards.
        config: fields that are added to those of config.json, or replace them.
    """
    folder = Path(source).expanduser()
    try:
        if not folder.is_dir() or present(folder, "adapter_config.json"):
            return None
        opened = FilesOfOneKind(HeaderFile, preference=0).open(folder)
        if opened is None:
            return None
        fields = {**opened.config, **(config or {})}
        return _outlined(folder.resolve().name, fields, Headers(opened.tensors, opened.files))
    except (MoEProbeError, Unexplained, OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError):
        return None


def _outlined(name: str, config: Mapping[str, Any], entries: Headers) -> Outline:
    _require_plain(config)
    require_names(config)
    require_sizes(config, entries)
    hidden, count = positive(config, "hidden_size"), positive(config, "num_hidden_layers")
    ahead = config.get(AHEAD) or 0
    unused = {key: entry for key, entry in entries.items() if count <= _layer_of(key) < count + ahead}
    used = {key: entry for key, entry in entries.items() if key not in unused}
    rests = _by_layer(used, config)
    _require(rests.keys() == set(range(count)))
    layers = tuple(_layer(index, rests[index], config) for index in range(count))
    _require(len({_signature(rests[layer.index], layer.is_moe) for layer in layers}) == len({x.is_moe for x in layers}))
    _require(all(layer.is_moe == _routes(layer.index, config) for layer in layers if any(x.is_moe for x in layers)))
    return Outline(name, config["model_type"], count, hidden, entries, layers, unused)


def _require(condition: bool) -> None:
    if not condition:
        raise Unexplained


def _require_plain(config: Mapping[str, Any]) -> None:
    """Refuse what is none of the model types that there are, or states what is not read here."""
    model_type = config["model_type"]
    _require(isinstance(model_type, str) and model_type.isidentifier())
    found = find_spec("transformers")
    theirs = (found.submodule_search_locations if found else None) or ()
    places = [Path(__file__).parent, *(Path(place) / "models" for place in theirs)]
    _require(any((place / model_type).is_dir() or (place / f"{model_type}.py").exists() for place in places))
    _require(not any(ELSEWHERE.search(field) for field in config))
    _require(not config.get("mlp_bias") and "hidden_act" in config and all(map(_holds, config, config.values())))


def _holds(field: str, value: object) -> bool:
    """Whether a field of the configuration has a value of its kind."""
    if field in WORDS:
        return isinstance(value, str) and value in WORDS[field]
    kinds = next((kinds for pattern, kinds in KINDS.items() if re.fullmatch(pattern, field)), (object,))
    return isinstance(value, kinds) and (not isinstance(value, bool) or kinds in (FLAG, (object,)))


def _layer_of(key: str) -> int:
    match = KEY.fullmatch(key)
    return -1 if match is None else int(match[1])


def _by_layer(entries: Mapping[str, Header], config: Mapping[str, Any]) -> dict[int, dict[str, Header]]:
    """Entries of each layer by the rest of their keys; those outside of layers are as the configuration says."""
    embedding = (positive(config, "vocab_size"), positive(config, "hidden_size"))
    outside = {HEAD, *OUTSIDE} if config["tie_word_embeddings"] is False else OUTSIDE
    rests: dict[int, dict[str, Header]] = {}
    seen = set()
    for key, entry in entries.items():
        match = KEY.fullmatch(key)
        if match is not None:
            rests.setdefault(int(match[1]), {})[match[2]] = entry
            continue
        seen.add(key)
        _require(entry.shape.sizes == (embedding[1:] if key == "model.norm.weight" else embedding))
    _require(seen == outside)
    return rests


def _signature(rest: Mapping[str, Header], is_moe: bool) -> tuple[bool, frozenset[tuple[str, tuple[int, ...]]]]:
    return is_moe, frozenset((key, entry.shape.sizes) for key, entry in rest.items())


def _routes(index: int, config: Mapping[str, Any]) -> bool:
    """Whether the configuration says that a layer has experts."""
    if kinds := config.get("mlp_layer_types"):
        return kinds[index] == "sparse"
    frequency = config.get("moe_layer_freq", 1)
    _require(isinstance(frequency, int) and not config.get("mlp_only_layers"))
    step = config.get("decoder_sparse_step", 1)
    first = config.get("first_k_dense_replace", 0)
    return index >= first and index % frequency == 0 and (index + 1) % step == 0


def _layer(index: int, rest: Mapping[str, Header], config: Mapping[str, Any]) -> Layer:
    hidden = positive(config, "hidden_size")
    block = {match[2]: rest[key] for key in rest if (match := BLOCKS.fullmatch(key))}
    beside = {key: entry.shape.sizes for key, entry in rest.items() if not BLOCKS.fullmatch(key)}
    _require(_fits(beside, _attention(config)))
    has_bias = any(key.endswith("bias") for key in beside)
    _require(config.get("attention_bias", has_bias) == has_bias)
    if ROUTER not in block:
        _require(all(DENSE.fullmatch(key) for key in block))
        neurons = _neurons({key.removesuffix(".weight"): entry for key, entry in block.items()}, hidden)
        _require(neurons == config["intermediate_size"])
        return Layer(index, hidden, neurons)
    return _moe_layer(Layer(index, hidden, 0), block, config)


def _fits(beside: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether what stands beside the FFN is attention and norms of the sizes that the configuration has."""
    biases = {key: sizes for key, sizes in beside.items() if key.endswith("_proj.bias")}
    norms = {key: sizes for key, sizes in beside.items() if QK_NORM.fullmatch(key)}
    others = {key: sizes for key, sizes in beside.items() if key not in biases and key not in norms}
    biased = all(sizes == expected[key.removesuffix("bias") + "weight"][:1] for key, sizes in biases.items())
    return biased and len(norms) in (0, 2) and others == expected


def _attention(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Sizes of the matrices of attention, and of the norms."""
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    norms = {f"{place}_layernorm.weight": (hidden,) for place in ("input", "post_attention")}
    if "kv_lora_rank" in config:
        _require("head_dim" not in config or config["head_dim"] == positive(config, "qk_rope_head_dim"))
        _require(config.get("num_key_value_heads", heads) == heads)
        sizes = _latent(config, hidden, heads)
    else:
        width = hidden // heads if config.get("head_dim") is None else positive(config, "head_dim")
        shared = width * positive(config, "num_key_value_heads")
        sizes = {"q_proj": (width * heads, hidden), "k_proj": (shared, hidden), "v_proj": (shared, hidden)}
        sizes["o_proj"] = (hidden, width * heads)
    return norms | {f"self_attn.{name}.weight": shape for name, shape in sizes.items()}


def _latent(config: Mapping[str, Any], hidden: int, heads: int) -> dict[str, tuple[int, ...]]:
    """Those of multi-head latent attention (arXiv 2405.04434)."""
    rotary, plain = positive(config, "qk_rope_head_dim"), positive(config, "qk_nope_head_dim")
    rank, value, of_queries = positive(config, "kv_lora_rank"), positive(config, "v_head_dim"), config["q_lora_rank"]
    queries, width = heads * (plain + rotary), hidden if of_queries is None else of_queries
    sizes: dict[str, tuple[int, ...]] = {
        "kv_a_proj_with_mqa": (rank + rotary, hidden),
        "kv_a_layernorm": (rank,),
        "kv_b_proj": (heads * (plain + value), rank),
        "o_proj": (hidden, heads * value),
        ("q_proj" if of_queries is None else "q_b_proj"): (queries, width),
    }
    if of_queries is not None:
        sizes |= {"q_a_proj": (width, hidden), "q_a_layernorm": (width,)}
    return sizes


def _moe_layer(layer: Layer, block: Mapping[str, Header], config: Mapping[str, Any]) -> Layer:
    experts: dict[int, dict[str, Header]] = {}
    shared: dict[str, Header] = {}
    others: dict[str, tuple[int, ...]] = {}
    for key, entry in block.items():
        if match := EXPERT.fullmatch(key):
            experts.setdefault(int(match[1]), {})[match[2]] = entry
        elif match := SHARED.fullmatch(key):
            shared[match[2]] = entry
        else:
            others[key] = entry.shape.sizes
    stated = [config[field] for field in NUM_EXPERTS if field in config]
    _require(stated == [len(experts)] and experts.keys() == set(range(len(experts))))
    known = {ROUTER: (len(experts), layer.hidden_size), SHARED_GATE: (1, layer.hidden_size)}
    bias = (len(experts),)
    _require(all(sizes == (bias if CORRECTION.match(key) else known.get(key)) for key, sizes in others.items()))
    neurons = {_neurons(matrices, layer.hidden_size) for matrices in experts.values()}
    _require(neurons == {config.get("moe_intermediate_size", config.get("intermediate_size"))})
    return replace(
        layer,
        intermediate_size=neurons.pop(),
        num_experts=len(experts),
        top_k=positive(config, "num_experts_per_tok"),
        expert_kinds=("ffn",) * len(experts),
        num_shared=_num_shared(shared, layer.hidden_size, config),
    )


def _num_shared(matrices: Mapping[str, Header], hidden: int, config: Mapping[str, Any]) -> int:
    count = config.get(NUM_SHARED)
    if not matrices:
        _require(not count and "shared_expert_intermediate_size" not in config)
        return 0
    neurons = _neurons(matrices, hidden)
    if NUM_SHARED in config:
        _require(neurons == positive(config, NUM_SHARED) * config["moe_intermediate_size"])
        return positive(config, NUM_SHARED)
    _require(neurons == config["shared_expert_intermediate_size"])
    return 1


def _neurons(matrices: Mapping[str, Header], hidden: int) -> int:
    """Neurons of an FFN of up, gate and down projections that fit each other."""
    sizes = {MATRICES[name]: entry.shape.sizes for name, entry in matrices.items()}
    rows, _ = sizes["up"]
    _require(sizes == {"up": (rows, hidden), "gate": (rows, hidden), "down": (hidden, rows)} and len(matrices) == 3)
    return rows
