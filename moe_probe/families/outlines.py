"""Published layouts of transformers' model types: the keys of a layer and their shapes.

`moe_probe.families.headers` uses them to describe models without a module. A model type is listed if its released
layout gives the same facts with and without a module; `tests/families/test_headers.py` checks a model of each kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moe_probe.checkpoint import LazyTensor
from moe_probe.families.architecture import PROJECTIONS, Layer
from moe_probe.families.sizes import positive

Keys = Mapping[str, LazyTensor]
MATRICES = {
    **{"up_proj": "up", "w3": "up", "gate_proj": "gate", "w1": "gate", "down_proj": "down", "w2": "down"},
    **{"gate_up_proj": "gate_up", "fc1": "gate_up", "input_linear": "gate_up", "fc2": "down", "output_linear": "down"},
}
NAMES = "|".join(MATRICES)
EXPERT = re.compile(rf"(?P<block>.+\.)?experts\.(?P<expert>0|[1-9]\d*)\.(?P<name>{NAMES})\.weight")
STACK = re.compile(rf"(?P<block>.+\.)?(?:experts\.|moe\.|block_sparse_moe\.|(?<=^mlp\.))(?P<name>{NAMES})(?:\.weight)?")
FLAT = re.compile(r"ffn\.experts\.mlp\.(w1|v1|w2)")  # all experts, concatenated along rows
STACK_BIAS = re.compile(r".*experts\.(gate_up_proj|down_proj)_bias")
SHARED = re.compile(rf"(?:.+\.)?(?:shared_experts?|share_expert|shared_mlp)\.(?P<name>{NAMES})\.weight")
DENSE = re.compile(rf"(?:mlp|feed_forward)\.(?P<name>{NAMES})\.weight")
ROUTER = re.compile(r"(?:.+\.)?(?:gate|router|gate\.wg|router\.(?:gate|layer|proj|classifier))\.(weight|bias)")
SHARED_GATE = re.compile(r"mlp\.shared_expert_gate\.weight")
CORRECTION = re.compile(r"(?:.+\.)?(?:e_score_correction_bias|expert_bias|router_bias)")
ATTENTION = re.compile(r"(self_attn|attn)\.((q|k|v|o|out|q_a|q_b|kv_a|kv_b)_proj(_with_mqa)?\.(weight|bias)|sinks)")
NORMS = re.compile(r"(\w+\.)*\w*norm\w*\.(weight|bias)")
NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
NUM_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k", "moe_top_k", "top_k_experts")
NEURONS = ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size", "ffn_hidden_size")
BUFFERS = re.compile(r"(e_score_correction_bias|\.expert_bias|\.router_bias|layer_scalar|\.std_(bias|scale))$")
# field names of some configurations to the common names
SPELLED = {"d_model": "hidden_size", "n_layers": "num_hidden_layers", "num_layers": "num_hidden_layers"}
DTYPES = {"bfloat16", "float16", "float32"}
ACTIVATIONS = {"silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2", "swiglu"}
# types of fields, by patterns of their names; transformers has to interpret a value of another type
WHOLE, NUMBER, FLAG = (int, type(None)), (int, float, type(None)), (bool, type(None))
KINDS: Mapping[str, tuple[type, ...]] = {
    r"(tie|output)_.*|norm_topk_prob|use_cache|.*_bias|rope_interleave": FLAG,
    r".*(dropout|_eps|_range|_coef|_theta|_factor|_alpha|_noise)": NUMBER,
    r".*_rank|head_dim|sliding_window": WHOLE,
    r".*(size|layers|heads|_dim|position_embeddings|experts|_per_tok|_group|_freq|_step|_replace|_tp)": WHOLE,
    r"rope_(parameters|scaling)": (dict, type(None)),
}


class Unexplained(Exception):
    """Headers and JSON alone do not explain the model."""


def require(condition: object) -> None:
    """Raises `Unexplained` if the condition is false."""
    if not condition:
        raise Unexplained


@dataclass(frozen=True)
class Layout:
    """What the layers of a model type have besides attention, norms and experts.

    Attributes:
        beside: pattern of the keys of other parameters.
        buffers: pattern of the ends of keys that belong to buffers, not parameters.
        mixed: whether layers of one kind may differ in keys and shapes.
        exact: whether attention must have the sizes that the common fields state.
        has_parts: whether the model type has towers of its own.
        copies: config field that counts experts without weights, which return their input.
    """

    beside: re.Pattern[str] = re.compile("(?!)")
    buffers: re.Pattern[str] = BUFFERS
    mixed: bool = False
    exact: bool = False
    has_parts: bool = False
    copies: str | None = None


def _beside(pattern: str, **options: Any) -> Layout:
    return Layout(re.compile(pattern), mixed=True, **options)


EXACT, NONE = Layout(exact=True), re.compile("(?!)")
OUTLINES: Mapping[str, Layout] = {
    **dict.fromkeys(
        ("mixtral", "mistral", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo", "phimoe", "granitemoe", "deepseek"),
        EXACT,
    ),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe", "dots1", "solar_open", "hunyuan_v1_moe"), EXACT),
    **dict.fromkeys(("minimax_m2", "gpt_oss", "aria_text", "granitemoeshared"), EXACT),
    "ernie4_5_moe": Layout(exact=True, buffers=NONE),
    "qwen3_vl_moe": Layout(exact=True, has_parts=True),
    "llama4": Layout(exact=True, has_parts=True),
    "afmoe": _beside(r"self_attn\.gate_proj\.weight", buffers=NONE),
    "gemma4": _beside(r"layer_scalar|router\.(scale|per_expert_scale)|mlp\..+", has_parts=True),
    "nemotron_h": _beside(r"mixer\.[^.]+(\.(weight|bias))?"),
    "longcat_flash": _beside(r"(self_attn|mlps)\.[01]\..+|\w+_layernorm\..+", copies="zero_expert_num"),
    "deepseek_v32": _beside(r"self_attn\.indexer\..+"),
    "qwen3_next": _beside(r"linear_attn\..+"),
    "qwen3_5_moe": _beside(r"linear_attn\..+", has_parts=True),
    "granitemoehybrid": _beside(r"mamba\..+"),
    "jamba": _beside(r"mamba\..+"),
    "lfm2_moe": _beside(r"conv\..+"),
    "kimi_linear": _beside(r"self_attn\.(A_log|dt_bias|(b|f_a|f_b|g_a|g_b)_proj\.weight|[qkv]_conv1d\.weight)"),
    "minimax": _beside(r"self_attn\.(qkv_proj|output_gate)\.weight"),
    "step3p5": _beside(r"self_attn\.g_proj\.weight"),
    "dbrx": _beside(r"norm_attn_norm\.attn\.\w+\.weight"),
}


def require_plain(config: Mapping[str, Any]) -> None:
    """Raises `Unexplained` if the configuration has MLP biases, or a field of an unexpected type."""
    require(not config.get("mlp_bias") and all(map(_holds, config, config.values())))


def _holds(field: str, value: object) -> bool:
    """Whether a config field has a value of the expected type, or a known dtype or activation."""
    if field in ("dtype", "torch_dtype"):
        return value is None or value in DTYPES
    if field in ("hidden_act", "hidden_activation"):
        return value is None or value in ACTIVATIONS
    kinds = next((kinds for pattern, kinds in KINDS.items() if re.fullmatch(pattern, field)), (object,))
    lists = isinstance(value, list) and kinds in (WHOLE, NUMBER)
    return lists or (isinstance(value, kinds) and (not isinstance(value, bool) or kinds is not WHOLE))


def layer_of(index: int, keys: Keys, config: Mapping[str, Any], layout: Layout) -> Layer:
    """Returns the description of a layer, derived from its keys.

    Args:
        index: index of the layer.
        keys: tensors of the layer, by the part of the key after the layer's number.
        config: config fields of the language model.
        layout: layout of the model type.

    Raises:
        Unexplained: a key or a size does not fit the configuration and the layout.
    """
    hidden = positive(config, "hidden_size")
    roles = {key: _role(key, layout) for key in keys}
    require(all(roles.values()))
    if layout.exact:
        require(_fits({key: tuple(keys[key].shape) for key, role in roles.items() if role == "attention"}, config))
    layer = Layer(index, hidden, 0, projections=())
    experts, neurons, projections = _experts(_of(keys, roles, "expert"), hidden, config)
    require(_routes(index, config) is not (not experts) or _routes(index, config) is None)
    if not experts:
        dense = _of(keys, roles, "dense")
        if not dense:
            return layer
        size, names = _ffn({MATRICES[_name(DENSE, key)]: entry for key, entry in dense.items()}, hidden)
        require(not layout.exact or size in _sizes(config, (*NEURONS, "intermediate_size")))
        return replace(layer, intermediate_size=size, projections=names)
    require(_stated(config, NUM_EXPERTS, index) == experts and neurons in _sizes(config, NEURONS, index))
    routers = _of(keys, roles, "router")
    copies = 0 if layout.copies is None else positive(config, layout.copies)
    require(routers and all(entry.shape[0] == experts + copies for entry in routers.values()))
    return replace(
        layer,
        intermediate_size=neurons,
        num_experts=experts + copies,
        top_k=_stated(config, TOP_K, index),
        expert_kinds=("ffn",) * experts + ("copy",) * copies,
        num_shared=_num_shared(_of(keys, roles, "shared"), hidden, config, index),
        projections=projections,
    )


def _role(key: str, layout: Layout) -> str | None:
    """Returns the role of a key; None if no pattern matches."""
    roles = {
        "shared": SHARED, "dense": DENSE, "expert": EXPERT, "stack": STACK, "flat": FLAT, "stack bias": STACK_BIAS,
        "router": ROUTER, "shared gate": SHARED_GATE, "correction": CORRECTION, "attention": ATTENTION, "norm": NORMS,
    }  # fmt: skip
    role = next((role for role, pattern in roles.items() if pattern.fullmatch(key)), None)
    if role in ("stack", "flat"):
        return "expert"
    return role or ("beside" if layout.beside.fullmatch(key) else None)


def _of(keys: Keys, roles: Mapping[str, str | None], role: str) -> dict[str, LazyTensor]:
    return {key: keys[key] for key in keys if roles[key] == role}


def _name(pattern: re.Pattern[str], key: str) -> str:
    match = pattern.fullmatch(key)
    require(match)
    assert match is not None
    return match["name"]


def _experts(keys: Keys, hidden: int, config: Mapping[str, Any]) -> tuple[int, int, tuple[str, ...]]:
    """Returns the number of experts, the neurons of each, and the projections; (0, 0, ()) without experts."""
    if not keys:
        return 0, 0, ()
    experts: dict[int, dict[str, tuple[int, ...]]] = {}
    for key, entry in keys.items():
        for number, name, shape in _matrices(key, entry, hidden, config):
            experts.setdefault(number, {})[name] = shape
    require(experts.keys() == set(range(len(experts))))
    kinds = {_ffn_of(shapes, hidden) for shapes in experts.values()}
    require(len(kinds) == 1)
    return len(experts), *kinds.pop()


def _matrices(
    key: str, entry: LazyTensor, hidden: int, config: Mapping[str, Any]
) -> Iterator[tuple[int, str, tuple[int, ...]]]:
    """Yields expert number, projection and shape (out, in) of each matrix in a tensor."""
    if match := EXPERT.fullmatch(key):
        yield int(match["expert"]), MATRICES[match["name"]], tuple(entry.shape)
        return
    flat = FLAT.fullmatch(key)
    name = {"w1": "gate", "v1": "up", "w2": "down"}[flat[1]] if flat else MATRICES[_name(STACK, key)]
    count = _stated(config, NUM_EXPERTS)
    shape = (entry.shape[0] // count, entry.shape[1]) if flat else tuple(entry.shape[1:])
    require(entry.numel() == count * shape[0] * shape[1] and hidden in shape)
    other = entry.numel() // count // hidden
    for number in range(count):
        for part in ("gate", "up") if name == "gate_up" else (name,):
            rows = other // 2 if name == "gate_up" else other
            yield number, part, (hidden, rows) if name == "down" else (rows, hidden)


def _ffn(matrices: Mapping[str, LazyTensor], hidden: int) -> tuple[int, tuple[str, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, entry in matrices.items():
        if name == "gate_up":
            shapes |= dict.fromkeys(("gate", "up"), (entry.shape[0] // 2, entry.shape[1]))
        else:
            shapes[name] = tuple(entry.shape)
    return _ffn_of(shapes, hidden)


def _ffn_of(shapes: Mapping[str, tuple[int, ...]], hidden: int) -> tuple[int, tuple[str, ...]]:
    """Returns neurons and projections of an FFN, whose matrices must fit each other."""
    rows, _ = shapes["up"]
    fitting = {"up": (rows, hidden), "gate": (rows, hidden), "down": (hidden, rows)}
    require({"up", "down"} <= shapes.keys() and all(shapes[name] == fitting[name] for name in shapes))
    return rows, tuple(name for name in PROJECTIONS if name in shapes)


def _num_shared(keys: Keys, hidden: int, config: Mapping[str, Any], index: int) -> int:
    count = next((_at(config[name], index) for name in NUM_SHARED if name in config), None)
    if not keys:
        require(not count)
        return 0
    _ffn({MATRICES[_name(SHARED, key)]: entry for key, entry in keys.items()}, hidden)
    return count or 1


def _at(value: Any, index: int) -> Any:
    """Returns a field's value for a layer; some configurations have a list with one value per layer."""
    return value[index] if isinstance(value, list) and index < len(value) else value


