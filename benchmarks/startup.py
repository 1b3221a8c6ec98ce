"""What starting costs: `python benchmarks/startup.py`; seconds, and ratios to an empty Python and to `import torch`.

Each is a new process; the best of several, so that files are in the page cache. Run it on an idle machine.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPEATS = 5
COMMAND = ["-m", "moe_probe"]
STARTS = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import moe_probe": ["-c", "import moe_probe"],
    "moe-probe --help": [*COMMAND, "--help"],
    "moe-probe --version": [*COMMAND, "--version"],
    "moe-probe dynamic --help": [*COMMAND, "dynamic", "--help"],
    "moe-probe info FOLDER": [*COMMAND, "info", str(ROOT / "ckpt" / "tiny-mixtral")],
    "moe_probe.load(FOLDER)": ["-c", f"import moe_probe; moe_probe.load({str(ROOT / 'ckpt' / 'tiny-mixtral')!r})"],
}


def seconds(arguments: list[str]) -> float:
    """The shortest time that a new process takes."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT)
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    times = {name: seconds(arguments) for name, arguments in STARTS.items()}
    empty, torch = times["python -c pass"], times["import torch"]
    print(f"{'':28}{'seconds':>9}{'/ pass':>9}{'/ torch':>9}")
    for name, taken in times.items():
        print(f"{name:28}{taken:9.2f}{taken / empty:9.1f}{taken / torch:9.2f}")


if __name__ == "__main__":
    main()
