"""How fast the static analyses are, as ratios against reading the same bytes, measured in one run.

    python benchmarks/static_speed.py [mixtral] [deepseek] [neurons] [alignment] [differences]

Writes checkpoints of one layer in true shape (random bfloat16 weights) to a temporary folder, reads them once so that
they lie in the page cache, and prints medians of five runs (one for what takes minutes) and their ratios.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lap
import numpy as np
import psutil
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA

import moe_probe
from moe_probe import static
from moe_probe.static import gram
from moe_probe.static.analyses.similarity import select_layers_and_matrices
from moe_probe.static.geometry import Tree


def seconds(function: Callable[[], object], runs: int = 5) -> float:
    """Median wall time."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def read_all(folder: Path) -> None:
    """All weight bytes through readinto, 64 MB at a time."""
    buffer = bytearray(64 << 20)
    for path in folder.glob("*.safetensors"):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def write_mixtral(folder: Path, experts: int = 8, neurons: int = 14336, width: int = 4096) -> None:
    """One layer in Mixtral's layout."""
    config = {
        "model_type": "mixtral",
        "num_hidden_layers": 1,
        "hidden_size": width,
        "intermediate_size": neurons,
        "num_local_experts": experts,
        "num_experts_per_tok": 2,
    }
    block = "model.layers.0.block_sparse_moe"
    shapes = {f"{block}.gate.weight": (experts, width)}
    for expert in range(experts):
        for name, shape in {"w1": (neurons, width), "w2": (width, neurons), "w3": (neurons, width)}.items():
            shapes[f"{block}.experts.{expert}.{name}.weight"] = shape
    tensors = {key: torch.randn(shape).bfloat16() for key, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def pair_by_pair(folder: Path) -> None:
    """Cosine of every pair of loaded, flattened matrices, one projection after the other, as the notebooks do."""
    model = moe_probe.load(folder)
    count = model.layer(0).num_experts
    for projection in ("up", "gate", "down"):
        flat = [model.expert_weight(0, e, projection).flatten() for e in range(count)]
        for i in range(count):
            for j in range(i, count):
                torch.nn.functional.cosine_similarity(flat[i], flat[j], dim=0)


def private_megabytes(folder: str) -> float:
    """Highest resident memory without mapped files of a fresh process that computes similarity, sampled."""
    code = f"from moe_probe import static; static.similarity({folder!r})"
    highest = 0
    with psutil.Popen([sys.executable, "-c", code]) as process:
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                memory = process.memory_info()
                highest = max(highest, memory.rss - memory.shared)
            time.sleep(0.02)
    return highest / 1e6


def layer(name: str, experts: int, neurons: int, width: int) -> None:
    """Matrix-level similarity and PCA of one layer against reading it."""
    with tempfile.TemporaryDirectory() as folder:
        write_mixtral(Path(folder), experts, neurons, width)
        read_all(Path(folder))
        read = seconds(lambda: read_all(Path(folder)))
        similarity = seconds(lambda: static.similarity(folder))
        pca = seconds(lambda: static.pca(folder))
        matrix = torch.randn(experts, neurons * width // 4)
        product = seconds(lambda: matrix @ matrix.T) * 4 * 3
        print(f"{name}: read {read:.2f} s; one float32 product of the same arithmetic {product:.2f} s")
        print(f"  similarity {similarity / read:.2f}x read, {similarity / max(read, product):.2f}x the larger of both")
        print(f"  standardized PCA {pca / read:.2f}x read")
        print(f"  resident memory beyond mapped files {private_megabytes(folder):.0f} MB")
        if experts <= 8:
            slow = seconds(lambda: pair_by_pair(Path(folder)), runs=1)
            print(f"  pair by pair on loaded tensors: {slow / similarity:.0f}x as long as similarity")


def neurons() -> None:
    """Neuron-level PCA against scikit-learn's full SVD, on one projection."""
    with tempfile.TemporaryDirectory() as folder:
        write_mixtral(Path(folder))
        ours_time = seconds(lambda: static.pca(folder, "neuron", projections="up"), runs=1)
        ours = static.pca(folder, "neuron", projections="up")
        model = moe_probe.load(folder)
        rows = torch.cat([model.expert_weight(0, str(e), "up").float() for e in range(8)])
        rows = ((rows - rows.mean(0)) / rows.std(0)).numpy()
        start = time.perf_counter()
        reference = PCA(2, svd_solver="full").fit(rows)
        theirs_time = time.perf_counter() - start
        axes = rows.T @ ours.coordinates.values[0, 0]  # each proportional to a component
        axes /= np.linalg.norm(axes, axis=0)
        along = (axes.T * reference.components_).sum(1)
        angle = np.arcsin(np.linalg.norm(axes - reference.components_.T * along, axis=0))
        ratio = np.abs(ours.explained_variance.squeeze() / reference.explained_variance_ - 1).max()
        print(f"neuron PCA: {ours_time:.0f} s, scikit-learn {theirs_time:.0f} s: {theirs_time / ours_time:.1f}x")
        print(f"  explained variance differs by {float(ratio):.1e} relative, components by {angle.max():.1e} rad")


def alignment() -> None:
    """One pair of 14336 neurons of width 4096, unrelated and related: the two assignment solvers."""
    generator = np.random.default_rng(0)
    first = generator.standard_normal((14336, 4096), dtype=np.float32)
    noise = generator.standard_normal((14336, 4096), dtype=np.float32)
    for name, second in (
        ("unrelated neurons", noise),
        ("permuted neurons with noise", 0.3 * first[generator.permutation(14336)] + noise),
    ):
        start = time.perf_counter()
        scaled = [torch.from_numpy(m / np.linalg.norm(m, axis=1)[:, None]) for m in (first, second)]
        cosines = (scaled[0] @ scaled[1].T).numpy()
        print(f"alignment of {name}: similarity {time.perf_counter() - start:.1f} s")
        lapx = seconds(partial(lap.lapjv, 1 - cosines), runs=1)
        scipy = seconds(partial(linear_sum_assignment, cosines, maximize=True), runs=1)
        print(f"  lapx {lapx:.1f} s, scipy {scipy:.1f} s: {scipy / lapx:.1f}x")


def differences(experts: int = 64, neurons: int = 1408, width: int = 2048) -> None:
    """What it costs to multiply experts' differences from near ones, against the plain products of the same pass."""
    for name, noise in (("unrelated experts", None), ("upcycled experts", 1e-2)):
        with tempfile.TemporaryDirectory() as folder:
            write_mixtral(Path(folder), experts, neurons, width)
            if noise is not None:
                upcycle(Path(folder) / "model.safetensors", noise)
            chosen = select_layers_and_matrices(moe_probe.load(folder), None, "up")
            plain = partial(gram._differences, chosen[0], Tree.none(experts))
            by_differences = partial(gram.flat_geometry, chosen[0])
            plain(), by_differences()
            ratios = [seconds(by_differences, 1) / seconds(plain, 1) for _ in range(7)]
            print(f"{name}, {experts} x {neurons} x {width}: {statistics.median(ratios):.2f}x the plain products")


def upcycle(path: Path, noise: float) -> None:
    """Make every expert's matrices a copy of the first one's with relative noise."""
    tensors = load_file(path)
    for key in [key for key in tensors if ".experts." in key]:
        parts = key.split(".")
        first = tensors[".".join([*parts[:-3], "0", *parts[-2:]])].float()
        tensors[key] = (first + noise * torch.randn(first.shape)).bfloat16()
    save_file(tensors, path, metadata={"format": "pt"})


BENCHMARKS = {
    "differences": differences,
    "mixtral": lambda: layer("Mixtral layer, 8 x 14336 x 4096", 8, 14336, 4096),
    "deepseek": lambda: layer("DeepSeekMoE layer, 64 x 1408 x 2048", 64, 1408, 2048),
    "neurons": neurons,
    "alignment": alignment,
}

if __name__ == "__main__":
    for chosen in sys.argv[1:] or BENCHMARKS:
        BENCHMARKS[chosen]()
