"""A checkpoint of two tensors, written in any container."""

import json

import torch
from safetensors.torch import save_file

TENSORS = {"a.weight": torch.randn(6, 4).bfloat16(), "b.weight": torch.arange(10)}


def write(folder, container="safetensors", sharded=False, config=None):
    """A checkpoint of two tensors."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "mixtral"}))
    stem, ending, saver = {
        "safetensors": ("model", "safetensors", save_file),
        "bin": ("pytorch_model", "bin", torch.save),
    }[container]
    if not sharded:
        saver(TENSORS, folder / f"{stem}.{ending}")
        return folder
    weight_map = {}
    for i, (key, tensor) in enumerate(TENSORS.items()):
        weight_map[key] = f"{stem}-{i}.{ending}"
        saver({key: tensor}, folder / weight_map[key])
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
