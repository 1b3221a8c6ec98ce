"""Write a Grok-1 as xai-org published theirs: numbered pickles of int8 weights with grouped bfloat16 scales.

    from grok_release import write_release
    write_release(model, "ckpt/tiny-grok-1")      # ckpt-0/tensor00000_000, ... and model_config.json

The pickles are what Python's pickle, protocol 4, writes of numpy 1 arrays and ml_dtypes' bfloat16; neither is needed.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from moe_probe.families.grok1.release import ORIGINAL

ATTENTION = {"key": "k", "linear": "o", "query": "q", "value": "v"}
NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


def write_release(model: PreTrainedModel, folder: str | Path, groups: int = 1) -> None:
    """Write `folder/ckpt-0` and `folder/model_config.json` for a Grok-1 language model.

    Args:
        model: a `Grok1ForCausalLM` that computes what the release computes (`Grok1Config(**ORIGINAL)`).
        groups: scales per column of the matrices that are split by rows (the experts' and the attention's output); a
            divisor of their numbers of rows. The published files have 8.

    Raises:
        ValueError: the model has an option that a release cannot state.
    """
    for name, value in {**ORIGINAL, "tie_word_embeddings": True}.items():
        if getattr(model.config, name) != value:
            raise ValueError(f"{name} is {getattr(model.config, name)!r}, in a release it is {value!r}")
    options = json.dumps(run_config(model.config), indent=2)
    write_tensors(release_tensors(model), Path(folder) / "ckpt-0", groups)
    (Path(folder) / "model_config.json").write_text(options + "\n", encoding="utf-8")


def release_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The model's parameters under the release's names, matrices as (in, out), in float32."""
    state = {name: value.detach().float().cpu() for name, value in model.state_dict().items()}
    tensors = {"in_out_embed": state["model.embed_tokens.weight"], "rms_norm": state["model.norm.weight"]}
    for layer in range(model.config.num_hidden_layers):
        old, new = f"model.layers.{layer}.", f"transformer/decoder_layer_{layer}/"
        gate, up = state[old + "mlp.experts.gate_up_proj"].mT.chunk(2, dim=-1)
        tensors |= {new + "moe/linear": gate, new + "moe/linear_v": up}
        tensors[new + "moe/linear_1"] = state[old + "mlp.experts.down_proj"].mT
        tensors[new + "router"] = state[old + "mlp.gate.weight"].T
        for part, letter in ATTENTION.items():
            tensors[f"{new}multi_head_attention/{part}"] = state[f"{old}self_attn.{letter}_proj.weight"].T
        for number, norm in enumerate(NORMS):
            tensors[f"{new}rms_norm" + (f"_{number}" if number else "")] = state[f"{old}{norm}.weight"]
    return tensors


def run_config(config: Any) -> dict[str, Any]:
    """The configuration with the names of the release's run.py.

    Raises:
        ValueError: the experts' neurons are no multiple of 8, which the release cannot say.
    """
    if config.intermediate_size % 8:
        raise ValueError(f"intermediate_size is {config.intermediate_size}, expected a multiple of 8")
    return {
        "vocab_size": config.vocab_size,
        "pad_token": config.pad_token_id,
        "eos_token": config.eos_token_id,
        "bos_token_id": config.bos_token_id,  # run.py does not state it
        "sequence_len": config.max_position_embeddings,
        "output_multiplier_scale": config.output_multiplier_scale,
        "embedding_multiplier_scale": config.embedding_multiplier_scale,
        "model": {
            "emb_size": config.hidden_size,
            "widening_factor": 1.5 * config.intermediate_size / config.hidden_size,
            "key_size": config.head_dim,
            "num_q_heads": config.num_attention_heads,
            "num_kv_heads": config.num_key_value_heads,
            "num_layers": config.num_hidden_layers,
            "attn_output_multiplier": config.attn_output_multiplier,
            "num_experts": config.num_experts,
            "num_selected_experts": config.num_experts_per_tok,
        },
    }


