"""Run the notebooks top to bottom, several at a time: `python notebooks/execute.py [--store] [NAME...]`.

Any error ends with its cell.

`--store` keeps the new outputs in the files; without it the files stay as they are.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import nbformat
from joblib import Parallel, cpu_count, delayed
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).parent
WIDGETS = "application/vnd.jupyter.widget-view+json"


def execute(path: Path, store: bool) -> float:
    """Run one notebook; seconds that it took."""
    notebook = nbformat.read(path, as_version=4)
    begin = time.perf_counter()
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()
    if store:
        nbformat.write(settled(notebook), path)
    return time.perf_counter() - begin


def outcome(name: str, store: bool) -> float | str:
    """Seconds that a notebook took, or the error that ended it."""
    try:
        return execute(FOLDER / f"{name}.ipynb", store)
    except CellExecutionError as error:
        return str(error)


def settled(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what differs from run to run: times, progress bars, where the checkout lies, what goes to stderr."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not passing(output)]
            for output in cell.outputs:
                if output.get("name") == "stdout":
                    output.text = output.text.replace(str(FOLDER.resolve().parent), "..")
    return notebook


def passing(output: nbformat.NotebookNode) -> bool:
    """Whether an output is a progress bar, or what is left of one, or was written to stderr."""
    data = output.get("data", {})
    finished = output.output_type == "display_data" and not data.get("text/plain", "").strip()
    return finished or WIDGETS in data or output.get("name") == "stderr"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="all by default")
    parser.add_argument("--store", action="store_true")
    arguments = parser.parse_args()
    names = arguments.names or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    run = Parallel(n_jobs=min(len(names), cpu_count()), return_as="generator")
    for name, ended in zip(names, run(delayed(outcome)(name, arguments.store) for name in names), strict=True):
        if isinstance(ended, str):
            sys.exit(f"{name}: {ended}")
        print(f"{name}: {ended:.0f} s", flush=True)


if __name__ == "__main__":
    main()
