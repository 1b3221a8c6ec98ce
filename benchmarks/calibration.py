"""How often intervals hold the truth, and how often chance is excluded where there is nothing else, as a table.

    python benchmarks/calibration.py [REPEATS] [NAME ...]

Simulates every analysis with an interval, a chance level or a p-value in all worlds of `tests/dynamic/simulated.py`,
and writes the table of `docs/trust.md`: the rate over all of them, and that of the worst scenario.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "dynamic"))

from simulated import SIMULATIONS

WANTED = {"cover": 0.95, "null": 0.05}


def rates(name: str, repeats: int) -> dict[str, list[float]]:
    """By variable and kind, the rate in each world."""
    simulate, worlds = SIMULATIONS[name]
    found: dict[str, list[float]] = {}
    for number, world in enumerate(worlds):
        generator = np.random.default_rng([repeats, number])
        hits: dict[str, list[np.ndarray]] = {}
        for _ in range(repeats):
            for key, values in simulate(generator, world).items():
                hits.setdefault(key, []).append(np.ravel(values))
        for key, values in hits.items():
            joined = np.concatenate(values)
            if len(joined):
                found.setdefault(key, []).append(float(joined.mean()))
    return found


def table(names: list[str], repeats: int) -> None:
    """Print a row for each variable."""
    print(
        "| analysis | variable | contains the truth | chance excluded | worst scenario |\n|---|---|---|---|---|",
        flush=True,
    )
    for name in names:
        for key, values in rates(name, repeats).items():
            variable, kind = key.split(": ")
            worst = max(values, key=lambda rate, wanted=WANTED[kind]: abs(rate - wanted))
            cells = {"cover": "", "null": "", kind: f"{np.mean(values):.3f}"}
            print(f"| `{name}` | `{variable}` | {cells['cover']} | {cells['null']} | {worst:.3f} |", flush=True)


if __name__ == "__main__":
    asked = sys.argv[1:]
    table(asked[1:] or list(SIMULATIONS), int(asked[0]) if asked else 200)