def write_tensors(tensors: Mapping[str, torch.Tensor], folder: str | Path, groups: int = 1) -> None:
    """Write named float tensors, in the order of their names, as `tensor00000_000`, `tensor00001_000`, ...

    All matrices but the router's and the embeddings are quantized. Files of such names in `folder` are replaced.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("tensor*_000"):
        path.unlink()
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        if tensor.ndim > 1 and not name.endswith(("router", "in_out_embed")):
            by_row = name.endswith(("moe/linear_1", "multi_head_attention/linear"))
            tensor = quantize(tensor, groups if by_row else 1)
        write_pickle(folder / f"tensor{number:05d}_000", tensor)


def quantize(weight: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 values (..., K, N) and bfloat16 scales (..., groups, N), so that values times scales are near `weight`."""
    grouped = weight.unflatten(-2, (groups, -1))  # (..., groups, K / groups, N)
    scales = (grouped.abs().amax(dim=-2) / 127).clamp_min(1e-30).bfloat16()
    values = (grouped / scales.float().unsqueeze(-2)).round().clamp(-127, 127)
    return values.to(torch.int8).flatten(-3, -2), scales


def write_pickle(path: Path, tensor: torch.Tensor | tuple[torch.Tensor, torch.Tensor], protocol: int = 4) -> None:
    """Pickle an array (float32, int8 or bfloat16), or the pair of an int8 weight and its scales."""
    with open(path, "wb") as file:
        pickler = ReleasePickler(file, protocol)
        pickler.dump(array(tensor) if isinstance(tensor, torch.Tensor) else quantized_weight(*tensor, protocol))


@dataclass(frozen=True)
class Global:
    """A name that the pickle imports; nothing of that name needs to exist here."""

    module: str
    name: str


@dataclass(eq=False)
class Built:
    """An object that the pickle makes of a global and its arguments, and gives a state."""

    function: Global
    arguments: tuple
    state: Any
    opcode: bytes = pickle.REDUCE


NDARRAY, DTYPE = Global("numpy", "ndarray"), Global("numpy", "dtype")
RECONSTRUCT = Global("numpy.core.multiarray", "_reconstruct")
QUANTIZED = Global("__main__", "QuantizedWeight8bit")
DTYPES = {
    torch.float32: Built(DTYPE, ("f4", False, True), (3, "<", None, None, None, -1, -1, 0)),
    torch.int8: Built(DTYPE, ("i1", False, True), (3, "|", None, None, None, -1, -1, 0)),
    torch.bfloat16: Built(DTYPE, (Global("ml_dtypes", "bfloat16"), False, True), (3, "<", None, None, None, 2, 2, 80)),
}
ONE_BYTE = b"b"  # one object for all arrays of a file: the second time it is written as a reference, as numpy's is


def array(tensor: torch.Tensor) -> Built:
    """The tensor as the numpy array of its shape and dtype."""
    data = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    empty = tuple([0])  # an object of its own, as numpy's is
    return Built(RECONSTRUCT, (NDARRAY, empty, ONE_BYTE), (1, tuple(tensor.shape), DTYPES[tensor.dtype], False, data))


def quantized_weight(weight: torch.Tensor, scales: torch.Tensor, protocol: int) -> Built:
    """`QuantizedWeight8bit(weight, scales)`."""
    state = {"weight": array(weight), "scales": array(scales)}
    if protocol >= 2:
        return Built(QUANTIZED, (), state, pickle.NEWOBJ)
    return Built(Global("copy_reg", "_reconstructor"), (QUANTIZED, Global("__builtin__", "object"), None), state)


class ReleasePickler(pickle._Pickler):
    """Python's pickler, for objects that stand for others."""

    def save_name(self, name: Global) -> None:
        if self.proto >= 4:
            self.save(name.module)
            self.save(name.name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{name.module}\n{name.name}\n".encode())
        self.memoize(name)

    def save_built(self, built: Built) -> None:
        self.save(built.function)
        self.save(built.arguments)
        self.write(built.opcode)
        self.memoize(built)
        self.save(built.state)
        self.write(pickle.BUILD)

    dispatch: ClassVar[dict] = {**pickle._Pickler.dispatch, Global: save_name, Built: save_built}