def _stated(config: Mapping[str, Any], names: tuple[str, ...], index: int = 0) -> int:
    """Returns the first of the named fields that is stated, which must be a whole number above 0."""
    flat = {**config, **(config.get("ffn_config") or {})}
    value: Any = next((_at(flat[name], index) for name in names if flat.get(name) is not None), None)
    require(isinstance(value, int) and not isinstance(value, bool) and value > 0)
    return value


def _sizes(config: Mapping[str, Any], names: tuple[str, ...], index: int = 0) -> set[int]:
    flat = {**config, **(config.get("ffn_config") or {})}
    return {_at(flat[name], index) for name in names if name in flat}


def _routes(index: int, config: Mapping[str, Any]) -> bool | None:
    """Whether a layer has experts according to the configuration; None if it has none of the common fields."""
    if kinds := config.get("mlp_layer_types"):
        return kinds[index] == "sparse"
    if not {"moe_layer_freq", "decoder_sparse_step", "first_k_dense_replace"} & config.keys():
        return None
    frequency, step = config.get("moe_layer_freq", 1), config.get("decoder_sparse_step", 1)
    require(isinstance(frequency, int) and isinstance(step, int) and not config.get("mlp_only_layers"))
    first = config.get("first_k_dense_replace", 0)
    return index >= first and index % frequency == 0 and (index + 1) % step == 0


