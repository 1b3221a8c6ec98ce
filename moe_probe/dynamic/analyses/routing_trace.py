"""Streams every choice of every token to Parquet files while the pass runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.errors import AlreadyThere, Damaged
from moe_probe.routing import ROUTING, LayerBatch, Need, Source
from moe_probe.statistics.states import ALL_LAYERS, Files, Total
from moe_probe.traces import writing as trace
from moe_probe.traces.rows import CARD

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass
class RoutingTrace(Analysis):
    """Writes a row per (document, position, subtoken, layer, rank) to a Parquet dataset, in constant memory.

    Columns: `document`, `position`, `subtoken`, `token_id`, `label`, `layer`, `rank` (0 is the chosen expert with the
    largest score), `expert`, `kind`, `logit` (raw), `score`, `weight` (applied), `norm` (L2 norm of the expert's
    unweighted output; null unless `norms` is set), and, on rank 0, `router_logits` and `scores` of all experts.
    `dynamic.read_trace` opens it; analyses that need only routing can run on it, without the model.

    Args:
        path: the folder to write.
        norms: record the norms of the chosen experts' outputs.
        overwrite: replace a trace that is already in the folder, once the new one is complete.

    The result has `rows` (layer, expert), int64, the number of choices written. The folder becomes a trace only when
    the pass is complete.

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

    path: str | Path
    norms: bool = False
    overwrite: bool = False

    name = "routing_trace"
    title = "Routing trace"
    legend = {"rows": ("choices written", "choices")}

    files, rows = Files(), Total("expert")

    def __post_init__(self) -> None:
        self.path = str(self.path)
        self._waiting: list[pa.Table] = []
        if (Path(self.path) / CARD).exists() and not self.overwrite:
            raise AlreadyThere(f"{self.path} holds a trace already; pass overwrite=True or another folder.")

    @classmethod
    def example(cls) -> Self:
        return cls(path="out/trace", overwrite=True)

    def needed(self) -> frozenset[Need]:
        return ROUTING - {Need.BEFORE} | ({Need.SELECTED} if self.norms else set())

    def fresh(self) -> Self:
        other = super().fresh()
        other._waiting = []
        return other

    def folders(self) -> Sequence[str | Path]:
        return [self.path]

    def update(self, batch: LayerBatch) -> None:
        self._waiting.append(trace.to_table(batch, self.norms))
        index = batch.top_k_index.flatten()
        self.rows.add(batch, torch.bincount(index, minlength=batch.layer.num_experts))
        if sum(table.num_rows for table in self._waiting) >= trace.FILE_ROWS:
            self.settle()

    def settle(self) -> None:
        if self._waiting:
            name = trace.new_part()
            trace.write_file(self._waiting, Path(self.path) / name)
            self.files.put(ALL_LAYERS, name)
            self._waiting = []

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        super().restore(state)
        for name in self.written:
            if not (Path(self.path) / name).exists():
                raise Damaged(f"{self.path} lacks {name}, which the interrupted run had written; delete its progress.")

    @property
    def written(self) -> tuple[str, ...]:
        """Names of the written files."""
        return self.files[ALL_LAYERS] if self.files else ()

    def __getstate__(self) -> dict[str, Any]:
        self.settle()  # what goes to another process is on disk
        return vars(self)

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        rows = self.rows.array
        trace.finish(Path(self.path), self.written, int(rows.sum()), source)
        return {"rows": rows}
