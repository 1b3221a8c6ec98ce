"""Running a model larger than memory: layers of Mixtral's true shape, read once for the whole corpus.

    python benchmarks/layerwise.py [--layers 4] [--batches 8] [--folder DIR] [--offload]

Writes a checkpoint with random bfloat16 weights in the published layout (2.9 GB a layer) and prints the peak of
resident memory without mapped files, in layers of the compute dtype; the bytes read from the checkpoint, in its size;
and the time of one layerwise pass over all batches. With --offload also the time of transformers with accelerate's disk
offload in the same dtype, batch by batch, and the disk that it takes; as for a model larger than memory, the page cache
is dropped before each batch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import moe_probe
from moe_probe import dynamic

CONFIG = {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}


def write(folder: Path, layers: int) -> None:
    """A checkpoint in Mixtral's layout, a shard per layer."""
    width, neurons, vocabulary = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    noise = torch.randn(neurons * width).mul_(0.02).bfloat16()

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.roll(noise, int(torch.randint(neurons * width, ())))[: rows * columns].view(rows, columns)

    shards = [{f"model.{name}": matrix(vocabulary // 8, width).repeat(8, 1) for name in ("embed_tokens.weight",)}]
    shards[0] |= {"lm_head.weight": shards[0]["model.embed_tokens.weight"].clone()}
    shards[0] |= {"model.norm.weight": torch.ones(width).bfloat16()}
    weight_map = {}
    for number in range(layers + 1):
        tensors = shards[0] if number == 0 else {}
        if number:
            prefix = f"model.layers.{number - 1}"
            for name, rows in (("q", 4096), ("k", 1024), ("v", 1024), ("o", 4096)):
                tensors[f"{prefix}.self_attn.{name}_proj.weight"] = matrix(rows, width)
            for name in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}.{name}.weight"] = torch.ones(width).bfloat16()
            tensors[f"{prefix}.block_sparse_moe.gate.weight"] = matrix(8, width)
            for expert in range(8):
                for name, shape in {"w1": (neurons, width), "w2": (width, neurons), "w3": (neurons, width)}.items():
                    tensors[f"{prefix}.block_sparse_moe.experts.{expert}.{name}.weight"] = matrix(*shape)
        file = f"model-{number:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


class Peak:
    """Highest resident memory without mapped files while it is entered, sampled."""

    def __enter__(self) -> Peak:
        self.bytes, self.over = 0, False
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        return self

    def _sample(self) -> None:
        process = psutil.Process()
        while not self.over:
            memory = process.memory_info()
            self.bytes = max(self.bytes, memory.rss - memory.shared)
            time.sleep(0.02)

    def __exit__(self, *error: object) -> None:
        self.over = True
        self.thread.join()


def drop_cache(folder: Path) -> None:
    """Have the files read from the disk again."""

    for path in (path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@torch.no_grad()
def offloaded(folder: Path, batches: list[torch.Tensor], dtype: torch.dtype) -> tuple[float, int]:
    """Seconds and extra bytes on disk of transformers with disk offload."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as extra:
        start = time.perf_counter()
        places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
        module = AutoModelForCausalLM.from_pretrained(
            folder, device_map={**places, "model.layers": "disk"}, offload_folder=extra, dtype=dtype
        )
        for batch in batches:
            drop_cache(Path(extra))  # a model larger than memory does not stay in the page cache
            drop_cache(folder)
            module.model(batch, use_cache=False)
        seconds = time.perf_counter() - start
        return seconds, sum(path.stat().st_size for path in Path(extra).rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256, help="per batch")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written; temporary by default")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in")
    parser.add_argument("--offload", action="store_true")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        write(folder, arguments.layers)
        dtype = getattr(torch, arguments.dtype)
        model = moe_probe.load(folder, dtype=dtype)
        ids = torch.randint(CONFIG["vocab_size"], (arguments.batches, arguments.tokens))
        layer = sum(t.numel() for k, t in model.checkpoint.items() if k.startswith("model.layers.0.")) * dtype.itemsize
        drop_cache(folder)
        before = psutil.Process().io_counters().read_bytes
        start = time.perf_counter()
        with Peak() as peak:
            options = {"batch_tokens": arguments.tokens, "execution": "layerwise", "progress": False}
            dynamic.run(model, ids.tolist(), [dynamic.GateChoices()], **options)
        ours = time.perf_counter() - start
        read = psutil.Process().io_counters().read_bytes - before
        print(f"layerwise: {ours:.0f} s for {arguments.batches} batches, {arguments.layers} layers")
        print(f"  peak resident memory without mapped files: {peak.bytes / layer:.2f} layers in {arguments.dtype}")
        print(f"  read from disk: {read / model.checkpoint.nbytes:.2f}x the checkpoint's size")
        if arguments.offload:
            drop_cache(folder)
            theirs, extra = offloaded(folder, list(ids[:, None]), dtype)
            print(f"  transformers with disk offload: {theirs / ours:.1f}x as long, {extra / 1e9:.1f} GB more on disk")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
