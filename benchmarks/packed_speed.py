"""Similarity of one true-size MoE layer that is packed, against decoding alone and against the layer in bfloat16.

    python benchmarks/packed_speed.py [EXPERTS [LAYOUT ...]]

Writes one layer of Qwen3-30B-A3B's sizes (d 2048, ff 768, 128 experts by default) as GPTQ, AWQ (gemv) and HQQ int4, as
GGUF Q4_K and as fp8 with blocks, and prints for each: seconds of `similarity(level="matrix")`, of decoding every matrix
with the format's own package or program, of the analysis on bfloat16, and the peak of its memory beyond the mapped
files, in layers of bfloat16 (in a process of its own). Ratios are of one run.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

import moe_probe
from moe_probe import static

D, FF, V = 2048, 768, 256
EXPERTS = int(sys.argv[1]) if len(sys.argv) > 1 else 128
ASKED = sys.argv[2:]  # such as gptq, fp8, gguf; all by default
CONFIG = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": D,
    "moe_intermediate_size": FF,
    "intermediate_size": FF,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 8,
    "vocab_size": V,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SHAPES = {"gate_proj": (FF, D), "up_proj": (FF, D), "down_proj": (D, FF)}
LAYER = 2 * EXPERTS * 3 * D * FF  # bytes in bfloat16


def outer() -> dict[str, torch.Tensor]:
    """Everything but the experts."""
    at, small = "model.layers.0.", lambda *shape: torch.randn(*shape, dtype=torch.bfloat16) * 0.02
    heads = {f"{at}self_attn.{name}_proj.weight": small(256, D) for name in "qkv"}
    norms = {f"{at}{name}.weight": small(D) for name in ("input_layernorm", "post_attention_layernorm")}
    norms |= {f"{at}self_attn.{name}_norm.weight": small(64) for name in "qk"}
    return {
        **heads,
        **norms,
        f"{at}self_attn.o_proj.weight": small(D, 256),
        f"{at}mlp.gate.weight": small(EXPERTS, D),
        "model.embed_tokens.weight": small(V, D),
        "model.norm.weight": small(D),
        "lm_head.weight": small(V, D),
    }


def write(folder: Path, make: Callable[[int, int], dict[str, torch.Tensor]], quantization: dict | None) -> Path:
    """A folder whose experts `make` packs; its keys replace `weight`."""
    folder.mkdir()
    config = CONFIG if quantization is None else {**CONFIG, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = outer()
    for expert in range(EXPERTS):
        for name, shape in SHAPES.items():
            stem = f"model.layers.0.mlp.experts.{expert}.{name}."
            tensors |= {stem + key: value for key, value in make(*shape).items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def plain(rows: int, columns: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.randn(rows, columns).mul_(0.02).to(torch.bfloat16)}


def fp8(rows: int, columns: int) -> dict[str, torch.Tensor]:
    scale = torch.rand(rows // 128, columns // 128) * 1e-4 + 1e-5
    return {"weight": torch.randn(rows, columns).mul_(50).to(torch.float8_e4m3fn), "weight_scale_inv": scale}


def words(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)


def gptq(rows: int, columns: int) -> dict[str, torch.Tensor]:
    return {
        "qweight": words(columns // 8, rows),
        "qzeros": words(columns // 128, rows // 8),
        "scales": torch.rand(columns // 128, rows).mul_(0.01).half(),
        "g_idx": (torch.arange(columns) // 128).int(),
    }


def awq_gemv(rows: int, columns: int) -> dict[str, torch.Tensor]:
    groups = -(-columns // (128 * 8))
    scales = torch.rand(rows, groups * 8).mul_(0.01).half()
    return {"qweight": words(rows, columns // 8), "qzeros": words(rows, groups), "scales": scales}


def decode_awq_gemv(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """By the definition, whole matrices at a time."""
    codes, zeros = (
        ((parts[name].unsqueeze(2) >> torch.arange(0, 32, 4)) & 15).flatten(1) for name in ("qweight", "qzeros")
    )
    index = torch.arange(codes.shape[1]) // 128
    return parts["scales"][:, index] * (codes - zeros[:, index])


def hqq(rows: int, columns: int) -> dict[str, torch.Tensor]:
    groups = rows * columns // 64
    said = {"nbits": 4, "group_size": 64, "axis": 1}
    beside = {name: torch.tensor(value, dtype=torch.int32) for name, value in said.items()}
    return {
        **beside,
        "W_q": torch.randint(0, 256, (groups // 2, 64), dtype=torch.uint8),
        "scale": torch.rand(groups, 1).mul_(0.01).half(),
        "zero": torch.rand(groups, 1).mul_(15).half(),
        "shape": torch.tensor([rows, columns]),
        "packing": torch.tensor([ord(letter) for letter in "4bit_u8"], dtype=torch.uint8),
        "view_as_float": torch.tensor(0, dtype=torch.uint8),
    }


def decode_hqq(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """As HQQ's torch program does."""
    codes = torch.cat([parts["W_q"] >> 4, parts["W_q"] & 15]).half()
    return ((codes - parts["zero"]) * parts["scale"]).reshape(parts["shape"].tolist())


