"""Time of all scores of one pass, beside that of the model's own forward over the same documents.

python benchmarks/score_speed.py [CHECKPOINT]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import torch

import moe_probe
from moe_probe import pruning
from moe_probe.pruning.score import OnePass
from moe_probe.routing import Need

DOCUMENTS, TOKENS, REPEATS = 24, 128, 5


def seconds(work: Callable[[], object]) -> float:
    """The shortest time of several, after one that does not count."""
    work()
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> None:
    """Print seconds and ratios."""
    model = moe_probe.load(sys.argv[1] if len(sys.argv) > 1 else "ckpt/tiny-mixtral")
    rows = np.random.default_rng(0).integers(5, 200, (DOCUMENTS, TOKENS))
    of = {name: score for name, score in pruning.names().items() if isinstance(score, OnePass)}
    chosen_only = [name for name, score in of.items() if Need.OUTPUTS not in score.needs]

    def scored(names: list[str]) -> float:
        return seconds(lambda: pruning.scores(model, rows.tolist(), names, progress=False, execution="resident"))

    with torch.no_grad():
        plain = seconds(lambda: model.module(torch.from_numpy(rows)))
    print(f"plain forward              {plain:.3f} s")
    for label, names in {"chosen experts": chosen_only, "all experts": list(of)}.items():
        took = scored(names)
        print(f"{len(names):2} scores, {label:14} {took:.3f} s, {took / plain:.2f} x the plain forward")


if __name__ == "__main__":
    main()
