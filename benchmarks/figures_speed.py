"""How long figures take at the size of a real model, the slowest one among them; how many files they are, how large.

    python benchmarks/figures_speed.py [EXPERTS] [LAYERS] [N_JOBS]

The result of every plot's own example, with 128 experts and 48 layers by default.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import gallery

from moe_probe import figures, plotting


def single_figures(ds):
    """Seconds that each figure of a result takes alone, drawn and written, and its name."""
    drawn = plotting.figures(ds)
    with tempfile.TemporaryDirectory() as folder:
        while True:
            began = time.perf_counter()
            stem, figure = next(drawn, (None, None))
            if figure is None:
                return
            figures.write_figure(figure, Path(folder) / f"{stem}.pdf")
            yield time.perf_counter() - began, stem


def main():
    experts, layers, n_jobs = (int(given) for given in (*sys.argv[1:], *("128", "48", "1")[len(sys.argv) - 1 :]))
    results = {name: gallery.resized(ds, experts, layers) for name, ds in gallery.examples().items()}
    total = 0.0
    for name, ds in results.items():
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            paths = figures.draw(ds, Path(folder), n_jobs=n_jobs)
            took = time.perf_counter() - began
            size = sum(path.stat().st_size for path in paths) / 1e6
        total += took
        print(f"{name:24} {len(paths):3} files {took / len(paths):5.2f} s a file {took:6.2f} s {size:6.2f} MB")
    print(f"one result after the other: {total:.1f} s")
    seconds, stem = max(each for ds in results.values() for each in single_figures(ds))
    print(f"the slowest figure: {stem}, {seconds:.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        paths = figures.draw(list(results.values()), Path(folder), n_jobs=n_jobs)
        print(f"all results at once: {len(paths)} files, {time.perf_counter() - began:.1f} s with n_jobs={n_jobs}")


if __name__ == "__main__":
    main()
