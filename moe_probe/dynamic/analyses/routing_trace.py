"""Every choice of every token, streamed to Parquet files while the pass runs."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import xarray as xr

from moe_probe.dynamic.analysis import Analysis, expert_labels
from moe_probe.errors import InputError
from moe_probe.results import with_attrs
from moe_probe.routing import SELECTED, LayerBatch
from moe_probe.texts.corpus import Corpus
from moe_probe.traces import reading as trace


class RoutingTrace(Analysis):
    """A row per (document, position, subtoken, layer, rank) in a Parquet dataset; memory does not grow with the corpus.

    Columns: `document`, `position`, `subtoken`, `token_id`, `label`, `layer`, `rank` (0 is the chosen expert with the
    largest score), `expert`, `kind`, `logit` (raw), `score`, `weight` (applied), `norm` (L2 norm of the expert's
    unweighted output; null unless asked for), and, on rank 0, `router_logits` and `scores` of all experts.
    `dynamic.read_trace` opens it; every analysis that needs routing alone can be computed from it, without the model.

    Args:
        path: the folder.
        norms: record the chosen experts' norms.
        overwrite: replace a trace that the folder holds, when this one is complete.

    The result has `rows` (layer, expert), int64: choices written. The folder counts as a trace only once the pass has
    come to its end.

    Raises:
        InputError: the folder holds a trace already.

    Examples:
        >>> import tempfile
        >>> from moe_probe import dynamic
        >>> folder = tempfile.mkdtemp()
        >>> ds = dynamic.routing_trace("ckpt/tiny-mixtral", ["A short text."], path=folder)
        >>> int(ds.rows.sum()) == dynamic.read_trace(folder).num_rows
        True
    """

    name = "routing_trace"

    def __init__(self, path: str | Path, norms: bool = False, overwrite: bool = False):
        self.path, self.norms, self.overwrite = str(path), norms, overwrite
        self.needs = frozenset({SELECTED}) if norms else frozenset()
        self._waiting: list[pa.Table] = []
        self._files: list[str] = []
        self._rows: dict[int, np.ndarray] = {}
        if (Path(path) / trace.CARD).exists() and not overwrite:
            raise InputError(f"{path} holds a trace already; give overwrite=True, or another folder.")

    def update(self, batch: LayerBatch) -> None:
        self._waiting.append(trace.to_table(batch))
        counts = np.bincount(batch.top_k_index.flatten().cpu().numpy(), minlength=batch.layer.num_experts)
        self._rows[batch.layer.index] = self._rows.get(batch.layer.index, 0) + counts
        if sum(table.num_rows for table in self._waiting) >= trace.FILE_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            name = f"part-{uuid.uuid4().hex}.parquet"
            trace.write_file(self._waiting, Path(self.path) / name)
            self._files.append(name)
            self._waiting = []

    def merge(self, other: Self) -> None:
        other._flush()
        self._files += other._files
        for layer, counts in other._rows.items():
            self._rows[layer] = self._rows.get(layer, 0) + counts

    def state(self) -> dict[str, np.ndarray]:
        self._flush()
        counts = {f"rows/{layer}": counts for layer, counts in self._rows.items()}
        return {"files": np.asarray(self._files, dtype=str), **counts}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self._waiting, self._files = [], [str(name) for name in state["files"]]
        self._rows = {int(key.split("/")[1]): value for key, value in state.items() if key.startswith("rows/")}
        missing = [name for name in self._files if not (Path(self.path) / name).exists()]
        if missing:
            raise InputError(f"{self.path} lacks {missing[0]}, which the interrupted run had written; begin anew.")

    def __getstate__(self) -> dict[str, Any]:
        self._flush()  # what goes to another process is on disk
        return vars(self)

    def result(self, model: Any, corpus: Corpus) -> xr.Dataset:
        self._flush()
        layers = sorted(self._rows)
        total = sum(int(counts.sum()) for counts in self._rows.values())
        trace.finish(Path(self.path), self._files, total, model, corpus, layers)
        counts = {model.layer(layer).num_experts for layer in layers}
        if len(counts) > 1:
            raise InputError(f"The layers have {sorted(counts)} experts; choose layers= that are alike.")
        rows = np.stack([self._rows[layer] for layer in layers])
        coords = {"layer": layers, "expert": expert_labels(model, layers[0])}
        return with_attrs({"rows": (("layer", "expert"), rows)}, coords, self.attrs(model, corpus))