def _fits(beside: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> bool:
    """Whether the attention tensors have the shapes that the configuration implies."""
    expected = _attention(config)
    biases = {key: sizes for key, sizes in beside.items() if key.endswith((".bias", ".sinks"))}
    matrices = {key: sizes for key, sizes in beside.items() if key not in biases}
    expected["self_attn.sinks"] = (positive(config, "num_attention_heads"),)
    rows = {**expected, **{key.removesuffix("weight") + "bias": sizes[:1] for key, sizes in expected.items()}}
    stated = config.get("attention_bias")
    known = stated is None or stated == any(key.endswith(".bias") for key in biases)
    del expected["self_attn.sinks"]
    return known and matrices == expected and all(rows.get(key) == sizes for key, sizes in biases.items())


def _attention(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the attention matrices, by key."""
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    if "kv_lora_rank" in config:
        require("head_dim" not in config or config["head_dim"] == positive(config, "qk_rope_head_dim"))
        require(config.get("num_key_value_heads", heads) == heads)
        sizes = _latent(config, hidden, heads)
    else:
        width = hidden // heads if config.get("head_dim") is None else positive(config, "head_dim")
        groups = heads if config.get("num_key_value_heads") is None else positive(config, "num_key_value_heads")
        sizes = {"q_proj": (width * heads, hidden), "k_proj": (width * groups, hidden)}
        sizes |= {"v_proj": (width * groups, hidden), "o_proj": (hidden, width * heads)}
    return {f"self_attn.{name}.weight": shape for name, shape in sizes.items()}


def _latent(config: Mapping[str, Any], hidden: int, heads: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the matrices of multi-head latent attention (arXiv 2405.04434), by name."""
    rotary, plain = positive(config, "qk_rope_head_dim"), positive(config, "qk_nope_head_dim")
    rank, value, of_queries = positive(config, "kv_lora_rank"), positive(config, "v_head_dim"), config["q_lora_rank"]
    queries, width = heads * (plain + rotary), hidden if of_queries is None else of_queries
    sizes: dict[str, tuple[int, ...]] = {
        "kv_a_proj_with_mqa": (rank + rotary, hidden),
        "kv_b_proj": (heads * (plain + value), rank),
        "o_proj": (hidden, heads * value),
        ("q_proj" if of_queries is None else "q_b_proj"): (queries, width),
    }
    return sizes | ({} if of_queries is None else {"q_a_proj": (width, hidden)})
