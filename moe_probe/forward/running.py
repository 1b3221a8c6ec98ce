"""One pass over a corpus for all analyses, with the model in memory or one layer at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moe_probe.dynamic.analysis import Analysis
from moe_probe.dynamic.saved_states import Progressed
from moe_probe.errors import InputError, WeightError
from moe_probe.families import Layer
from moe_probe.forward.capture import Event, Watch, capture
from moe_probe.forward.dense import DenseTap
from moe_probe.forward.sites import Site, decoder_layers, find_sites
from moe_probe.forward.spill import Spill
from moe_probe.forward.steps import Forward, stepping
from moe_probe.forward.streaming import StreamedModule
from moe_probe.model import MoEModel
from moe_probe.routing import ACTIVATIONS, BASELINE, LOGITS, OUTPUTS, SELECTED, LayerBatch
from moe_probe.texts.corpus import Batch, Corpus, Tokens

CHUNK_BYTES = 1 << 27  # of all experts' outputs held at once
SPILL_BYTES = 1 << 30  # hidden states of a whole corpus beyond this wait on disk
CHUNKED = frozenset({OUTPUTS, ACTIVATIONS, BASELINE})  # what is computed in chunks of tokens
RESIDENT_SHARE = 0.8  # of the free memory that a model may take to be loaded whole


class Runner:
    """A model that a pass goes through: in memory, or a layer at a time; its decoder alone, or up to the head."""

    def __init__(self, model: MoEModel, layerwise: bool, head: bool = False):
        self.streamed = StreamedModule(model, head) if layerwise else None
        self.module = model.module if self.streamed is None else self.streamed.module
        self.decoder, self.layers = decoder_layers(self.module)
        self.runs = self.module if head else self.decoder
        embeddings = self.decoder.get_input_embeddings().weight
        self.device = torch.device("cpu") if embeddings.is_meta else embeddings.device  # accelerate moves inputs itself

    def each_layer(self, stop: int) -> Iterator[int]:
        """Indices 0 to `stop - 1`, each while its layer is in memory."""
        return iter(range(stop)) if self.streamed is None else self.streamed.each_layer(stop)

    def start(self, batch: Batch, owner: object, spill: Spill | None = None) -> Forward:
        """A forward pass that waits at its first layer."""
        inputs = {"input_ids": batch.input_ids().to(self.device), "use_cache": False}
        mask = batch.attention_mask()
        if not mask.all():
            inputs["attention_mask"] = mask.to(self.device)
        forward = Forward(self.runs, inputs, owner, spill)
        forward.advance()
        return forward


def fits_in_memory(model: MoEModel) -> bool:
    """Whether the model's weights, in the dtype it computes in, leave room for the rest in free memory."""
    if model.checkpoint is None or "module" in vars(model):
        return True
    size = sum(tensor.numel() for tensor in model.published.values()) * model.dtype.itemsize
    if model.device is None or str(model.device).startswith("cpu"):
        return size < RESIDENT_SHARE * psutil.virtual_memory().available
    return not torch.cuda.is_available() or size < RESIDENT_SHARE * torch.cuda.mem_get_info()[0]


