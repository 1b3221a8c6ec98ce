"""Memory of a routing trace: it must not grow with the corpus.

    python benchmarks/trace_memory.py CSV [--tokens 100000]

Traces half as many tokens of a CSV file of texts through the tiny Mixtral, so many, and twice as many, each in its own
process, and prints the peak of resident memory without mapped files, and what the trace takes on disk.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from layerwise import Peak

import moe_probe
from moe_probe import dynamic

MODEL, LENGTH = Path(__file__).parents[1] / "ckpt" / "tiny-mixtral", 256


def documents(path: Path, tokens: int) -> list[list[int]]:
    """So many tokens of the file's texts, in documents of equal length."""
    tokenizer, ids = moe_probe.load(MODEL).tokenizer, []
    for text in pd.read_csv(path, header=None)[0]:
        ids += tokenizer(text)["input_ids"]
        if len(ids) >= tokens:
            break
    return [ids[start : start + LENGTH] for start in range(0, min(len(ids), tokens), LENGTH)]


def trace(path: Path, tokens: int) -> None:
    texts = documents(path, tokens)
    count = sum(map(len, texts))
    with tempfile.TemporaryDirectory() as folder:
        recorder = dynamic.RoutingTrace(Path(folder) / "trace")
        dynamic.run(MODEL, texts[:2], [dynamic.GateChoices()], progress=False)
        start = time.perf_counter()
        with Peak() as peak:
            dynamic.run(MODEL, texts, [recorder], progress=False)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.parquet"))
        seconds = time.perf_counter() - start
    print(
        f"{count:,} tokens: peak {peak.bytes / 1e6:.0f} MB, {size / count:.0f} bytes a token on disk, {seconds:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        trace(arguments.csv, arguments.tokens)
        return
    for tokens in (arguments.tokens // 2, arguments.tokens, 2 * arguments.tokens):
        command = [sys.executable, __file__, str(arguments.csv), "--tokens", str(tokens), "--one"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