def decode_gptq(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """As AutoGPTQ's torch program does."""
    shifts = torch.arange(0, 32, 4)
    zeros = ((parts["qzeros"].unsqueeze(2) >> shifts) & 15).flatten(1) + 1 & 15
    codes = ((parts["qweight"].unsqueeze(1) >> shifts.view(1, -1, 1)) & 15).flatten(0, 1)
    index = parts["g_idx"].long()
    return parts["scales"][index] * (codes - zeros[index])


def decode_fp8(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """As transformers does."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    return Fp8Dequantize(None)._dequantize_one(parts["weight"], parts["weight_scale_inv"], torch.bfloat16)


def timed(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])


def peak_memory(path: Path) -> int:
    """The most bytes that `similarity` holds beyond the mapped files and what was there before."""
    model, before, samples = moe_probe.load(path), anonymous(), [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            samples.append(anonymous())

    watching = threading.Thread(target=watch)
    watching.start()
    static.similarity(model, level="matrix")
    done.set()
    watching.join()
    return max(samples) - before


def report(name: str, path: Path, decode: Callable[[], object], reference: float) -> None:
    took, alone = timed(lambda: static.similarity(moe_probe.load(path), level="matrix")), timed(decode)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        peak = process.submit(peak_memory, path).result() / LAYER
    print(
        f"{name:10} similarity {took:.1f} s; decoding alone {alone:.1f} s; bfloat16 {reference:.1f} s; "
        f"similarity / (decoding + bfloat16) {took / (alone + reference):.2f}; memory {peak:.2f} layers",
        flush=True,
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        bf16 = write(root / "bf16", plain, None)
        reference = timed(lambda: static.similarity(moe_probe.load(bf16), level="matrix"))
        layouts = {
            "gptq int4": (gptq, decode_gptq, {"quant_method": "gptq", "bits": 4, "group_size": 128}),
            "awq gemv": (awq_gemv, decode_awq_gemv, {"quant_method": "awq", "group_size": 128, "version": "gemv"}),
            "hqq int4": (hqq, decode_hqq, {"quant_method": "hqq"}),
            "fp8": (fp8, decode_fp8, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
        }
        for name, (make, decode, quantization) in layouts.items():
            if ASKED and name.split()[0] not in ASKED:
                continue
            folder = write(root / name.split()[0], make, quantization)
            parts = [make(*shape) for shape in SHAPES.values()]
            report(name, folder, partial(repeated, decode, parts), reference)
        if not ASKED or "gguf" in ASKED:
            report_gguf(root, reference)


def repeated(decode: Callable[[Any], object], parts: Sequence[Any]) -> None:
    """Decode the matrices of every expert."""
    for _ in range(EXPERTS):
        for part in parts:
            decode(part)


def report_gguf(root: Path, reference: float) -> None:
    kind = gguf.GGMLQuantizationType.Q4_K
    writer = gguf.GGUFWriter(root / "q4_k.gguf", "qwen3moe")
    fields = {
        "block_count": 1,
        "embedding_length": D,
        "context_length": 64,
        "feed_forward_length": FF,
        "attention.head_count": 4,
        "attention.head_count_kv": 4,
        "attention.key_length": 64,
        "expert_count": EXPERTS,
        "expert_used_count": 8,
        "expert_feed_forward_length": FF,
    }
    for key, value in fields.items():
        writer.add_uint32(f"qwen3moe.{key}", value)
    writer.add_float32("qwen3moe.attention.layer_norm_rms_epsilon", 1e-6)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate": "ffn_gate_inp",
    }
    ends = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
    for key, value in outer().items():
        name = ends.get(key) or "blk.0." + names[key.removeprefix("model.layers.0.").removesuffix(".weight")]
        writer.add_tensor(f"{name}.weight", value.float().numpy())
    blocks = {}
    for name, (rows, columns) in {"gate": (FF, D), "up": (FF, D), "down": (D, FF)}.items():
        one = np.random.default_rng(0).integers(0, 256, (rows, columns // 256, 144), dtype=np.uint8)
        one[..., :4] = np.array([0.001, 0.001], np.float16).view(np.uint8)
        blocks[name] = one.reshape(rows, -1)
        writer.add_tensor(f"blk.0.ffn_{name}_exps.weight", np.stack([blocks[name]] * EXPERTS), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    decode = partial(gguf.quants.dequantize, qtype=kind)
    report("gguf q4_k", root / "q4_k.gguf", partial(repeated, decode, list(blocks.values())), reference)


if __name__ == "__main__":
    main()