@dataclass
class Pass:
    """A pass over a corpus: what runs, where, and which analyses look on.

    Attributes:
        model, corpus: what runs on what.
        analyses: look on at every MoE layer of `layers`.
        layers: MoE layers, in order.
        baseline: a dense model that runs beside, where an analysis needs it.
        batch_tokens: places per batch.
        layerwise: read one layer at a time instead of loading the model.
        progressed: where merged states are kept; None for nowhere.
        show: whether progress is shown.
    """

    model: MoEModel
    corpus: Corpus
    analyses: Sequence[Analysis]
    layers: Sequence[int]
    baseline: MoEModel | None = None
    batch_tokens: int = 4096
    layerwise: bool = False
    progressed: Progressed | None = None
    show: bool = True

    def __post_init__(self):
        self.needs = frozenset().union(*(analysis.needs for analysis in self.analyses))
        self.batches = list(self.corpus.batches(self.batch_tokens))
        self.tokens: Tokens
        self.keep: torch.Tensor
        self.tap = DenseTap(self)

    @torch.no_grad()
    def run(self) -> None:
        """Go through the corpus; the analyses have seen it afterwards.

        Raises:
            FamilyError: the model's MoE layers cannot be watched.
            WeightError: weights are missing, or values are not finite.
        """
        runner = Runner(self.model, self.layerwise, LOGITS in self.needs)
        dense = None
        if BASELINE in self.needs and self.baseline is not None:
            dense = Runner(self.baseline, self.layerwise)
        with ExitStack() as stack:
            stack.enter_context(stepping(runner.layers, self))
            stack.enter_context(capture(find_sites(runner.module, self.layers).values(), self._on_event, self))
            if dense is not None:
                stack.enter_context(stepping(dense.layers, self))
                stack.enter_context(self.tap.watching(dense.module, self.layers))
            progress = stack.enter_context(
                Progress(
                    TextColumn("{task.description}"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TimeRemainingColumn(),
                    console=Console(stderr=True),
                    transient=True,
                    disable=not self.show,
                )
            )
            go = self._layer_by_layer if self.layerwise else self._batch_by_batch
            go(runner, dense, progress)

    def _batch_by_batch(self, runner: Runner, dense: Runner | None, progress: Progress) -> None:
        done = self.progressed.load(self.analyses) if self.progressed else 0
        task = progress.add_task("batches", total=len(self.batches), completed=done)
        for number, batch in enumerate(self.batches[done:], start=done + 1):
            forwards = [part.start(batch, self) for part in (dense, runner) if part is not None]
            for _ in range(self._stop):
                self._advance(batch, forwards)
            self._take_logits(batch, forwards[-1])
            for forward in forwards:
                forward.close()
            progress.advance(task)
            if self.progressed:
                self.progressed.save_sometimes(self.analyses, number, last=number == len(self.batches))

    def _layer_by_layer(self, runner: Runner, dense: Runner | None, progress: Progress) -> None:
        done = self.progressed.load(self.analyses) if self.progressed else 0
        task = progress.add_task("layers x batches", total=self._stop * len(self.batches))
        parts = [part for part in (dense, runner) if part is not None]
        forwards: list[list[Forward]] = []
        try:
            for batch in self.batches:
                forwards.append([part.start(batch, self, self._spill(part)) for part in parts])
            for indices in zip(*(part.each_layer(self._stop) for part in parts), strict=True):
                self.ignored = indices[0] < done
                for batch, waiting in zip(self.batches, forwards, strict=True):
                    self._advance(batch, waiting)
                    progress.advance(task)
                if self.progressed and not self.ignored:
                    self.progressed.save(self.analyses, indices[0] + 1)
            self.ignored = False
            for batch, waiting in zip(self.batches, forwards, strict=True):
                self._take_logits(batch, waiting[-1])
        finally:
            for forward in (forward for waiting in forwards for forward in waiting):
                forward.close()

    ignored = False  # while layers run again that a resumed pass has already seen

    @property
    def _stop(self) -> int:
        return self.model.num_layers if LOGITS in self.needs else max(self.layers) + 1

    def _take_logits(self, batch: Batch, forward: Forward) -> None:
        if LOGITS not in self.needs:
            return
        logits = forward.output.logits.flatten(0, 1)
        kept = logits[batch.attention_mask().flatten().bool().to(logits.device)]
        for analysis in self.analyses:
            if LOGITS in analysis.needs:
                analysis.update_logits(batch.tokens(), kept)

    def _spill(self, part: Runner) -> Spill | None:
        width = self.model.hidden_size * part.decoder.dtype.itemsize
        places = sum(rows * length for rows, length in (batch.shape for batch in self.batches))
        return Spill() if places * width > SPILL_BYTES else None

    def _advance(self, batch: Batch, forwards: Sequence[Forward]) -> None:
        self.tokens = batch.tokens()
        self.keep = batch.attention_mask().flatten().bool()
        for forward in forwards:
            forward.advance()

    def _on_event(self, event: Event, watch: Watch) -> None:
        if self.ignored:
            return
        layer = event.site.layer
        keep = self.keep.to(event.expert_input.device)
        values = per_row(event, watch, keep)
        self._require_finite(layer.index, values["router_logits"], "router logits", layer.subtokens)
        self._require_finite(layer.index, values["routed_output"], "expert outputs", layer.subtokens)
        per_token = {"block_output": event.block_output[keep]}
        if event.shared_output is not None:
            per_token["shared_output"] = event.shared_output[keep]
        if BASELINE in self.needs and self.baseline is not None:
            per_token["baseline_output"] = self.tap.output[keep]
            if ACTIVATIONS in self.needs:
                per_token["baseline_activation"] = self.tap.activation[keep]
        of_routing = [analysis for analysis in self.analyses if not analysis.needs & CHUNKED]
        of_outputs = [analysis for analysis in self.analyses if analysis.needs & CHUNKED]
        values |= compute(event.site, values, self.needs & {SELECTED})
        if of_routing:
            batch = LayerBatch(layer, self.tokens, **values, **per_token)
            for analysis in of_routing:
                analysis.update(batch)
        step = self._chunk(layer)
        for start in range(0, len(self.tokens) if of_outputs else 0, step):
            tokens, rows = slice(start, start + step), slice(start * layer.subtokens, (start + step) * layer.subtokens)
            part = {name: value[rows] for name, value in values.items()}
            part |= {name: value[tokens] for name, value in per_token.items()}
            batch = LayerBatch(layer, self.tokens[tokens], **part, **compute(event.site, part, self.needs - {SELECTED}))
            for analysis in of_outputs:
                analysis.update(batch)

    def _chunk(self, layer: Layer) -> int:
        """Tokens whose outputs of all experts are held at once."""
        width = max(layer.hidden_size, layer.intermediate_size * layer.subtokens * (ACTIVATIONS in self.needs))
        return max(1, CHUNK_BYTES // (4 * layer.num_experts * width))

    def _require_finite(self, layer: int, values: torch.Tensor, name: str, subtokens: int) -> None:
        if bool(values.sum(dtype=torch.float32).isfinite()):
            return
        finite = torch.isfinite(values).all(dim=-1)
        if not bool(finite.all()):
            token = int(np.flatnonzero(~finite.cpu().numpy())[0]) // subtokens
            raise WeightError(
                f"Layer {layer}: the {name} are not finite in document {self.tokens.document[token]}, position "
                f"{self.tokens.position[token]}; the weights are damaged or overflow in {self.model.dtype}."
            )


def per_row(event: Event, watch: Watch, keep: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a `LayerBatch` has of every row of the tokens to keep, (places,) bool."""
    rows = slice(None) if bool(keep.all()) else keep.repeat_interleave(event.site.layer.subtokens)
    logits = event.router_logits[rows].float()
    return {
        "router_logits": logits,
        "scores": watch.scores(logits).float(),
        "top_k_index": event.top_k_index[rows],
        "top_k_weights": event.top_k_weights[rows].float(),
        "expert_input": event.expert_input[rows],
        "routed_output": event.routed_output[rows],
    }


def compute(site: Site, values: Mapping[str, torch.Tensor], needs: frozenset[str]) -> dict[str, torch.Tensor]:
    """What the experts are asked beyond the forward pass."""
    computed = {}
    if ACTIVATIONS in needs:
        computed["outputs"], computed["activations"] = site.all_outputs_and_activations(values["expert_input"])
    elif OUTPUTS in needs:
        computed["outputs"] = site.all_outputs(values["expert_input"])
    if SELECTED in needs:
        computed["selected_outputs"] = site.selected_outputs(values["expert_input"], values["top_k_index"])
    return computed


def choose_execution(model: MoEModel, execution: str) -> bool:
    """Whether to go layer by layer.

    Raises:
        InputError: there is no such execution, or a live model is to be read from files.
    """
    if execution not in ("auto", "resident", "layerwise"):
        raise InputError(f"There is no execution {execution!r}; there are auto, resident and layerwise.")
    if execution == "layerwise" and model.checkpoint is None:
        raise InputError("A live model is in memory already; layerwise execution reads published files.")
    return execution == "layerwise" or (execution == "auto" and not fits_in_memory(model))
